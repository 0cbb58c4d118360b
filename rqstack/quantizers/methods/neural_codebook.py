"""Implicit neural codebooks: the code vectors of a residual level depend on what the levels before have reconstructed.

Legend: N vectors, M = vectors times beams, E code-vector size, K codebook size, D levels, m k a block of rows, codes.

Huijben et al., Residual Quantization with Implicit Neural Codebooks (QINCo), ICML 2024 (2401.14732).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_count
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.beam_search import BeamLevel, TableLevel, add_noise, beam_search
from rqstack.quantizers.arithmetic.code_losses import VectorLosses, mean_square
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS
from rqstack.quantizers.arithmetic.nearest import check_temperature, rows_per_chunk
from rqstack.quantizers.arithmetic.precision import full_precision, linear
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.residual_stack import StackOptions
from rqstack.quantizers.methods.residual_vector import ResidualVectorOptions, ResidualVectorQuantizer

LIVE_COPIES = 4  # (m, k, E) tensors alive at once in a search


class _Block(nn.Sequential):
    """E -> hidden -> E with a SiLU between, fp32."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))

    @property
    def maps(self) -> tuple[nn.Linear, nn.Linear]:
        """In and out."""
        first, _, second = self
        assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
        return first, second

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        first, second = self.maps
        return linear(second, F.silu(linear(first, x)))


@checks_arguments
class NeuralCodebook(nn.Module):
    """f(c, p): base code vector c (..., E) and partial reconstruction p (..., E) -> code vector (..., E), fp32.

    proj_in maps [p, c] to E, then each of `depth` residual blocks adds E -> hidden -> E with a SiLU between. skip: c is
    added to the output of proj_in (# Sec. 3.2), and all of f but that starts at zero, so that training starts with
    f(c, p) = c: plain residual quantization.
    """

    def __init__(self, dim: int, hidden: int | None = None, depth: int = 4, *, skip: bool = True):
        super().__init__()
        hidden = hidden or dim
        self.dim, self.skip = dim, skip
        self.proj_in = nn.Linear(2 * dim, dim)
        self.layers = ModuleList(_Block(dim, hidden) for _ in range(depth))
        if skip:
            for layer in (self.proj_in, *(block.maps[1] for block in self.layers)):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, base: Tensor, partial: Tensor) -> Tensor:
        """Code vectors for base and partial reconstruction, whose shapes broadcast; one product for each of the two."""
        weight = self.proj_in.weight.float()
        x = F.linear(base, weight[:, self.dim :]) + F.linear(partial, weight[:, : self.dim], self.proj_in.bias.float())
        if self.skip:
            x = x + base
        for block in self.layers:
            x = x + block(x)
        return x


