"""Beam search over residual levels: for every vector the codes of the best partial sums, not only of the nearest one.

Legend: N vectors, n rows of a chunk, B beams, M = n * B, E code-vector size, K codebook size, D levels, c candidates.

Vectors are searched in chunks, all levels of one chunk before the next, so that neither an N x B x K matrix nor the
beams of all vectors exist. A level costs one matrix product of its residuals with its codebook, as |r - e|^2 =
|r|^2 - 2 r.e + |e|^2, and a choice of B out of B * K sums in two steps: minima over blocks of codes, then the entries
of the B best blocks, which hold the B best entries.

Beam search for additive codes: Babenko and Lempitsky, Additive Quantization for Extreme Vector Compression, CVPR 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.nearest import check_temperature, rows_per_chunk
from rqstack.quantizers.arithmetic.precision import full_precision_matmul

FOLD = 32  # codes per block
BEAM_COPIES = 4  # (n, B, E) tensors alive at once
LEAST_WEIGHT = 1e-3  # of a level's error in the choice, so that a level of weight 0 still prefers near codes


class BeamLevel(Protocol):
    """What the search must know of a level. chunk_rows: M for which the distances fit the byte budget."""

    num_codes: int
    chunk_rows: int

    def distances(self, residual_ME: Tensor, total_ME: Tensor) -> Tensor:
        """(M, K) squared distances of residuals to the code vectors, less their squared lengths.

        M is at most `chunk_rows`, or the number of beams of one vector. total_ME: the sums of the levels before.
        """

    def embed(self, codes_M: Tensor, total_ME: Tensor) -> Tensor:
        """The code vectors (M, E)."""


class TableLevel:
    """A level with one codebook for all vectors. temp: search with Gumbel noise, as for draws from
    softmax(-squared distance / temp); None, without."""

    def __init__(self, weight_KE: Tensor, temp: float | None = None, generator: torch.Generator | None = None):
        if temp is not None:
            check_temperature(temp)
        self.weight_KE, self.temp, self.generator = weight_KE.detach().float(), temp, generator
        self.norm_K = self.weight_KE.square().sum(1)
        self.num_codes = len(weight_KE)
        self.chunk_rows = rows_per_chunk(self.num_codes, weight_KE.device)

    def distances(self, residual_ME: Tensor, total_ME: Tensor) -> Tensor:
        """See `BeamLevel`."""
        distance_MK = torch.addmm(self.norm_K, residual_ME, self.weight_KE.T, alpha=-2)
        return distance_MK if self.temp is None else add_noise(distance_MK, self.temp, self.generator)

    def embed(self, codes_M: Tensor, total_ME: Tensor) -> Tensor:
        """See `BeamLevel`."""
        return F.embedding(codes_M, self.weight_KE)


def add_noise(distance: Tensor, temp: float, generator: torch.Generator | None = None) -> Tensor:
    """Gumbel noise, in place: the lowest is a draw from softmax(-distance / temp). # Eq. 12"""
    return distance.add_(torch.empty_like(distance).exponential_(generator=generator).log_(), alpha=temp)


class _Beams(NamedTuple):
    """The best partial sums of n vectors: what is left, the sums, their scores (lower is better), their codes."""

    residual_nBE: Tensor
    total_nBE: Tensor
    score_nB: Tensor
    codes_nBD: Tensor


