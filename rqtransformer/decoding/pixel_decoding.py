"""Codes -> pixels in batches that fit a memory budget.

Legend: B batch, H W grid, D code depth; C H W in BCHW: image channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rqstack.arguments import check_count, shown
from rqtransformer.embedding import ImageTokenizer

DEFAULT_BUDGET = 2 * 2**30
# What one operation reads and writes is not all that is alive: skip connections, workspaces.
SAFETY = 2


def decode_in_batches(
    tokenizer: ImageTokenizer, codes_BHWD: Tensor, *, memory_budget: int = DEFAULT_BUDGET, batch_size: int | None = None
) -> Iterator[Tensor]:
    """Codes -> images in [-1, 1], some at a time, in order.

    What one image takes is measured at the first call for a tokenizer and a shape, by decoding one image alone.

    Args:
        tokenizer: gives `decode_code`.
        codes_BHWD: any number of code maps.
        memory_budget: bytes that the activations of one batch may take; at least one image is decoded at a time.
        batch_size: images at a time, instead of the budget.

    Raises:
        ValueError, TypeError: for a budget or a batch size below 1, codes of another shape, no tokenizer.
    """
    if batch_size is not None:
        check_count("batch_size", batch_size)
    check_count("memory_budget", memory_budget)
    if not callable(getattr(tokenizer, "decode_code", None)):
        raise TypeError(f"the tokenizer must be an RQVAE, or give `decode_code`, got {type(tokenizer).__name__}")
    if not isinstance(codes_BHWD, Tensor) or codes_BHWD.ndim != 4:
        raise ValueError(f"codes must be a tensor (B, H, W, D) of whole numbers, got {shown(codes_BHWD)}")
    return _decode(tokenizer, codes_BHWD, memory_budget, batch_size)


@torch.no_grad()
def _decode(
    tokenizer: ImageTokenizer, codes_BHWD: Tensor, memory_budget: int, batch_size: int | None
) -> Iterator[Tensor]:
    if not len(codes_BHWD):
        return
    if batch_size is None:
        batch_size = max(1, memory_budget // max(1, SAFETY * _bytes_per_image(tokenizer, codes_BHWD)))
    for part_BHWD in codes_BHWD.split(batch_size):
        yield tokenizer.decode_code(part_BHWD)


# tokenizer -> {what the bytes depend on: bytes}; goes with the tokenizer
_MEASURED: WeakKeyDictionary[ImageTokenizer, dict[tuple[object, ...], int]] = WeakKeyDictionary()


def _bytes_per_image(tokenizer: ImageTokenizer, codes_BHWD: Tensor) -> int:
    """Bytes of the largest operation of one image, measured once by decoding it alone."""
    device = codes_BHWD.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    weights = {parameter.dtype for parameter in tokenizer.parameters()} if isinstance(tokenizer, nn.Module) else set()
    key = (tuple(codes_BHWD.shape[1:]), codes_BHWD.device, autocast, frozenset(weights))
    known = _MEASURED.setdefault(tokenizer, {})
    if key not in known:
        first_1HWD = codes_BHWD[:1]
        with _LargestOperation() as largest:
            tokenizer.decode_code(first_1HWD)
        known[key] = largest.bytes
    return known[key]


class _LargestOperation(TorchDispatchMode):
    """Remembers the most bytes that one operation's tensors took, weights included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in tensors.values()))
        return out