class NeuralLevel:
    """A level of a beam search whose codebook is f(base codebook, partial sum) for every partial sum. temp: of Gumbel
    noise on the squared distances; None, without."""

    def __init__(
        self,
        codebook: NeuralCodebook,
        base_KE: Tensor,
        temp: float | None = None,
        generator: torch.Generator | None = None,
    ):
        if temp is not None:
            check_temperature(temp)
        self.codebook, self.base_KE, self.temp, self.generator = codebook, base_KE.detach(), temp, generator
        self.num_codes = len(base_KE)
        self.chunk_rows = rows_per_chunk(self.num_codes, base_KE.device)

    def distances(self, residual_ME: Tensor, total_ME: Tensor) -> Tensor:
        """(M, K) squared distances less the squared lengths of the residuals, in blocks of rows and codes."""
        distance_MK = residual_ME.new_empty((len(residual_ME), self.num_codes))
        wide = max(self.codebook.dim, *(block.maps[0].out_features for block in self.codebook.layers), 1)
        pairs = rows_per_chunk(LIVE_COPIES * wide, residual_ME.device)
        codes = min(self.num_codes, pairs)
        rows = max(1, pairs // codes)
        for row in range(0, len(residual_ME), rows):
            residual_m1E, total_m1E = residual_ME[row : row + rows, None], total_ME[row : row + rows, None]
            for code in range(0, self.num_codes, codes):
                vectors_mkE = self.codebook(self.base_KE[code : code + codes], total_m1E)
                errors_mkE = (vectors_mkE - 2 * residual_m1E).mul_(vectors_mkE)
                distance_MK[row : row + rows, code : code + codes] = errors_mkE.sum(-1)
        return distance_MK if self.temp is None else add_noise(distance_MK, self.temp, self.generator)

    def embed(self, codes_M: Tensor, total_ME: Tensor) -> Tensor:
        """The code vectors (M, E)."""
        vectors_ME: Tensor = self.codebook(F.embedding(codes_M, self.base_KE), total_ME)
        return vectors_ME


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class NeuralResidualOptions(StackOptions):
    """Settings of residual vector quantization that make sense here, and those of the networks.

    ValueError for the estimator 'gumbel' and for code losses other than commitment and codebook.

    Attributes:
        hidden: width of the networks. null: C.
        depth: blocks of a network.
        codebook_dim: C, projected to and back where it is not dim. null: dim.
        kmeans_init: as of `VectorOptions`.
        estimator: as of `ResidualVectorOptions`, without 'gumbel'.
        losses: weights of commitment and codebook.
        loss_weights, beam_width, eval_beam_width: as of `ResidualVectorOptions`.
    """

    hidden: int | None = None
    depth: int = 4
    codebook_dim: int | None = None
    kmeans_init: bool = True
    estimator: str = "straight_through"
    losses: VectorLosses = VectorLosses()
    loss_weights: list[float] | None = None
    beam_width: int = 1
    eval_beam_width: int | None = None

    def __post_init__(self) -> None:
        if self.hidden is not None:
            check_count("hidden", self.hidden, 0)
        check_count("depth", self.depth, 0)
        if self.estimator == "gumbel":
            raise ValueError("an implicit neural codebook has no estimator 'gumbel'")
        if self.losses.cross_entropy or self.losses.diversity or self.losses.orthogonal:
            raise ValueError("an implicit neural codebook has the code losses commitment and codebook only")
        self.of_stack(None)

    def of_stack(self, sample_temp: float | None) -> ResidualVectorOptions:
        """The settings of the stack of learned base codebooks."""
        names = {field.name for field in dataclasses.fields(self)} - {"hidden", "depth"}
        shared = {name: getattr(self, name) for name in names}
        return ResidualVectorOptions(codebook="learned", sample_temp=sample_temp, **shared)


@checks_arguments
class NeuralResidualQuantizer(ResidualVectorQuantizer):
    """Residual vector quantization whose levels after the first search f(base codebook, sum of the levels before).

    Base codebooks are learned; every level after the first has its own `NeuralCodebook` (hidden, depth). The loss terms
    compare the input with the sum after every level, and the gradient of 'codebook' reaches all levels before as well
    (# Eq. 6). `codebook` gives base codebooks; what a vector is compared with depends on its earlier codes, see
    `soft_codes`. sample_temp: see `VectorOptions`.
    """

    def __init__(
        self,
        dim: int,
        num_codes: int | Sequence[int],
        num_quantizers: int | None = None,
        options: NeuralResidualOptions | None = None,
        *,
        sample_temp: float | None = None,
    ):
        options = NeuralResidualOptions() if options is None else options
        super().__init__(dim, num_codes, num_quantizers, options.of_stack(sample_temp))
        code_dim, size = options.codebook_dim or dim, (options.hidden, options.depth)
        self.transforms = ModuleList(NeuralCodebook(code_dim, *size) for _ in self.num_codes[1:])

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) the learning of base codebooks and transforms."""
        super().freeze_codebook(frozen)
        self.transforms.requires_grad_(not frozen)

    @property
    def fixed_code_vectors(self) -> bool:
        """Not where a level follows another."""
        return len(self.num_codes) == 1

    @torch.no_grad()
    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual that enters every level (..., D, C) fp32 and its code (..., D), best or drawn."""
        with full_precision(z.device):
            x = self._to_space(z)
            x_NE = x.reshape(-1, x.shape[-1])
            levels = self._beam_levels(temp if stochastic else None, generator)
            codes_ND = beam_search(x_NE, levels, 1 if stochastic else self._width())
            before = [torch.zeros_like(x_NE), *self._partial_sums(codes_ND)[:-1]]
        found = torch.stack([x_NE - total for total in before], -2)
        return found.view(*x.shape[:-1], *found.shape[1:]), codes_ND.view(*x.shape[:-1], len(before))

    @torch.no_grad()
    def soft_codes(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """softmax(-squared distance / temp) (..., D, K) over the code vectors that every level offers for the codes
        before it, and the codes (..., D) of `targets`."""
        check_temperature(temp)
        searched, codes = self.targets(z, temp, stochastic, generator)
        probs = searched.new_zeros((*codes.shape, max(self.num_codes)))
        with full_precision(z.device):
            residual_NDE = searched.flatten(0, -3)
            for depth, level in enumerate(self._beam_levels(None)):
                total_NE = residual_NDE[:, 0] - residual_NDE[:, depth]
                distance_NK = level.distances(residual_NDE[:, depth], total_NE)
                probs[..., depth, : level.num_codes] = (
                    distance_NK.mul_(-1 / temp).softmax(1).view(*codes.shape[:-1], level.num_codes)
                )
        return probs, codes

    def _quantize(self, x: Tensor, mask: Tensor | None, kept: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        temp = self.options.sample_temp if self.training else None
        x_NE, mask_N = x.reshape(-1, x.shape[-1]), None if mask is None else mask.reshape(-1)
        codes_ND = beam_search(x_NE.detach(), self._beam_levels(temp)[:kept], self._width())
        sums = self._partial_sums(codes_ND)
        losses = self.options.losses
        terms: list[dict[str, Tensor]] = []
        for total_NE in sums:
            terms.append({})
            if losses.commitment > 0:
                terms[-1]["commitment"] = losses.commitment * mean_square(x_NE, total_NE.detach(), mask_N)
            if losses.codebook > 0 and total_NE.requires_grad:
                terms[-1]["codebook"] = losses.codebook * mean_square(total_NE, x_NE.detach(), mask_N)
        total = ESTIMATORS[self.options.estimator](x_NE, sums[-1])
        return total.view_as(x), codes_ND.view(*x.shape[:-1], kept), self._weighted(terms)

    def _beam_levels(self, temp: float | None, generator: torch.Generator | None = None) -> list[BeamLevel]:
        first, *others = [level.codebook(0).detach() for level in self.levels]
        pairs = zip(self.transforms, others, strict=True)
        return [TableLevel(first, temp, generator), *(NeuralLevel(*pair, temp, generator) for pair in pairs)]

    def _partial_sums(self, codes_ND: Tensor) -> list[Tensor]:
        """The sum (N, C) after every level; negative codes add zero."""
        sums: list[Tensor] = []
        for vectors in self._level_vectors(codes_ND):
            sums.append(sums[-1] + vectors if sums else vectors)
        return sums

    def _level_vectors(self, codes: Tensor) -> Iterator[Tensor]:
        total = None
        for depth, codes_at in enumerate(codes.unbind(-1)):
            vectors = F.embedding(codes_at.clamp(min=0), self.codebook(depth))
            if depth > 0:
                vectors = self.transforms[depth - 1](vectors, total)
            vectors = torch.where(codes_at[..., None] >= 0, vectors, 0.0)
            total = vectors if total is None else total + vectors
            yield vectors

    def _level_parts(self, codes: Tensor) -> Iterator[Tensor]:
        for vectors in self._level_vectors(codes):
            yield vectors[..., None, :]
