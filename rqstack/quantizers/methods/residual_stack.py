"""Any quantizers one after the other, each on what those before it left over.

Legend: E size of an input vector, C size of the vectors the levels quantize, D code depth (of all levels together).

Residual quantization: Lee et al., CVPR 2022. Quantizer dropout: Zeghidour et al., SoundStream, 2021 (2107.03312).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.mixed_radix import scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision, linear, without_masked_nonfinite
from rqstack.quantizers.base import Quantizer, QuantizerOutput, TargetQuantizer
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer, bits_of
from rqstack.quantizers.methods.simvq import SimQuantizer


class ResidualStack(KeepsFloat32, TargetQuantizer):
    """Level l quantizes residual / scales[l] of the residual that levels 0 .. l - 1 leave; the output is the sum.

    dim: E, projected to `code_dim` = C and back where they differ. levels: quantizers of C-sized vectors; one object
    may stand at several levels, which then share their codebook. scales: per level a number, or C numbers. bound:
    applied to the (projected) input before the first level. The gradient of the output is that of the identity (of
    `bound`); the loss is the mean over the levels, where each pulls the residual it saw.
    quantize_dropout: in train mode a random level from `dropout_cutoff` (0-based) on is the last one; at least
    dropout_cutoff + 1 levels are kept, and their number is a multiple of `dropout_multiple` where one fits. The codes
    of dropped levels are -1, which decodes to zero. ValueError for options that do not fit.
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[Quantizer],
        *,
        code_dim: int | None = None,
        scales: Sequence[float | Sequence[float]] | None = None,
        bound: Callable[[torch.Tensor], torch.Tensor] | None = None,
        quantize_dropout: bool = False,
        dropout_cutoff: int = 0,
        dropout_multiple: int = 1,
    ):
        super().__init__()
        if not levels or (scales is not None and len(scales) != len(levels)):
            raise ValueError(f"{len(levels)} levels with {0 if scales is None else len(scales)} scales")
        if not 0 <= dropout_cutoff < len(levels) or dropout_multiple < 1:
            raise ValueError(
                f"dropout_cutoff must be in 0 .. {len(levels) - 1} and dropout_multiple at least 1, "
                f"got {dropout_cutoff} and {dropout_multiple}"
            )
        self.dim, code_dim = dim, code_dim or dim
        self.levels, self.bound = nn.ModuleList(dict.fromkeys(levels)), bound  # a shared level is stored once
        self.order = [list(self.levels).index(level) for level in levels]
        self.num_codes = tuple(size for level in levels for size in level.num_codes)
        self.quantize_dropout, self.dropout_cutoff = quantize_dropout, dropout_cutoff
        self.dropout_multiple = dropout_multiple
        self.project_in = nn.Linear(dim, code_dim) if dim != code_dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if dim != code_dim else nn.Identity()
        scale = torch.ones(len(levels), code_dim)
        for level, value in enumerate(scales or ()):
            if min(value if isinstance(value, Sequence) else [value]) <= 0:
                raise ValueError(f"scales must be positive, got {scales}")
            scale[level] = torch.tensor(value)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E); positions where `mask` (...) is False count in no loss and no codebook."""
        if mask is not None:
            z = without_masked_nonfinite(z, mask)
        with full_precision(z.device):
            x = self._to_space(z)
            total, codes, terms = self._quantize(x, mask, self._levels_kept(z.device))
            quantized = self._from_space(straight_through(x, total))
            loss = sum(terms.values(), torch.zeros((), device=z.device))
        dropped = len(self.num_codes) - codes.shape[-1]
        codes = nn.functional.pad(codes, (0, dropped), value=-1) if dropped else codes
        return QuantizerOutput(quantized.to(z.dtype), codes, loss, terms)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., D) -> vectors (..., E). Negative codes and missing last levels count as zero."""
        self._check_codes(codes)
        with full_precision(codes.device):
            return self._from_space(sum(self._level_vectors(codes)))

    def embed_with_depth(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., D) -> the part of every depth (..., D, E); they add up to `decode`. Depth 0 has the bias."""
        self._check_codes(codes)
        with full_precision(codes.device):
            parts = torch.cat(list(self._level_parts(codes)), -2)
            if isinstance(self.project_out, nn.Linear):
                parts = parts @ self.project_out.weight.float().T
                parts[..., 0, :] += self.project_out.bias.float()
        return parts

    def level_at(self, level: int) -> Quantizer:
        """The quantizer of a level."""
        return self.levels[self.order[level]]

    def codebook(self, depth: int) -> torch.Tensor:
        """The (K, C) code vectors depth `depth` compares `targets` with, fp32."""
        level, inner = self._level_of(depth)
        book_KC = self.level_at(level).codebook(inner)
        return book_KC * self.scale[level] if book_KC.shape[1] == self.scale.shape[1] else book_KC

    @torch.no_grad()
    def targets(
        self,
        z: torch.Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The vector every depth searches with (..., D, C) fp32 and its code (..., D); residuals follow the codes."""
        found, codes = [], []
        with full_precision(z.device):
            residual = self._to_space(z)
            for level in range(len(self.order)):
                quantizer = self.level_at(level)
                scale = self.scale[level]
                level_temp = temp / scale.square().mean().item() if stochastic else temp
                searched, level_codes = quantizer.targets(residual / scale, level_temp, stochastic, generator)
                residual = residual - quantizer.decode(level_codes) * scale
                found.append(searched * scale if searched.shape[-1] == len(scale) else searched)
                codes.append(level_codes)
        return torch.cat(found, -2), torch.cat(codes, -1)

    def update_codebook(self) -> None:
        """Apply what the levels have gathered."""
        for level in self.levels:
            level.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what the levels have gathered."""
        for level in self.levels:
            level.discard_codebook_update()

    def restart_counts(self) -> torch.Tensor:
        """Entries the levels have restarted since construction, int64 (D,)."""
        return torch.cat([self.level_at(level).restart_counts() for level in range(len(self.order))])

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether those of all levels are fixed."""
        return all(level.fixed_code_vectors for level in self.levels)

    @property
    def uses_all_parameters(self) -> bool:
        """Not with quantizer dropout."""
        return not self.quantize_dropout and all(level.uses_all_parameters for level in self.levels)

    def _to_space(self, z: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != self.dim:
            raise ValueError(f"vectors have {z.shape[-1]} channels in their last dim; the quantizer takes {self.dim}")
        x = linear(self.project_in, z.float())
        return x if self.bound is None else self.bound(x)

    def _from_space(self, vectors: torch.Tensor) -> torch.Tensor:
        """Contiguous rows, so that the product has the same last bits whatever order the vectors were made in."""
        rows = linear(self.project_out, vectors.reshape(-1, vectors.shape[-1]).contiguous())
        return rows.view(*vectors.shape[:-1], self.dim)

    def _quantize(
        self, x: torch.Tensor, mask: torch.Tensor | None, kept: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the code vectors of the first levels, without a gradient, their codes and the terms."""
        residual, total, codes, terms = x, None, [], []
        for level, scale in enumerate(self.scale[:kept]):
            vectors, level_codes, level_terms = self.level_at(level).as_level(residual / scale, mask)
            vectors = vectors * scale
            residual, total = residual - vectors, vectors if total is None else total + vectors
            codes.append(level_codes)
            terms.append(level_terms)
        return total, torch.cat(codes, -1), _mean_terms(terms, x.device)

    def _levels_kept(self, device: torch.device | None = None) -> int:
        """All, or with dropout in train mode a random number; drawn on the CPU, without waiting for the device.

        Where `device` is given all processes get the number of the first one: a codebook that only some of them used
        could not be updated together.
        """
        num_levels = len(self.order)
        if not (self.quantize_dropout and self.training):
            return num_levels
        last = int(torch.randint(self.dropout_cutoff, num_levels, ()))
        kept = min(num_levels, math.ceil((last + 1) / self.dropout_multiple) * self.dropout_multiple)
        return kept if device is None else sync.from_first_rank(kept, device)

    def _level_of(self, depth: int) -> tuple[int, int]:
        for level in range(len(self.order)):
            inner = len(self.level_at(level).num_codes)
            if depth < inner:
                return level, depth
            depth -= inner
        raise ValueError(f"the quantizer has {len(self.num_codes)} depths")

    def _split(self, codes: torch.Tensor):
        """(level, its codes) for every level that has codes here."""
        start = 0
        for level in range(len(self.order)):
            inner = len(self.level_at(level).num_codes)
            part = codes[..., start : start + inner]
            start += inner
            if part.shape[-1]:
                yield level, part

    def _level_vectors(self, codes: torch.Tensor):
        for level, part in self._split(codes):
            vectors = self.level_at(level).decode(part.clamp(min=0)) * self.scale[level]
            yield torch.where(part[..., :1] >= 0, vectors, 0.0)

    def _level_parts(self, codes: torch.Tensor):
        for level, part in self._split(codes):
            parts = self.level_at(level).embed_with_depth(part.clamp(min=0)) * self.scale[level]
            yield torch.where(part[..., None] >= 0, parts, 0.0)


class _ResidualGrid(ResidualStack):
    """Levels of one finite scalar quantizer without noise: scalars come first all the way, and no level has terms."""

    @torch.no_grad()
    def _quantize(
        self, x: torch.Tensor, mask: torch.Tensor | None, kept: int
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        grid = self.levels[0].grid
        residual_CM, total_CM, codes = scalars_first(x), None, []
        for scale_C1 in self.scale[:kept, :, None]:
            vectors_CM, digits_CM = grid.nearest(residual_CM / scale_C1)
            vectors_CM = vectors_CM * scale_C1
            residual_CM = residual_CM - vectors_CM
            total_CM = vectors_CM if total_CM is None else total_CM + vectors_CM
            codes.append(grid.codes(digits_CM))
        return scalars_last(total_CM, x.shape[:-1]), torch.stack(codes, -1).view(*x.shape[:-1], kept), {}


def _mean_terms(terms: list[dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for level in terms for name in level)
    zero = torch.zeros((), device=device)
    return {name: torch.stack([level.get(name, zero) for level in terms]).mean() for name in names}


def residual_fsq(
    dim: int, levels: Sequence[int], num_quantizers: int, *, preserve_symmetry: bool = False, **options: object
) -> ResidualStack:
    """FSQ on grids that get finer by the factor L - 1 per level and scalar; the input is bounded once, in front."""
    first = FiniteScalarQuantizer(len(levels), levels, preserve_symmetry=preserve_symmetry)
    grid = FiniteScalarQuantizer(len(levels), levels, preserve_symmetry=preserve_symmetry, bound="clamp")
    scales = [[float(level - 1) ** -depth for level in levels] for depth in range(num_quantizers)]
    return _ResidualGrid(
        dim, [grid] * num_quantizers, code_dim=len(levels), scales=scales, bound=_Bound(first), **options
    )


def residual_lfq(
    dim: int, codebook_size: int, num_quantizers: int, *, level_options: dict | None = None, **options: object
) -> ResidualStack:
    """LFQ with a scale that halves at every level."""
    bits = bits_of(codebook_size)
    levels = [LookupFreeQuantizer(bits, codebook_size, **(level_options or {})) for _ in range(num_quantizers)]
    return ResidualStack(dim, levels, code_dim=bits, scales=[2.0**-depth for depth in range(num_quantizers)], **options)


def residual_simvq(
    dim: int,
    codebook_size: int,
    num_quantizers: int,
    *,
    shared: bool = False,
    level_options: dict | None = None,
    **options: object,
) -> ResidualStack:
    """SimVQ at every level, each with its own codebook and map or all with the same."""
    code_dim = options.get("code_dim") or dim
    levels = [
        SimQuantizer(code_dim, codebook_size, **(level_options or {})) for _ in range(1 if shared else num_quantizers)
    ]
    return ResidualStack(dim, levels * num_quantizers if shared else levels, **options)


class _Bound(nn.Module):
    """The bound of a finite scalar quantizer as a module."""

    def __init__(self, quantizer: FiniteScalarQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantizer.bound(x)
