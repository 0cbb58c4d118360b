"""A codebook learned by exponential moving averages.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from rqvae.quantizers import sync
from rqvae.quantizers.distance import nearest_codes
from rqvae.quantizers.restart import CodedVectors, draw_candidates, hash_uniform, sums_by_code

SMOOTHING = 1e-5  # Laplace smoothing of the cluster sizes
REPEAT_NOISE = 0.01  # spread of repeated restart vectors, times 1 / sqrt(E)


@dataclass(frozen=True)
class RestartRule:
    """Which entries count as unused: those whose average cluster size (vectors per update) is smaller than `below`.

    relative: `below` is a fraction of the mean cluster size, which is what uniform use would give. A restarted entry
    starts with the size `below`, or the mean size. grace: updates an entry is left alone for after its last (re)start.
    """

    below: float = 1.0
    relative: bool = False
    grace: int = 0


class EMACodebook(nn.Module):
    """K code vectors of size E that follow the vectors assigned to them.

    All state is fp32 buffers: optimizers, `.half()` and sharding leave it alone. `cluster_size_ema` and `embed_ema`
    are decayed sums; `weight` is their smoothed ratio; `num_updates` counts updates and seeds the restarts;
    `num_restarts`, which is not saved, counts the entries restarted since construction.

    keep_unused: entries that no vector of a step chose keep their vector, and a new codebook starts with cluster
    sizes of 1. Without it (the published behaviour) a never used entry has cluster size 0 and its vector explodes.
    restart_unused_codes: True for the published rule, or a `RestartRule`. normalize: code vectors have length 1.
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        restart_unused_codes: bool | RestartRule = False,
        keep_unused: bool = True,
        normalize: bool = False,
    ):
        super().__init__()
        self.decay = decay
        self.restart_unused_codes = bool(restart_unused_codes)
        self.restart_rule = restart_unused_codes if isinstance(restart_unused_codes, RestartRule) else RestartRule()
        self.keep_unused = keep_unused
        self.normalize = normalize
        weight = torch.randn(num_codes, dim, dtype=torch.float32)
        weight = F.normalize(weight, dim=1) if normalize else weight
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size_ema", torch.full((num_codes,), float(keep_unused), dtype=torch.float32))
        self.register_buffer("embed_ema", weight.clone())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_restarts", torch.zeros((), dtype=torch.int64), persistent=False)
        if self.restart_rule.grace > 0:
            self.register_buffer("restarted_at", torch.zeros(num_codes, dtype=torch.int64))

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """Move with the model, but stay fp32 when the model is cast."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def nearest(self, x_NE: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code vector of every row."""
        return nearest_codes(x_NE, self.weight)

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes of any shape -> code vectors (..., E)."""
        return F.embedding(codes, self.weight)

    @torch.no_grad()
    def assign(self, vectors_KE: torch.Tensor, sizes_K: torch.Tensor) -> None:
        """Replace all code vectors, as if each were the mean of so many vectors per step; sizes below 1 count as 1."""
        self.cluster_size_ema.copy_(sizes_K.clamp(min=1))
        self.weight.copy_(F.normalize(vectors_KE, dim=1) if self.normalize else vectors_KE)
        self.embed_ema.copy_(self.weight * self.cluster_size_ema[:, None])
        if self.restart_rule.grace > 0:
            self.restarted_at.copy_(self.num_updates)

    @torch.no_grad()
    def update(self, batches: list[CodedVectors]) -> None:
        """One moving-average step over all rows of all batches of all processes, then a refresh of the vectors.

        Invalid rows do not count. The look-ups the rows came from must be done: the vectors change here.
        """
        counts_K = torch.zeros_like(self.cluster_size_ema)
        sums_KE = sums_by_code(*batches[0], len(counts_K))
        for x_NE, codes_N, valid_N in batches[1:]:
            sums_KE += sums_by_code(x_NE, codes_N, valid_N, len(counts_K))
        for _, codes_N, valid_N in batches:
            counts_K.index_add_(0, codes_N, valid_N.float())
        sync.all_reduce_sum(counts_K, sums_KE)
        self.cluster_size_ema.mul_(self.decay).add_(counts_K, alpha=1 - self.decay)
        self.embed_ema.mul_(self.decay).add_(sums_KE, alpha=1 - self.decay)
        changed_K = counts_K > 0
        if self.restart_unused_codes:
            changed_K |= self._restart(batches)
        self._refresh(changed_K)
        self.num_updates += 1

    def _restart(self, batches: list[CodedVectors]) -> torch.Tensor:
        """Give unused entries a vector of this step and the rule's cluster size. Returns which entries those are."""
        num_codes, dim = self.weight.shape
        candidates_CE, num_valid = draw_candidates(batches, num_codes, self.num_updates)
        rule, mean_size = self.restart_rule, self.cluster_size_ema.mean()
        restart_K = (self.cluster_size_ema < rule.below * (mean_size if rule.relative else 1)) & (num_valid > 0)
        if rule.grace > 0:
            restart_K &= self.num_updates - self.restarted_at >= rule.grace
            self.restarted_at.copy_(torch.where(restart_K, self.num_updates, self.restarted_at))
        slot_K = (restart_K.cumsum(0) - 1).clamp(min=0)
        vectors_KE = candidates_CE[slot_K % num_valid.clamp(min=1)]
        repeated_K = slot_K >= num_valid
        vectors_KE += self._repeat_noise(num_codes, dim) * repeated_K[:, None]
        size = mean_size if rule.relative else rule.below
        self.embed_ema.copy_(torch.where(restart_K[:, None], vectors_KE * size, self.embed_ema))
        self.cluster_size_ema.masked_fill_(restart_K, size)
        self.num_restarts += restart_K.sum()
        return restart_K

    def _repeat_noise(self, num_codes: int, dim: int) -> torch.Tensor:
        """A tiny offset per entry, so that entries restarted with the same vector (fewer vectors than unused entries)
        can part. The same on every process."""
        device = self.weight.device
        step_K = hash_uniform(torch.arange(num_codes, device=device) + self.num_updates * num_codes)
        direction_E = hash_uniform(torch.arange(dim, device=device) - self.num_updates * dim - dim)
        return step_K[:, None] * direction_E * (3 * REPEAT_NOISE / dim**0.5)

    def _refresh(self, changed_K: torch.Tensor) -> None:
        """weight = embed_ema / smoothed cluster size."""
        total = self.cluster_size_ema.sum()
        smoothed_K = (self.cluster_size_ema + SMOOTHING) * total / (total + len(self.weight) * SMOOTHING)
        weight_KE = self.embed_ema / smoothed_K[:, None]
        if self.normalize:
            weight_KE = F.normalize(weight_KE, dim=1)
        if self.keep_unused:
            weight_KE = torch.where(changed_K[:, None], weight_KE, self.weight)
        self.weight.copy_(weight_KE)
