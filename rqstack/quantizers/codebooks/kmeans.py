"""k-means over the vectors of all processes, with the same result on each.

Legend: N vectors, E vector size, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.counter_noise import hash_uniform
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.codebooks.restart_draw import CodedVectors, draw_candidates, sums_by_code

REPEAT_NOISE = 0.01  # spread of repeated start vectors, relative to their length


@torch.no_grad()
def draw_vectors(x_NE: Tensor, num_vectors: int, valid_N: Tensor | None = None, seed: int = 0) -> Tensor:
    """Draw K of the valid rows of all processes without replacement; (K, E), the same on each.

    The draw does not depend on how the rows are split over processes. Where rows are too few they repeat, with a little
    noise. Without any valid row a ValueError.
    """
    device, dim = x_NE.device, x_NE.shape[1]
    valid_N = x_NE.new_ones(len(x_NE), dtype=torch.bool) if valid_N is None else valid_N
    rows = CodedVectors(x_NE, torch.zeros_like(valid_N, dtype=torch.int64), valid_N)
    drawn_KE, num_drawn = draw_candidates([rows], num_vectors, torch.tensor(seed, device=device))
    if num_drawn == 0:
        raise ValueError("a codebook cannot start from vectors none of which is finite and unmasked")
    slot_K = torch.arange(num_vectors, device=device)
    start_KE = drawn_KE[slot_K % num_drawn]
    noise_KE = hash_uniform(torch.arange(num_vectors * dim, device=device).view(num_vectors, dim) + seed + 1)
    scale_K1 = REPEAT_NOISE * start_KE.norm(dim=1, keepdim=True).clamp(min=1e-3) * (3 / dim) ** 0.5
    return torch.where((slot_K >= num_drawn)[:, None], start_KE + noise_KE * scale_K1, start_KE)


@torch.no_grad()
def kmeans(
    x_NE: Tensor,
    num_clusters: int,
    *,
    iterations: int = 10,
    cosine: bool = False,
    valid_N: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from randomly drawn vectors: cluster means (K, E) and the vectors in each (K,), both fp32.

    All processes call it together, each with its own rows. Non-finite rows and those where `valid_N` is False do not
    count; a cluster that loses all vectors keeps its mean. cosine: means of unit vectors, scaled back to length 1.
    Without iterations the means are the drawn vectors and every cluster counts one.
    """
    x_NE = x_NE.float()
    finite_N = x_NE.sum(-1).isfinite()
    valid_N = finite_N if valid_N is None else valid_N & finite_N
    x_NE = torch.where(valid_N[:, None], x_NE, 0.0)
    x_NE = F.normalize(x_NE, dim=1) if cosine else x_NE
    means_KE = draw_vectors(x_NE, num_clusters, valid_N, seed)
    means_KE = F.normalize(means_KE, dim=1) if cosine else means_KE
    counts_K = x_NE.new_ones(num_clusters)
    for _ in range(iterations):
        codes_N = nearest_codes(x_NE, means_KE)
        counts_K = torch.zeros_like(counts_K).index_add_(0, codes_N, valid_N.float())
        sums_KE = sums_by_code(x_NE, codes_N, valid_N, num_clusters)
        sync.all_reduce_sum(counts_K, sums_KE)
        new_KE = F.normalize(sums_KE, dim=1) if cosine else sums_KE / counts_K.clamp(min=1)[:, None]
        means_KE = torch.where(counts_K[:, None] > 0, new_KE, means_KE)
    return means_KE, counts_K
