"""How a codebook is used: histogram, entropy, perplexity and dead codes, per depth.

Legend: B batch, H W grid, D code depth, K codebook size (the largest one where depths differ).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import sync


def code_histogram(codes_BHWD: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Counts of every code, int64 (D, K), without a one-hot matrix and without waiting for the device.

    Args:
        codes_BHWD: int64 codes (..., D), all in range for their depth.
        sizes: codebook size, one number or one per depth; shorter rows end in zeros.
    """
    depth = codes_BHWD.shape[-1]
    num_codes = sizes if isinstance(sizes, int) else max(sizes)
    offsets_D = torch.arange(depth, device=codes_BHWD.device) * num_codes
    flat = (codes_BHWD.detach() + offsets_D).flatten()
    counts = torch.zeros(depth * num_codes, dtype=torch.int64, device=codes_BHWD.device)
    return counts.scatter_add_(0, flat, torch.ones_like(flat)).view(depth, num_codes)


def entropy(histogram: Tensor) -> Tensor:
    """Entropy in nats of unnormalised frequencies over the last dimension; float64 in, float64 out, else float32.

    -sum q log(q + 1e-10) with q = histogram / sum, as published. An empty histogram has entropy 0.
    """
    frequency = histogram if histogram.dtype == torch.float64 else histogram.float()
    q = frequency / frequency.sum(-1, keepdim=True).clamp_min(torch.finfo(frequency.dtype).tiny)
    return -(q * torch.log(q + 1e-10)).sum(-1)


class CodeUsage:
    """Accumulates code counts over a window (any number of batches) until `reset`.

    Args:
        depth: number of codes per position, D.
        num_codes: codebook size, one number or one per depth.
        device: where to count; it also follows the codes, but a rank without codes has only this.

    Raises ValueError when the number of sizes is not `depth`, or a size is below 1.
    """

    def __init__(self, depth: int, num_codes: int | Sequence[int], device: torch.device | str | None = None):
        self.sizes = [num_codes] * depth if isinstance(num_codes, int) else [int(size) for size in num_codes]
        if len(self.sizes) != depth or min(self.sizes, default=0) < 1:
            raise ValueError(f"code usage needs {depth} codebook sizes of at least 1, got {num_codes}")
        self.counts_DK = torch.zeros(depth, max(self.sizes), dtype=torch.int64, device=device)
        self._reduced = False

    def reset(self) -> None:
        """Starts a new window."""
        self.counts_DK = torch.zeros_like(self.counts_DK)
        self._reduced = False

    def update(self, codes_BHWD: Tensor) -> None:
        """Adds one batch of codes (..., D). Counts follow the codes' device; nothing waits for it."""
        assert not self._reduced, "the window holds the sums of all ranks: reset() before the next update()"
        if self.counts_DK.device != codes_BHWD.device:
            self.counts_DK = self.counts_DK.to(codes_BHWD.device)
        self.counts_DK += code_histogram(codes_BHWD, self.counts_DK.shape[1])

    def reduce(self) -> CodeUsage:
        """Sums the counts over ranks, in place, once per window; every rank must call it. Returns itself."""
        if not self._reduced:
            sync.all_reduce_sum(self.counts_DK)
            self._reduced = True
        return self

    def summary(self) -> dict[str, Tensor]:
        """Per depth, all (D): `perplexity` = exp(entropy), `used_fraction` of the codebook, number of `dead` codes."""
        sizes_D = torch.tensor(self.sizes, device=self.counts_DK.device)
        used_D = (self.counts_DK > 0).sum(-1)
        return {
            "perplexity": entropy(self.counts_DK.double()).exp().float(),
            "used_fraction": (used_D / sizes_D).float(),
            "dead": sizes_D - used_D,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The open window, for exact resume of what is logged."""
        return {"counts": self.counts_DK}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues the window of `state_dict`."""
        assert state["counts"].shape == self.counts_DK.shape, "code usage of another codebook"
        self.counts_DK = state["counts"].clone()
        self._reduced = False
