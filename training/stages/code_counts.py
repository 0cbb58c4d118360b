"""How often each code of a depth was used in training: what a unigram model of the codes would know.

Legend: B batch, H W code grid, D code depth, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rqstack.quantizers.usage import code_histogram
from runtime import distributed


class CodeCounts:
    """How often each code was used at each depth, on all ranks: of the training codes, the unigram baseline."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = sizes
        self.total_DK = torch.zeros(len(sizes), max(sizes), dtype=torch.float64, device=device)
        self._window_DK = torch.zeros_like(self.total_DK)

    def add(self, codes_BHWD: Tensor) -> None:
        """Counts this rank's codes of one batch."""
        self._window_DK += code_histogram(codes_BHWD, self.sizes)

    def reduce(self) -> None:
        """Adds what all ranks counted since the last call to the total; every rank must call it."""
        self.total_DK += distributed.all_reduce_sum_(self._window_DK)
        self._window_DK = torch.zeros_like(self.total_DK)

    def unigram_nll(self, other: CodeCounts) -> Tensor:
        """Nats per code (D,) that the codes counted in `other` cost under the (add-one smoothed) frequencies here."""
        nll = []
        for size, own_K, other_K in zip(self.sizes, self.total_DK, other.total_DK, strict=True):
            smoothed_K = own_K[:size] + 1.0
            log_frequency_K = (smoothed_K / smoothed_K.sum()).log()
            nll.append(-(other_K[:size] * log_frequency_K).sum() / other_K.sum())
        return torch.stack(nll).cpu()

    def state_dict(self) -> dict[str, Tensor]:
        """The totals; complete when `reduce` was just called."""
        return {"total": self.total_DK}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores what `state_dict` gave."""
        self.total_DK.copy_(state["total"])
