"""A codebook learned by exponential moving averages.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_count
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.codebooks.averages import counts_and_sums, smoothed_sizes
from rqstack.quantizers.codebooks.entry_use import CountedCodebook, RestartRule
from rqstack.quantizers.codebooks.restart_draw import CodedVectors

SMOOTHING = 1e-5  # Laplace smoothing of the cluster sizes


@checks_arguments
class EMACodebook(CountedCodebook):
    """K code vectors of size E that follow the vectors assigned to them.

    All state is fp32 buffers: optimizers, `.half()` and sharding leave it alone. `cluster_size_ema` and `embed_ema`
    are decayed sums; `weight` is their smoothed ratio. The other counts: see `CountedCodebook`.

    keep_unused: entries that no vector of a step chose keep their vector, and a new codebook starts with cluster
    sizes of 1. Without it (the published behaviour) a never used entry has cluster size 0 and its vector explodes.
    restart: which entries `update` replaces by vectors of the step; seed: of these draws. normalize: code vectors have
    length 1.
    """

    weight: Tensor
    embed_ema: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        restart: RestartRule | None = None,
        keep_unused: bool = True,
        normalize: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        check_count("num_codes", num_codes)
        check_count("dim", dim)
        self.keep_unused = keep_unused
        self.normalize = normalize
        weight = torch.randn(num_codes, dim, dtype=torch.float32)
        weight = F.normalize(weight, dim=1) if normalize else weight
        self._hold(weight)
        self._count_entries(num_codes, float(keep_unused), decay, restart, seed)
        self.register_buffer("embed_ema", weight.clone())

    def _hold(self, weight_KE: Tensor) -> None:
        self.register_buffer("weight", weight_KE)

    def nearest(self, x_NE: Tensor) -> Tensor:
        """Index of the nearest code vector of every row."""
        return nearest_codes(x_NE, self.weight.detach())

    def embed(self, codes: Tensor) -> Tensor:
        """Codes of any shape -> code vectors (..., E)."""
        return F.embedding(codes, self.weight)

    @torch.no_grad()
    def assign(self, vectors_KE: Tensor, sizes_K: Tensor) -> None:
        """Replace all code vectors, as if each were the mean of so many vectors per step; sizes below 1 count as 1."""
        self._start_counts(sizes_K.clamp(min=1))
        self._store(F.normalize(vectors_KE, dim=1) if self.normalize else vectors_KE)
        self.embed_ema.copy_(self.weight * self.cluster_size_ema[:, None])

    @torch.no_grad()
    def update(self, batches: Sequence[CodedVectors]) -> None:
        """One moving-average step over all rows of all batches of all processes, then a refresh of the vectors.

        Invalid rows do not count. The look-ups the rows came from must be done: the vectors change here.
        """
        counts_K, sums_KE = counts_and_sums(batches, len(self.embed_ema))
        self._add_counts(counts_K)
        self.embed_ema.mul_(self.decay).add_(sums_KE, alpha=1 - self.decay)
        changed_K = counts_K > 0
        if self.restart_rule is not None:
            changed_K |= self._restart(batches)
        self._refresh(changed_K)
        self.num_updates += 1

    def _restart(self, batches: Sequence[CodedVectors]) -> Tensor:
        """Give unused entries a vector of this step. Returns which entries those are."""
        entries_K, vectors_KE, size = self._draw_restarts(batches, self.embed_ema.shape[1])
        self.embed_ema.copy_(torch.where(entries_K[:, None], vectors_KE * size, self.embed_ema))
        return entries_K

    def _smoothed_sizes(self) -> Tensor:
        return smoothed_sizes(self.cluster_size_ema, SMOOTHING)

    def _refresh(self, changed_K: Tensor) -> None:
        """weight = embed_ema / smoothed cluster size."""
        weight_KE = self.embed_ema / self._smoothed_sizes()[:, None]
        if self.normalize:
            weight_KE = F.normalize(weight_KE, dim=1)
        if self.keep_unused:
            weight_KE = torch.where(changed_K[:, None], weight_KE, self.weight)
        self._store(weight_KE)

    def _store(self, weight_KE: Tensor) -> None:
        self.weight.copy_(weight_KE)


class TrainedEMACodebook(EMACodebook):
    """An EMA codebook whose code vectors an optimizer trains as well.

    The vectors are the parameter `rows`, scaled to length 1 by `normalize`; it stays fp32 when the model is cast. At
    the next update the moving averages take over where the optimizer left the vectors, so neither undoes the other.
    """

    def _hold(self, weight_KE: Tensor) -> None:
        self.rows = nn.Parameter(weight_KE)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # made from a parameter here; nobody assigns it
        """The (K, E) code vectors, fp32, with the gradient of the parameter."""
        return F.normalize(self.rows, dim=1) if self.normalize else self.rows

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = self.rows.data
        super()._apply(fn, recurse)
        if self.rows.dtype != before.dtype:
            self.rows.data = before.to(self.rows.device)
        return self

    @torch.no_grad()
    def update(self, batches: Sequence[CodedVectors]) -> None:
        """Like `EMACodebook.update`, from where the optimizer has moved the vectors to."""
        size_K1 = self.embed_ema.norm(dim=1, keepdim=True) if self.normalize else self._smoothed_sizes()[:, None]
        self.embed_ema.copy_(self.weight * size_K1)
        super().update(batches)

    def _store(self, weight_KE: Tensor) -> None:
        self.rows.copy_(weight_KE)
