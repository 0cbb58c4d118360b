"""Exactly N samples: how often each was seen. Axes: B batch, N images."""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.statistics import Reduce


class SampleLedger:
    """Counts how often each global index 0..N-1 was seen; every one must be seen exactly once."""

    def __init__(self, num_images: int, device: torch.device | str = "cpu") -> None:
        self.seen_N = torch.zeros(num_images, dtype=torch.int32, device=device)

    def update(self, index_B: Tensor) -> None:
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < len(self.seen_N):
            raise ValueError(f"got more images than the {len(self.seen_N)} announced (index {index_B.max().item()})")
        index_B = index_B.to(self.seen_N.device)
        self.seen_N.index_add_(0, index_B, torch.ones_like(index_B, dtype=torch.int32))

    def close(self, reduce: Reduce) -> None:
        """Sums over ranks and raises a ValueError unless every image came exactly once."""
        reduce(self.seen_N)
        missing, repeated = (self.seen_N == 0).sum().item(), (self.seen_N > 1).sum().item()
        if missing or repeated:
            raise ValueError(f"{len(self.seen_N)} images announced: {missing} missing, {repeated} more than once")
