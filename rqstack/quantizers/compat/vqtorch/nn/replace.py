"""Replacement of the least recently used code vectors, as vqtorch does it.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rqstack.counter_noise import hash_uniform
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.codebooks.entry_use import count_codes
from rqstack.quantizers.codebooks.restart_draw import CodedVectors, draw_candidates

NOISE = 0.01


@torch.no_grad()
def replace_least_recent(
    weight_KE: Tensor,
    remaining_K: Tensor,
    batches: Sequence[CodedVectors],
    timeout: int,
    rho: float = NOISE,
    seed: int = 0,
) -> Tensor:
    """Give code vectors that no vector of `timeout` forwards in a row chose a vector of this one, in place.

    remaining_K: forwards left for every entry; back to `timeout` when it is used or replaced. The new vectors are drawn
    from those of all processes, with noise of `rho` times their length per coordinate, and are the same on every
    process. Returns which entries were replaced.
    """
    num_codes, dim = weight_KE.shape
    counts_K = count_codes(batches, num_codes)
    sync.all_reduce_sum(counts_K)
    remaining_K.copy_(torch.where(counts_K > 0, float(timeout), remaining_K - 1))
    due_K = remaining_K <= 0
    if not due_K.any():
        return due_K
    drawn_CE, num_drawn = draw_candidates(batches, num_codes, torch.tensor(seed, device=weight_KE.device))
    due_K &= num_drawn > 0
    slot_K = (due_K.cumsum(0) - 1).clamp(min=0)
    vectors_KE = drawn_CE[slot_K % num_drawn.clamp(min=1)]
    entries = torch.arange(num_codes * dim, device=weight_KE.device).view(num_codes, dim)
    noise_KE = hash_uniform(entries + num_codes * dim * seed) * 3**0.5  # of variance 1
    vectors_KE = vectors_KE + rho * vectors_KE.norm(dim=1, keepdim=True) * noise_KE
    weight_KE.copy_(torch.where(due_K[:, None], vectors_KE, weight_KE))
    remaining_K.masked_fill_(due_K, float(timeout))
    return due_K
