"""Which levels quantize dropout keeps, as vector-quantize-pytorch draws it.

Legend: B batch, q levels.
"""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require

NUM_SEEDS = 10_000


def draw_seed(device: torch.device) -> int:
    """A seed from the global generator, the same on all processes."""
    seed = torch.randint(0, NUM_SEEDS, (), device=device)
    sync.all_reduce_sum(seed)
    return int(seed)


def last_level_kept(num_levels: int, cutoff: int = 0, multiple_of: int = 1, seed: int = 0) -> int:
    """Index of the last level that quantizes: uniform in cutoff .. num_levels - 1, the number of levels rounded up to a
    multiple (which may name a level that does not exist: all are kept then)."""
    last = random.Random(seed).randrange(cutoff, num_levels)
    return math.ceil((last + 1) / multiple_of) * multiple_of - 1


class DropsLevels(nn.Module):
    """Quantize dropout of a residual quantizer with `num_quantizers` levels."""

    num_quantizers: int
    drops_without_gradients = True  # in train mode under no_grad

    def _set_dropout(self, dropout: bool, cutoff: int, multiple_of: int) -> None:
        levels = self.num_quantizers
        require(
            0 <= cutoff and (cutoff < levels or not dropout),
            f"quantize_dropout_cutoff_index must be in 0 .. {levels - 1}, got {cutoff}",
        )
        self.quantize_dropout = dropout and levels > 1
        self.quantize_dropout_cutoff_index, self.quantize_dropout_multiple_of = cutoff, multiple_of

    def _last_level(self, device: torch.device, seed: int | None) -> int:
        """Index of the last level that this forward uses; seed None: drawn."""
        if not (self.training and self.quantize_dropout and (self.drops_without_gradients or torch.is_grad_enabled())):
            return self.num_quantizers - 1
        cutoff, multiple_of = self.quantize_dropout_cutoff_index, self.quantize_dropout_multiple_of
        last = last_level_kept(self.num_quantizers, cutoff, multiple_of, draw_seed(device) if seed is None else seed)
        return min(last, self.num_quantizers - 1)

    def _with_dropped(self, indices: list[Tensor], losses: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Indices (B, ...) and losses () of the levels used -> (B, ..., q) and (q,), with -1 and 0 for the rest."""
        dropped = self.num_quantizers - len(indices)
        indices = indices + [torch.full_like(indices[0], -1)] * dropped
        losses = losses + [torch.zeros_like(losses[0])] * dropped
        return torch.stack(indices, -1), torch.stack(losses)

    def _all_levels(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., up to q) -> (B, ..., q), -1 for the levels they lack, which needs quantize dropout."""
        missing = self.num_quantizers - indices.shape[-1]
        require(
            missing == 0 or (missing > 0 and self.quantize_dropout),
            f"indices have {indices.shape[-1]} levels of {self.num_quantizers}; fewer need quantize_dropout=True",
        )
        return F.pad(indices, (0, missing), value=-1)
