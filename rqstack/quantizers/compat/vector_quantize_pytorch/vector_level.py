"""One level of `ResidualVQ`, and the search for the codes of all levels together.

Legend: B batch, N positions, M = B * N, E code-vector size, K codebook size, q levels, X = 1 codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.beam_search import BeamLevel, TableLevel, beam_search
from rqstack.quantizers.arithmetic.scored_codes import LEAST_SQUARE
from rqstack.quantizers.compat.vector_quantize_pytorch.look_up import Found
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from rqstack.quantizers.methods.neural_codebook import NeuralCodebook, NeuralLevel


class KnownCodes(NamedTuple):
    """Codes (B, N) found by a search over all levels, instead of a look-up. transform: the neural codebook of the
    level, if it has one, and total_BNE: the sum of the levels before."""

    codes_BN: Tensor
    transform: NeuralCodebook | None
    total_BNE: Tensor


class OwnCodebooks:
    """A neural codebook as `codebook_transform_fn`: (1, K, E) -> (1, B, N, K, E)."""

    def __init__(self, transform: NeuralCodebook, total_BNE: Tensor):
        self.transform, self.total_BNE = transform, total_BNE

    def __call__(self, codes_1KE: Tensor) -> Tensor:
        moved_BNKE: Tensor = self.transform(codes_1KE[0], self.total_BNE[:, :, None])
        return moved_BNKE[None]


class ResidualLevel(VectorQuantize):
    """A `VectorQuantize` whose `codebook_transform_fn` may also be `KnownCodes`."""

    def _look_up(self, rows_XRE: Tensor, valid_R: Tensor | None, **search: Any) -> Found:
        known = search["transform"]
        if not isinstance(known, KnownCodes):
            return super()._look_up(rows_XRE, valid_R, **search)
        book, rows_XRE = self._codebook, rows_XRE.detach().float()
        book.init_embed_(rows_XRE, self._mask_of_books(valid_R))
        if book.affine_param:
            book.update_affine(rows_XRE, self._mask_of_books(valid_R))
        weight_XKE = book.effective_embed()
        weight_XKE = weight_XKE.clone() if search["keep_scores"] else weight_XKE
        codes_M = known.codes_BN.reshape(-1)
        vectors_ME = F.embedding(codes_M, weight_XKE[0])
        if known.transform is not None:
            vectors_ME = known.transform(vectors_ME, known.total_BNE.flatten(0, 1))
        return Found(codes_M[None], vectors_ME[None], weight_XKE, None)

    def temperature(self, temp: float | None) -> float | None:
        """Of draws with the setting `temp` of a forward; None where the best code is taken."""
        book = self._codebook
        temp = book.sample_codebook_temp if temp is None else temp
        return temp if self.training and book.stochastic and temp > 0 else None

    def searched(self, transform: NeuralCodebook | None, temp: float | None) -> BeamLevel:
        """The level as a beam search sees it."""
        weight_KE = self._codebook.effective_embed()[0].detach()
        level = TableLevel(weight_KE) if transform is None else NeuralLevel(transform, weight_KE)
        temp = self.temperature(temp)
        return level if temp is None else DrawnLevel(level, temp, self.use_cosine_sim)


class DrawnLevel:
    """A level whose scores, minus the distance or the cosine, carry Gumbel noise: the best of a single beam is a draw
    from their softmax(score / temp)."""

    def __init__(self, level: BeamLevel, temp: float, cosine: bool):
        self.level, self.temp, self.cosine = level, temp, cosine
        self.num_codes, self.chunk_rows, self.embed = level.num_codes, level.chunk_rows, level.embed

    def distances(self, residual_ME: Tensor, total_ME: Tensor) -> Tensor:
        """(M, K) squares of the noisy distances, less the squared lengths of the residuals."""
        distance_MK = self.level.distances(residual_ME, total_ME)
        noise_MK = torch.empty_like(distance_MK).exponential_().log_()
        if self.cosine:  # squared distance = 2 - 2 cosine
            return distance_MK.add_(noise_MK, alpha=2 * self.temp)
        own_M1 = residual_ME.square().sum(-1, keepdim=True)
        noisy_MK = distance_MK.add_(own_M1).clamp_(min=LEAST_SQUARE).sqrt_().add_(noise_MK, alpha=self.temp)
        return noisy_MK.mul_(noisy_MK.abs()).sub_(own_M1)


def share_of_gradient(x: Tensor, share: float) -> Tensor:
    """The value of x with `share` of its gradient."""
    return x.detach() if share <= 0 else x if share == 1 else share * x + (1 - share) * x.detach()


def level_vectors(
    layers: ModuleList[ResidualLevel], transforms: Sequence[NeuralCodebook | None], codes_Mq: Tensor
) -> list[Tensor]:
    """The code vectors (M, E) of every level; zeros for negative codes."""
    vectors, total_ME = [], None
    for layer, transform, codes_M in zip(layers, transforms, codes_Mq.unbind(-1), strict=False):
        found_ME = F.embedding(codes_M.clamp(min=0), layer._codebook.effective_embed()[0])
        if transform is not None:
            found_ME = transform(found_ME, total_ME)
        vectors.append(torch.where(codes_M[:, None] >= 0, found_ME, 0.0))
        total_ME = vectors[-1] if total_ME is None else total_ME + vectors[-1]
    return vectors


@torch.no_grad()
def search_codes(
    x_BNE: Tensor,
    mask_BN: Tensor | None,
    layers: ModuleList[ResidualLevel],
    transforms: Sequence[NeuralCodebook | None],
    width: int,
    weights: Sequence[float],
    temp: float | None,
) -> Tensor:
    """Codes (B, N, levels) of the best sums. Sums are judged by the weighted errors of all levels on the way to them.

    A codebook that waits for its k-means start gets it first, from what nearest codes leave over before its level.
    """
    x_ME = x_BNE.detach().flatten(0, 1).float()
    for index, layer in enumerate(layers):
        if not layer._codebook._is_initted():
            residual_BNE = _left_over(x_ME, layers[:index], transforms).view_as(x_BNE)
            layer._codebook.init_embed_(layer._rows(residual_BNE), layer._mask_of_books(layer._row_mask(mask_BN)))
    return _search(x_ME, layers, transforms, width, weights, temp).view(*x_BNE.shape[:2], -1)


@torch.no_grad()
def initialize_levels(
    x_ME: Tensor,
    layers: ModuleList[ResidualLevel],
    transforms: Sequence[NeuralCodebook | None],
    method: str,
    seed: int,
) -> None:
    """Every codebook from what nearest codes leave over before its level; one that all levels share from what all of
    them see, once it has been fitted to what the first sees."""
    shared = len(layers) > 1 and layers[0]._codebook is layers[1]._codebook
    seen = []
    for index, layer in enumerate(layers):
        seen.append(_left_over(x_ME, layers[:index], transforms))
        if index == 0 or not shared:
            layer.initialize_codebook(seen[-1], method, seed + index)
    if shared:
        # the levels of a row side by side: the same order for every split of the rows over processes
        layers[0].initialize_codebook(torch.stack(seen, 1).flatten(0, 1), method, seed + len(seen))


def _left_over(x_ME: Tensor, layers: ModuleList[ResidualLevel], transforms: Sequence[NeuralCodebook | None]) -> Tensor:
    """What the nearest codes of these levels leave of x."""
    if not layers:
        return x_ME
    codes_Mq = _search(x_ME, layers, transforms, 1, [1.0] * len(layers), 0.0)
    return x_ME - sum(level_vectors(layers, transforms, codes_Mq))


def _search(
    x_ME: Tensor,
    layers: ModuleList[ResidualLevel],
    transforms: Sequence[NeuralCodebook | None],
    width: int,
    weights: Sequence[float],
    temp: float | None,
) -> Tensor:
    """temp: None, that of the layers; 0, none."""
    levels = [layer.searched(transform, temp) for layer, transform in zip(layers, transforms, strict=False)]
    cosine = layers[0].use_cosine_sim
    return beam_search(x_ME, levels, width, cosine=cosine, weights=weights[: len(levels)])
