"""Distances as vqtorch calls them.

Legend: B batch, N vectors, E vector size, K codebook size, k codes kept.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.nearest_k import nearest_k
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments

EUCLIDEAN, COSINE = ("euc", "euclidean"), ("cos", "cosine")


def euclidean_distance(z: Tensor, z_q: Tensor) -> Tensor:
    """Mean squared difference of every sample (B,)."""
    if z.shape != z_q.shape:
        raise ValueError(f"z and z_q must have one shape, got {tuple(z.shape)} and {tuple(z_q.shape)}")
    return (z_q.float() - z.float()).square().flatten(1).mean(1)


def cosine_distance(z: Tensor, z_q: Tensor) -> Tensor:
    """Mean squared difference of the vectors scaled to length 1, per sample (B,)."""
    return euclidean_distance(F.normalize(z.float(), dim=-1), F.normalize(z_q.float(), dim=-1))


def euclidean_cdist_topk(
    tensor: Tensor, codebook: Tensor, compute_chunk_size: int = 1024, topk: int = 1, half_precision: bool = False
) -> dict[str, Tensor]:
    """Distances d and codes q (B, N, k) of the nearest entries of codebook (K, E) to tensor (B, N, E), ascending.

    topk -1 keeps all entries. compute_chunk_size and half_precision are accepted and ignored: the search runs in
    chunks under a byte budget and in fp32.
    """
    squared_Nk, q_Nk = _nearest(tensor, codebook, topk)
    grid = tensor.shape[:-1]
    return {"d": squared_Nk.sqrt().to(tensor.dtype).view(*grid, -1), "q": q_Nk.view(*grid, -1)}


def cosine_cdist_topk(
    tensor: Tensor, codebook: Tensor, chunks: int = 4, topk: int = 1, half_precision: bool = False
) -> dict[str, Tensor]:
    """Like `euclidean_cdist_topk` with d = 1 - cosine."""
    squared_Nk, q_Nk = _nearest(F.normalize(tensor.float(), dim=-1), F.normalize(codebook.float(), dim=-1), topk)
    grid = tensor.shape[:-1]
    return {"d": (0.5 * squared_Nk).to(tensor.dtype).view(*grid, -1), "q": q_Nk.view(*grid, -1)}


@checks_arguments
def get_dist_fns(dist: str) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., dict[str, Tensor]]]:
    """(loss function, top-k search) of a distance by name."""
    if dist in EUCLIDEAN:
        return euclidean_distance, euclidean_cdist_topk
    if dist in COSINE:
        return cosine_distance, cosine_cdist_topk
    raise ValueError(f"dist {dist!r} is not one of {', '.join(EUCLIDEAN + COSINE)}")


def _nearest(tensor: Tensor, codebook: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    if tensor.ndim != 3 or tensor.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"tensor (B, N, E) and codebook (K, E), got {tuple(tensor.shape)} and {tuple(codebook.shape)}")
    with full_precision(tensor.device):
        codes_Nk, squared_Nk = nearest_k(tensor.flatten(0, 1), codebook, len(codebook) if topk == -1 else topk)
    return squared_Nk, codes_Nk
