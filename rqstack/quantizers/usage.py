"""How a codebook is used: histogram, entropy, perplexity, dead codes and restarts, per depth.

Legend: B batch, H W grid, D code depth, K codebook size (the largest one where depths differ).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rqstack.arguments import check_count, shown
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.signatures import checks_arguments


def code_histogram(codes_BHWD: Tensor, sizes: int | Sequence[int]) -> Tensor:
    """Counts of every code, int64 (D, K), without a one-hot matrix and without waiting for the device.

    Args:
        codes_BHWD: int64 codes (..., D), all in range for their depth, or negative: a dropped level, not counted.
        sizes: codebook size, one number or one per depth; shorter rows end in zeros.
    """
    depth = codes_BHWD.shape[-1]
    num_codes = sizes if isinstance(sizes, int) else max(sizes)
    offsets_D = torch.arange(depth, device=codes_BHWD.device) * num_codes
    codes_BHWD = codes_BHWD.detach()
    flat = (codes_BHWD.clamp(min=0) + offsets_D).flatten()
    counts = torch.zeros(depth * num_codes, dtype=torch.int64, device=codes_BHWD.device)
    return counts.scatter_add_(0, flat, (codes_BHWD >= 0).long().flatten()).view(depth, num_codes)


def entropy(histogram: Tensor) -> Tensor:
    """Entropy in nats of unnormalised frequencies over the last dimension; float64 in, float64 out, else float32.

    -sum q log(q + 1e-10) with q = histogram / sum, as published. An empty histogram has entropy 0.
    """
    frequency = histogram if histogram.dtype == torch.float64 else histogram.float()
    q = frequency / frequency.sum(-1, keepdim=True).clamp_min(torch.finfo(frequency.dtype).tiny)
    return -(q * torch.log(q + 1e-10)).sum(-1)


@checks_arguments
class CodeUsage:
    """Accumulates code counts over a window (any number of batches, an epoch) until `reset`.

    Args:
        depth: number of codes per position, D.
        num_codes: codebook size, one number or one per depth.
        device: where to count; it also follows the codes, but a rank without codes has only this.

    Raises ValueError when the number of sizes is not `depth`, or a size is below 1.
    """

    def __init__(self, depth: int, num_codes: int | Sequence[int], device: torch.device | str | None = None):
        check_count("depth", depth)
        self.sizes = [num_codes] * depth if isinstance(num_codes, int) else [int(size) for size in num_codes]
        if len(self.sizes) != depth or min(self.sizes, default=0) < 1:
            raise ValueError(f"code usage needs {depth} codebook sizes of at least 1, got {num_codes}")
        try:
            device = None if device is None else torch.device(device)
        except RuntimeError:
            raise ValueError(f"device {shown(device)} is none of torch") from None
        self.counts_DK = torch.zeros(depth, max(self.sizes), dtype=torch.int64, device=device)
        self.restarts_D: Tensor | None = None
        self._restarts_before_D: Tensor | None = None
        self._reduced = False

    def reset(self) -> None:
        """Starts a new window."""
        self.counts_DK = torch.zeros_like(self.counts_DK)
        self.restarts_D = None if self.restarts_D is None else torch.zeros_like(self.restarts_D)
        self._reduced = False

    def update(self, codes_BHWD: Tensor) -> None:
        """Adds one batch of codes (..., D). Counts follow the codes' device; nothing waits for it."""
        assert not self._reduced, "the window holds the sums of all ranks: reset() before the next update()"
        if self.counts_DK.device != codes_BHWD.device:
            self.counts_DK = self.counts_DK.to(codes_BHWD.device)
        self.counts_DK += code_histogram(codes_BHWD, self.counts_DK.shape[1])

    def note_restarts(self, total_D: Tensor) -> None:
        """Takes `Quantizer.restart_counts()`, which only grows: the window gets what it grew by since the last call.

        The first call counts from zero, as the counters of a quantizer do. They are equal on all ranks: nothing to sum.
        """
        before_D = torch.zeros_like(total_D) if self._restarts_before_D is None else self._restarts_before_D
        grown_D = total_D - before_D
        self.restarts_D = grown_D if self.restarts_D is None else self.restarts_D.to(grown_D.device) + grown_D
        self._restarts_before_D = total_D.clone()

    def reduce(self) -> CodeUsage:
        """Sums the counts over ranks, in place, once per window; every rank must call it. Returns itself."""
        if not self._reduced:
            sync.all_reduce_sum(self.counts_DK)
            self._reduced = True
        return self

    def summary(self) -> dict[str, Tensor]:
        """Per depth, all (D): `perplexity` = exp(entropy), `used_fraction` of the codebook, number of `dead` codes and,
        where they have been noted, of `restarts`."""
        sizes_D = torch.tensor(self.sizes, device=self.counts_DK.device)
        used_D = (self.counts_DK > 0).sum(-1)
        summary = {
            "perplexity": entropy(self.counts_DK.double()).exp().float(),
            "used_fraction": (used_D / sizes_D).float(),
            "dead": sizes_D - used_D,
        }
        return summary if self.restarts_D is None else {**summary, "restarts": self.restarts_D}

    def state_dict(self) -> dict[str, Tensor]:
        """The open window, for exact resume of what is logged."""
        restarts = {} if self.restarts_D is None else {"restarts": self.restarts_D}
        return {"counts": self.counts_DK, **restarts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues the window of `state_dict`."""
        assert state["counts"].shape == self.counts_DK.shape, "code usage of another codebook"
        self.counts_DK = state["counts"].clone()
        self.restarts_D = state["restarts"].clone() if "restarts" in state else None
        self._reduced = False
