"""A codebook trained by the optimizer.

Legend: E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.codebooks.entry_use import CountedCodebook, RestartRule, count_codes
from rqstack.quantizers.codebooks.restart_draw import CodedVectors


class LearnedCodebook(CountedCodebook):
    """K code vectors of size E as one parameter; uniform in +-1/K at first, as in the VQ-VAE paper.

    normalize: the code vectors in use are the parameter's rows scaled to length 1. restart: entries that `update`
    replaces by vectors of the step, seed: of these draws; their optimizer state is left as it is. The counts of
    `CountedCodebook` (decay: of the average cluster size) exist only with a restart rule.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        normalize: bool = False,
        decay: float = 0.99,
        restart: RestartRule | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.normalize, self.restart_rule = normalize, restart
        self.rows = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        if restart is None:
            self.register_buffer("num_restarts", torch.zeros((), dtype=torch.int64), persistent=False)
        else:
            self._count_entries(num_codes, 1.0, decay, restart, seed)

    @property
    def weight(self) -> Tensor:
        """The (K, E) code vectors, fp32, with the gradient of the parameter."""
        rows = self.rows.float()
        return F.normalize(rows, dim=1) if self.normalize else rows

    def nearest(self, x_NE: Tensor) -> Tensor:
        """Index of the nearest code vector of every row."""
        return nearest_codes(x_NE, self.weight.detach())

    def embed(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> code vectors (..., E)."""
        return F.embedding(codes, self.weight)

    @torch.no_grad()
    def assign(self, vectors_KE: Tensor, sizes_K: Tensor) -> None:
        """Replace all code vectors, each the mean of so many vectors per step; sizes below 1 count as 1."""
        self.rows.copy_(vectors_KE)
        if self.restart_rule is not None:
            self._start_counts(sizes_K.clamp(min=1))

    @torch.no_grad()
    def update(self, batches: Sequence[CodedVectors], to_rows: Callable[[Tensor], Tensor] | None = None) -> None:
        """Count the vectors of all processes and restart unused entries; the optimizer does everything else.

        to_rows: vectors (K, E) -> rows that stand for them, where the codebook is re-parametrised.
        """
        if self.restart_rule is None:
            return
        counts_K = count_codes(batches, len(self.rows))
        sync.all_reduce_sum(counts_K)
        self._add_counts(counts_K)
        entries_K, vectors_KE, _ = self._draw_restarts(batches, self.rows.shape[1])
        vectors_KE = vectors_KE if to_rows is None else to_rows(vectors_KE)
        self.rows.copy_(torch.where(entries_K[:, None], vectors_KE.to(self.rows.dtype), self.rows))
        self.num_updates += 1
