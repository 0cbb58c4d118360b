"""Residual vector quantization with all the settings of a vector quantizer at every level.

Legend: N vectors, E size of an input vector, C size of a code vector, K codebook size, D levels (the code depth).

Residual codes: Lee et al., Autoregressive Image Generation using Residual Quantization, CVPR 2022; quantizer dropout:
Zeghidour et al., SoundStream, 2021 (2107.03312).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.arguments import check_count, check_counts
from rqstack.quantizers.arithmetic.beam_search import BeamLevel, TableLevel, beam_search
from rqstack.quantizers.arithmetic.given_tensors import checked_input
from rqstack.quantizers.arithmetic.gradient import ESTIMATORS, straight_through
from rqstack.quantizers.arithmetic.precision import full_precision, linear
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import QuantizerOutput
from rqstack.quantizers.codebooks.alternating import OptimizerMaker
from rqstack.quantizers.methods.residual_stack import ResidualStack, StackOptions
from rqstack.quantizers.methods.vector import VectorQuantizer
from rqstack.quantizers.methods.vector_options import VectorOptions


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class ResidualVectorOptions(StackOptions, VectorOptions):
    """Those of every level (see `VectorOptions`) and of the stack.

    Attributes:
        codebook_dim: C, projected to and back where it is not dim. null: dim.
        seed: of restarts; it grows by one per level, as the rows with which one level restarts are those that leave no
            residual to the next.
        estimator: between the input and the sum of all levels; with 'directional' learned code vectors get a gradient
            from it, 'gumbel' adds up the gradients of the levels. Else as of `VectorOptions`.
        loss_weights: of every level; the loss is the weighted sum over the levels divided by their number, and each
            level pulls the residual it saw. null: 1 each.
        beam_width: partial sums kept per vector and level in search of the best sum of code vectors; 1 takes the
            nearest code at every level.
        eval_beam_width: the same in eval mode. null: as in train mode.
    """

    loss_weights: list[float] | None = None
    beam_width: int = 1
    eval_beam_width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("beam_width", self.beam_width)
        if self.eval_beam_width is not None:
            check_count("eval_beam_width", self.eval_beam_width)

    def of_level(self, index: int) -> VectorOptions:
        """What the levels themselves need; the stack has the projections and, but for 'gumbel', the estimator."""
        estimator = self.estimator if self.estimator == "gumbel" else "straight_through"
        return dataclasses.replace(self, codebook_dim=None, estimator=estimator, seed=self.seed + index)


@checks_arguments
class ResidualVectorQuantizer(ResidualStack[VectorQuantizer]):
    """D vector quantizers, each on what those before it left over; channels-last (..., dim), codes (..., D).

    num_codes: K of every level, or one number and `num_quantizers` = D. shared: one codebook for all levels. decay: of
    the moving averages. in_place_optimizer: see `VectorQuantizer`. All processes drop the same levels.
    """

    options: ResidualVectorOptions

    def __init__(
        self,
        dim: int,
        num_codes: int | Sequence[int],
        num_quantizers: int | None = None,
        options: ResidualVectorOptions | None = None,
        *,
        shared: bool = False,
        decay: float = 0.99,
        in_place_optimizer: OptimizerMaker | None = None,
    ):
        options = ResidualVectorOptions() if options is None else options
        check_count("dim", dim)
        sizes = _level_sizes(num_codes, num_quantizers, shared)
        code_dim = options.codebook_dim or dim
        levels = [
            VectorQuantizer(code_dim, size, options.of_level(index), decay=decay, in_place_optimizer=in_place_optimizer)
            for index, size in enumerate(sizes[:1] if shared else sizes)
        ]
        super().__init__(dim, levels * len(sizes) if shared else levels, code_dim=code_dim, options=options)
        self.loss_weights = [1.0] * len(sizes) if options.loss_weights is None else list(options.loss_weights)
        if len(self.loss_weights) != len(sizes):
            raise ValueError(f"{len(sizes)} levels need as many loss_weights, got {self.loss_weights}")
        self.beam_width, self.eval_beam_width = options.beam_width, options.eval_beam_width or options.beam_width
        self.shared, self.frozen = shared, False

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., dim) in any float dtype; positions where `mask` (...) is False count in no loss and no
        codebook."""
        z = checked_input(z, mask, self.dim)
        if not self.frozen:
            self._before_gathering(z)
        with full_precision(z.device):
            x = self._to_space(z)
            if self.training and not self.frozen and not all(level._is_initialized() for level in self.levels):
                self._fit(x.detach(), mask, "kmeans", 0)
            total, codes, terms = self._quantize(x, mask, self._levels_kept(z.device))
            quantized = linear(self.project_out, total)
            loss = sum(terms.values(), torch.zeros((), device=z.device))
        codes = F.pad(codes, (0, len(self.num_codes) - codes.shape[-1]), value=-1)
        return QuantizerOutput(quantized.to(z.dtype), codes, loss, terms)

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors of level `depth`, fp32."""
        return self.level_at(depth).codebook(0)

    def freeze_codebook(self, frozen: bool = True) -> None:
        """Stop (or resume) every change of the code vectors."""
        self.frozen = frozen
        for level in self.levels:
            level.freeze_codebook(frozen)

    def initialize_codebook(self, z: Tensor, mask: Tensor | None = None, method: str = "kmeans", seed: int = 0) -> None:
        """Set the codebooks from z (..., dim), level by level on the residuals each will see; `method` is 'kmeans' or
        'data' (vectors drawn from them). A shared codebook is fitted to the residuals of all levels. All processes
        together."""
        with torch.no_grad(), full_precision(z.device):
            self._fit(self._to_space(z), mask, method, seed)

    @torch.no_grad()
    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The vector every level searches with (..., D, C) fp32 and its code (..., D); residuals follow the codes.

        With a beam the codes are those of the best sum, unless they are drawn.
        """
        if stochastic or self._width() == 1:
            return super().targets(z, temp, stochastic, generator)
        with full_precision(z.device):
            residual, found = self._to_space(z), []
            codes = self._beam_codes(residual, len(self.order))
            for depth in range(len(self.order)):
                found.append(F.normalize(residual, dim=-1) if self._cosine else residual)
                residual = residual - F.embedding(codes[..., depth], self.codebook(depth))
        return torch.stack(found, -2), codes

    def _quantize(self, x: Tensor, mask: Tensor | None, kept: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x (..., C) through the first `kept` levels: the sum with its gradient, codes (..., kept), loss terms."""
        given = self._beam_codes(x.detach(), kept) if self._width() > 1 else None
        residual, total, outs = x, torch.zeros_like(x), []
        for index in range(kept):
            out = self.level_at(index)(residual, mask, None if given is None else given[..., index : index + 1])
            vectors = out.quantized.detach()
            residual, total = residual - vectors, total + vectors
            outs.append(out)
        codes = torch.cat([out.codes for out in outs], -1)
        return self._estimate(x, total, outs, codes), codes, self._weighted([out.terms for out in outs])

    def _estimate(self, x: Tensor, total: Tensor, outs: list[QuantizerOutput], codes: Tensor) -> Tensor:
        """The value of `total` with the gradient of the estimator."""
        if self.options.estimator == "gumbel":
            return reduce(add, [out.quantized for out in outs]) if self.training else straight_through(x, total)
        if self.options.estimator == "directional" and any(level.learned for level in self.levels):
            total = reduce(add, self._level_vectors(codes))
        return ESTIMATORS[self.options.estimator](x, total)

    def _weighted(self, terms: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of the levels, added up with the levels' weights and divided by the number of levels."""
        names = dict.fromkeys(name for level in terms for name in level)
        pairs = list(zip(terms, self.loss_weights, strict=False))
        return {
            name: torch.stack([weight * level[name] for level, weight in pairs if name in level]).sum() / len(terms)
            for name in names
        }

    @property
    def _cosine(self) -> bool:
        return self.levels[0].cosine

    def _width(self) -> int:
        return self.beam_width if self.training else self.eval_beam_width

    def _beam_levels(self, temp: float | None, generator: torch.Generator | None = None) -> list[BeamLevel]:
        tables = [TableLevel(level.codebook(0), temp, generator) for level in self.levels]
        return [tables[index] for index in self.order]

    def _beam_codes(self, x: Tensor, kept: int) -> Tensor:
        """The codes (..., kept) of the best sums for x (..., C)."""
        levels = self._beam_levels(self.options.sample_temp if self.training else None)
        codes_ND = beam_search(x.reshape(-1, x.shape[-1]), levels[:kept], self._width(), cosine=self._cosine)
        return codes_ND.view(*x.shape[:-1], kept)

    @torch.no_grad()
    def _fit(self, x: Tensor, mask: Tensor | None, method: str, seed: int) -> None:
        residual, seen = x, []
        for index in range(len(self.order)):
            level = self.level_at(index)
            if index == 0 or not self.shared:
                level.initialize_codebook(residual, mask, method, seed + index)
            seen.append(residual)
            residual = residual - level.decode(level.targets(residual)[1])
        if self.shared and len(seen) > 1:
            masks = None if mask is None else torch.stack([mask] * len(seen), -1)
            # the levels of a row side by side: the same order for every split of the rows over processes
            self.levels[0].initialize_codebook(torch.stack(seen, -2), masks, method, seed + len(seen))


def _level_sizes(num_codes: int | Sequence[int], num_quantizers: int | None, shared: bool) -> tuple[int, ...]:
    if isinstance(num_codes, int):
        if num_quantizers is None:
            raise ValueError("num_quantizers is missing: one codebook size does not tell the number of levels")
        return (check_count("num_codes", num_codes),) * check_count("num_quantizers", num_quantizers)
    sizes = check_counts("num_codes", num_codes)
    if num_quantizers not in (None, len(sizes)):
        raise ValueError(f"num_quantizers is {num_quantizers}, but num_codes has {len(sizes)} sizes")
    if shared and len(set(sizes)) > 1:
        raise ValueError(f"a shared codebook needs one size, got {sizes}")
    return sizes
