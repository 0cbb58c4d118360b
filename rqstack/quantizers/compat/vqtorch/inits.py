"""Codebooks from data before training, as vqtorch calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rqstack.quantizers import warmup
from rqstack.quantizers.arithmetic.signatures import checks_arguments


@checks_arguments
def codebook_warmup(model: nn.Module, loader: Iterable[Any], warmup_method: str = "data", num_batch: int = 128) -> None:
    """Set the codebooks of all quantizers in `model` from `num_batch` batches: 'data' or 'kmeans'.

    See `rqstack.quantizers.codebook_warmup`. The loader is iterated once per layer.
    """
    warmup.codebook_warmup(model, loader, warmup_method, num_batch)
