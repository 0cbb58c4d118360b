"""Numbers that are not finite: whether a tensor holds one, and a line that names the tensors of a model that do."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOST_NAMED = 3


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity in it; integers are finite. Reads the tensor once and waits for it."""
    tensor = tensor.detach()
    tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a sharded one this rank's share
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def non_finite_names(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The names of the tensors with numbers that are not finite, the first few of them; empty where there are none."""
    names = [name for name, tensor in tensors if not is_finite(tensor)]
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
