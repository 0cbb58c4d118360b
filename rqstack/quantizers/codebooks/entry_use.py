"""How the entries of a codebook are used from update to update, and which of them restart.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rqstack.counter_noise import hash_int64
from rqstack.quantizers.arithmetic.precision import KeepsFloat32
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.codebooks.restart_draw import CodedVectors, draw_candidates, repeat_noise


@checks_arguments
@dataclass(frozen=True)
class RestartRule:
    """Which entries count as unused: those whose average cluster size (vectors per update) is smaller than `below`.

    Attributes:
        below: the cluster size; a restarted entry starts with it, or with the mean size.
        relative: `below` is a fraction of the mean cluster size, which is what uniform use would give.
        grace (updates): an entry is left alone for so many after its last (re)start.
        unused_for (updates): instead of by cluster size, entries that none of so many in a row have chosen.
    """

    below: float = 1.0
    relative: bool = False
    grace: int = 0
    unused_for: int | None = None

    def __post_init__(self) -> None:
        if self.unused_for is not None and self.unused_for < 1:
            raise ValueError(f"unused_for must be at least 1 update, got {self.unused_for}")


class Restarts(NamedTuple):
    """Which entries restart (K,), the vector of each (K, E; of no meaning for the others), and their cluster size."""

    entries_K: Tensor
    vectors_KE: Tensor
    size: Tensor


class CountedCodebook(KeepsFloat32):
    """Base of codebooks that count how often each entry is chosen. Its state is buffers, fp32 and int64.

    `cluster_size_ema`: decayed vectors per update. `num_updates` counts updates; together with `seed` it seeds the
    restarts. `num_restarts`, which is not saved, counts entries restarted since construction. `restarted_at` (rules
    with grace) and `used_at` (rules with unused_for): how many updates had been done when the entry last started, or
    was used.
    """

    cluster_size_ema: Tensor
    num_updates: Tensor
    num_restarts: Tensor
    restarted_at: Tensor
    used_at: Tensor
    restart_rule: RestartRule | None

    def _count_entries(
        self, num_codes: int, first_size: float, decay: float, rule: RestartRule | None, seed: int
    ) -> None:
        """Register the counts; to be called at construction."""
        self.decay, self.restart_rule, self.seed = decay, rule, seed
        self.register_buffer("cluster_size_ema", torch.full((num_codes,), first_size, dtype=torch.float32))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_restarts", torch.zeros((), dtype=torch.int64), persistent=False)
        if rule is not None and rule.grace > 0:
            self.register_buffer("restarted_at", torch.zeros(num_codes, dtype=torch.int64))
        if rule is not None and rule.unused_for is not None:
            self.register_buffer("used_at", torch.zeros(num_codes, dtype=torch.int64))

    def _start_counts(self, sizes_K: Tensor) -> None:
        """Every entry starts now, with these cluster sizes."""
        self.cluster_size_ema.copy_(sizes_K)
        for name in ("restarted_at", "used_at"):
            if name in self._buffers:
                getattr(self, name).copy_(self.num_updates)

    def _add_counts(self, counts_K: Tensor) -> None:
        """One step of the averages; counts of all processes."""
        self.cluster_size_ema.mul_(self.decay).add_(counts_K, alpha=1 - self.decay)
        if "used_at" in self._buffers:
            self.used_at.copy_(torch.where(counts_K > 0, self.num_updates + 1, self.used_at))

    def _draw_restarts(self, batches: Sequence[CodedVectors], dim: int) -> Restarts:
        """Entries due by the rule, with vectors of this update drawn for them; the same on all processes.

        Without any valid vector none is due.
        """
        assert self.restart_rule is not None
        num_codes, rule, seed = len(self.cluster_size_ema), self.restart_rule, self._update_seed()
        candidates_CE, num_valid = draw_candidates(batches, num_codes, seed)
        mean_size = self.cluster_size_ema.mean()
        entries_K = self._unused(rule, mean_size) & (num_valid > 0)
        if rule.grace > 0:
            entries_K &= self.num_updates - self.restarted_at >= rule.grace
            self.restarted_at.copy_(torch.where(entries_K, self.num_updates, self.restarted_at))
        slot_K = (entries_K.cumsum(0) - 1).clamp(min=0)
        vectors_KE = candidates_CE[slot_K % num_valid.clamp(min=1)]
        vectors_KE += repeat_noise(num_codes, dim, seed) * (slot_K >= num_valid)[:, None]
        size = mean_size if rule.relative else torch.full_like(mean_size, rule.below)
        self.cluster_size_ema.copy_(torch.where(entries_K, size, self.cluster_size_ema))
        if "used_at" in self._buffers:
            self.used_at.copy_(torch.where(entries_K, self.num_updates + 1, self.used_at))
        self.num_restarts += entries_K.sum()
        return Restarts(entries_K, vectors_KE, size)

    def _unused(self, rule: RestartRule, mean_size: Tensor) -> Tensor:
        if rule.unused_for is not None:
            return self.num_updates + 1 - self.used_at >= rule.unused_for
        return self.cluster_size_ema < rule.below * (mean_size if rule.relative else 1)

    def _update_seed(self) -> Tensor:
        """A seed per update; `seed` 0 gives the number of the update itself."""
        return self.num_updates + hash_int64(torch.full_like(self.num_updates, self.seed))


def count_codes(batches: Sequence[CodedVectors], num_codes: int) -> Tensor:
    """Valid vectors of every code over all batches of this process, fp32 (K,)."""
    counts_K = batches[0].x_NE.new_zeros(num_codes, dtype=torch.float32)
    for _, codes_N, valid_N in batches:
        counts_K.index_add_(0, torch.where(valid_N, codes_N, 0), valid_N.float())
    return counts_K