@torch.no_grad()
def beam_search(
    x_NE: Tensor,
    levels: Sequence[BeamLevel],
    width: int,
    *,
    cosine: bool = False,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """Codes (N, D) of the best of the partial sums, of which `width` are kept at every level.

    Without `weights` a sum is judged by the squared error it leaves; with weights (one per level, none negative) by the
    weighted mean squared errors of all levels so far, added up. A level that stands in several places is one object, so
    that the order of its codes makes no other sum. cosine: code vectors have length 1 and weighted errors
    are those of the residual scaled to length 1. A row that is not finite gets codes in range.
    """
    if width < 1:
        raise ValueError(f"the beam must keep at least 1 sum, got width {width}")
    if weights is not None and (len(weights) != len(levels) or min(weights) < 0):
        raise ValueError(f"{len(levels)} levels need as many weights, none negative, got {list(weights)}")
    x_NE = x_NE.float()
    codes_ND = torch.empty((len(x_NE), len(levels)), dtype=torch.int64, device=x_NE.device)
    rows = rows_per_chunk(BEAM_COPIES * width * x_NE.shape[1], x_NE.device)
    with full_precision_matmul(x_NE.device):
        for start in range(0, len(x_NE), rows):
            part_nBE = x_NE[start : start + rows, None]
            beams = _Beams(
                part_nBE,
                torch.zeros_like(part_nBE),
                part_nBE.new_zeros(part_nBE.shape[:2]),
                codes_ND.new_empty((*part_nBE.shape[:2], 0)),
            )
            for index, level in enumerate(levels):
                keep = 1 if index == len(levels) - 1 else width
                same = weights is None and all(level is other for other in levels[:index])
                orders = min(index + 1, beams.score_nB.shape[1]) if same else 1
                beams = _extend(beams, level, keep, orders, cosine, None if weights is None else weights[index])
            codes_ND[start : start + rows] = beams.codes_nBD[:, 0]
    return codes_ND


def _extend(beams: _Beams, level: BeamLevel, keep: int, orders: int, cosine: bool, weight: float | None) -> _Beams:
    """The `keep` best continuations of the beams by one level. orders: in how many orders of the same codes a sum may
    be among them; more than 1 only where the order makes no other sum."""
    num_beams, dim = beams.residual_nBE.shape[1:]
    searched_nBE = beams.residual_nBE
    if weight is not None and cosine:
        searched_nBE = F.normalize(searched_nBE, dim=-1)
    own_nB = searched_nBE.square().sum(-1)
    # score of a candidate = offset of its beam + slope * (its squared distance - that of its beam to 0)
    offset_nB, slope = own_nB, 1.0
    if weight is not None:
        slope = max(weight, LEAST_WEIGHT) / dim
        offset_nB = beams.score_nB + slope * own_nB
    count = min(keep * orders, num_beams * level.num_codes)
    scores, places = [], []
    step = max(1, level.chunk_rows // num_beams)
    for start in range(0, len(own_nB), step):
        rows = slice(start, start + step)
        distance = level.distances(searched_nBE[rows].flatten(0, 1), beams.total_nBE[rows].flatten(0, 1))
        score, place = _lowest(distance.view(-1, num_beams, level.num_codes), offset_nB[rows], slope, count)
        scores.append(score)
        places.append(place)
    score_nc, place_nc = torch.cat(scores), torch.cat(places)
    beam_nc, code_nc = place_nc // level.num_codes, place_nc % level.num_codes
    codes_ncD = torch.cat([_take(beams.codes_nBD, beam_nc), code_nc[..., None]], -1)
    if count > keep:
        index_nc = _different(score_nc, beam_nc, codes_ncD, keep)
        score_nc, beam_nc, code_nc = (part.gather(1, index_nc) for part in (score_nc, beam_nc, code_nc))
        codes_ncD = _take(codes_ncD, index_nc)
    total_ncE = _take(beams.total_nBE, beam_nc)
    vectors_ncE = level.embed(code_nc.flatten(), total_ncE.flatten(0, 1)).view_as(total_ncE)
    return _Beams(_take(beams.residual_nBE, beam_nc) - vectors_ncE, total_ncE + vectors_ncE, score_nc, codes_ncD)


def _different(score_nB: Tensor, parent_nB: Tensor, codes_nBD: Tensor, keep: int) -> Tensor:
    """Which are the `keep` best sums (n, keep), of those with the same codes in another order only the one that
    continues the best sum before.

    Levels that share a codebook reach a sum in every order of its codes: the copies would fill the beam, and rounding
    would choose between them.
    """
    sorted_nBD = codes_nBD.sort(-1).values
    same_nBB = (sorted_nBD[:, :, None] == sorted_nBD[:, None]).all(-1)
    later_nBB = parent_nB[:, :, None] > parent_nB[:, None]
    return score_nB.masked_fill((same_nBB & later_nBB).any(-1), torch.inf).topk(keep, largest=False).indices


def _lowest(distance_nBK: Tensor, offset_nB: Tensor, slope: float, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` lowest scores offset + slope * distance of every row (n, keep), lowest first, and beam * K + code.

    The blocks of a beam are {k, k + S, k + 2 S, ...} with S = K // FOLD, so that their minima are taken along memory;
    the K % FOLD codes left over are blocks of their own.
    """
    num_beams, num_codes = distance_nBK.shape[1:]
    stride = num_codes // FOLD
    folded = stride * FOLD
    minima_nBS = distance_nBK[..., :folded].unflatten(-1, (FOLD, stride)).amin(2) if stride else distance_nBK[..., :0]
    blocks_nBS = torch.cat([minima_nBS, distance_nBK[..., folded:]], -1)
    num_blocks = blocks_nBS.shape[-1]
    score_nS = torch.add(offset_nB[..., None], blocks_nBS, alpha=slope).flatten(1)
    best_nc = score_nS.topk(min(keep, score_nS.shape[1]), largest=False).indices
    beam_nc1, block_nc1 = (best_nc // num_blocks)[..., None], (best_nc % num_blocks)[..., None]
    steps = torch.arange(FOLD, device=best_nc.device)
    code_ncF = torch.where(block_nc1 < stride, block_nc1 + steps * stride, block_nc1 - stride + folded)
    repeated_ncF = (block_nc1 >= stride) & (steps > 0)
    place_nC = (beam_nc1 * num_codes + code_ncF).flatten(1)
    offset_nC = offset_nB.gather(1, beam_nc1.flatten(1)).repeat_interleave(FOLD, 1)
    score_nC = torch.add(offset_nC, distance_nBK.flatten(1).gather(1, place_nC), alpha=slope)
    score_nc, index_nc = score_nC.masked_fill(repeated_ncF.flatten(1), torch.inf).topk(keep, largest=False)
    return score_nc, place_nC.gather(1, index_nc)


def _take(values_nBX: Tensor, beam_nc: Tensor) -> Tensor:
    """Entries (n, c, X) of the chosen beams."""
    return values_nBX.gather(1, beam_nc[..., None].expand(-1, -1, values_nBX.shape[-1]))
