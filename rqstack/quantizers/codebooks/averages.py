"""The steps a codebook of moving averages is made of, as functions of tensors.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rqstack.counter_noise import hash_int64
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.codebooks.entry_use import count_codes
from rqstack.quantizers.codebooks.restart_draw import NO_KEY, CodedVectors, draw_candidates, sums_by_code


def counts_and_sums(batches: Sequence[CodedVectors], num_codes: int) -> tuple[Tensor, Tensor]:
    """How many valid vectors every code was given (K,) and their sum (K, E), over all batches of all processes."""
    counts_K = count_codes(batches, num_codes)
    sums_KE = sums_by_code(*batches[0], num_codes)
    for x_NE, codes_N, valid_N in batches[1:]:
        sums_KE += sums_by_code(x_NE, codes_N, valid_N, num_codes)
    sync.all_reduce_sum(counts_K, sums_KE)
    return counts_K, sums_KE


def smoothed_sizes(sizes: Tensor, eps: float) -> Tensor:
    """Laplace-smoothed cluster sizes (..., K) with the same sum: no code has size 0."""
    total = sizes.sum(-1, keepdim=True)
    return (sizes + eps) * total / (total + sizes.shape[-1] * eps)


def state_seed(state: Tensor) -> Tensor:
    """A seed (0-dim int64) from the bits of fp32 state: it changes whenever the state does and needs no counter."""
    return state.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)


def replace_unused(unused_K: Tensor, rows: CodedVectors, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (K, E) of all processes for unused codes, drawn without replacement, and which codes get one (K,).

    Where vectors are fewer than unused codes, as many codes as there are vectors are drawn; the others wait.
    """
    num_codes = len(unused_K)
    candidates_CE, num_valid = draw_candidates([rows], num_codes, seed)
    order_K = hash_int64(hash_int64(seed + 2) ^ hash_int64(torch.arange(num_codes, device=unused_K.device) + 1))
    rank_K = order_K.masked_fill(~unused_K, NO_KEY).argsort(stable=True).argsort(stable=True)
    return candidates_CE[rank_K], unused_K & (rank_K < num_valid)
