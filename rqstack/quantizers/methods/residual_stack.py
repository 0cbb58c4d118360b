"""Any quantizers one after the other, each on what those before it left over.

Legend: E size of an input vector, C size of the vectors the levels quantize, D code depth (of all levels together).

Residual quantization: Lee et al., CVPR 2022. Quantizer dropout: Zeghidour et al., SoundStream, 2021 (2107.03312).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from rqstack.arguments import check_count
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.given_tensors import check_vectors, checked_input
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision, linear
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer, QuantizerOutput

Level = TypeVar("Level", bound=Quantizer)


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """Settings that all residual stacks have.

    Attributes:
        groups: channel groups, each with a stack of its own of D / groups levels (`Grouped` joins them; a stack is
            one).
        quantize_dropout: in train mode a random level from `dropout_cutoff` on is the last one.
        dropout_cutoff: 0-based; at least dropout_cutoff + 1 levels are kept.
        dropout_multiple: the number of levels kept is a multiple of it where one fits.
    """

    groups: int = 1
    quantize_dropout: bool = False
    dropout_cutoff: int = 0
    dropout_multiple: int = 1


@checks_arguments
class ResidualStack(KeepsFloat32, Quantizer, Generic[Level]):
    """Level l quantizes residual / scales[l] of the residual that levels 0 .. l - 1 leave; the output is the sum.

    dim: E, projected to `code_dim` = C and back where they differ. levels: quantizers of C-sized vectors; one object
    may stand at several levels, which then share their codebook. scales: per level a number, or C numbers. bound:
    applied to the (projected) input before the first level. The gradient of the output is that of the identity (of
    `bound`); the loss is the mean over the levels, where each pulls the residual it saw.
    options: of level dropout; the codes of dropped levels are -1, which decodes to zero. ValueError for options that do
    not fit.
    """

    scale: Tensor
    drops_levels = True

    def __init__(
        self,
        dim: int,
        levels: Sequence[Level],
        *,
        code_dim: int | None = None,
        scales: Sequence[float | Sequence[float]] | None = None,
        bound: Callable[[Tensor], Tensor] | None = None,
        options: StackOptions | None = None,
    ):
        super().__init__()
        options = StackOptions() if options is None else options
        check_count("dim", dim)
        if code_dim is not None:
            check_count("code_dim", code_dim)
        if not levels or (scales is not None and len(scales) != len(levels)):
            raise ValueError(f"{len(levels)} levels with {0 if scales is None else len(scales)} scales")
        if not 0 <= options.dropout_cutoff < len(levels) or options.dropout_multiple < 1:
            raise ValueError(
                f"dropout_cutoff must be in 0 .. {len(levels) - 1} and dropout_multiple at least 1, "
                f"got {options.dropout_cutoff} and {options.dropout_multiple}"
            )
        if options.groups != 1:
            raise ValueError(f"groups {options.groups}: this is one stack; `Grouped` puts several side by side")
        self.dim, code_dim = dim, code_dim or dim
        self.levels = ModuleList(dict.fromkeys(levels))  # a shared level is stored once
        self._watch_from_outside(*self.levels)
        self.bound = bound
        self.order = [list(self.levels).index(level) for level in levels]
        self.num_codes = tuple(size for level in levels for size in level.num_codes)
        self.options = options
        self.project_in = nn.Linear(dim, code_dim) if dim != code_dim else nn.Identity()
        self.project_out = nn.Linear(code_dim, dim) if dim != code_dim else nn.Identity()
        scale = torch.ones(len(levels), code_dim, device="cpu")
        for level, value in enumerate(scales or ()):
            if min(value if isinstance(value, Sequence) else [value]) <= 0:
                raise ValueError(f"scales must be positive, got {scales}")
            scale[level] = torch.tensor(value, device="cpu")
        # known to Python: a device is not asked for them
        self._mean_squares: list[float] = [row.square().mean().item() for row in scale]
        self.register_buffer("scale", scale.to(torch.get_default_device()), persistent=False)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E); positions where `mask` (...) is False count in no loss and no codebook."""
        z = checked_input(z, mask, self.dim)
        self._before_gathering(z)
        with full_precision(z.device):
            x = self._to_space(z)
            total, codes, terms = self._quantize(x, mask, self._levels_kept(z.device))
            quantized = self._from_space(straight_through(x, total))
            loss = sum(terms.values(), torch.zeros((), device=z.device))
        dropped = len(self.num_codes) - codes.shape[-1]
        codes = nn.functional.pad(codes, (0, dropped), value=-1) if dropped else codes
        return QuantizerOutput(quantized.to(z.dtype), codes, loss, terms)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> vectors (..., E). Negative codes and missing last levels count as zero."""
        codes = self._checked(codes)
        with full_precision(codes.device):
            return self._from_space(reduce(add, self._level_vectors(codes)))

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the part of every depth (..., D, E); they add up to `decode`. Depth 0 has the bias."""
        codes = self._checked(codes)
        with full_precision(codes.device):
            parts = torch.cat(list(self._level_parts(codes)), -2)
            if isinstance(self.project_out, nn.Linear):
                parts = parts @ self.project_out.weight.float().T
                parts[..., 0, :] += self.project_out.bias.float()
        return parts

    def level_at(self, level: int) -> Level:
        """The quantizer of a level."""
        return self.levels[self.order[level]]

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors depth `depth` compares `targets` with, fp32."""
        level, inner = self._level_of(depth)
        book_KC = self.level_at(level).codebook(inner)
        return book_KC * self.scale[level] if book_KC.shape[1] == self.scale.shape[1] else book_KC

    @torch.no_grad()
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The vector every depth searches with (..., D, C) fp32 and its code (..., D); residuals follow the codes."""
        found, codes = [], []
        with full_precision(z.device):
            residual = self._to_space(z)
            for level in range(len(self.order)):
                quantizer = self.level_at(level)
                scale = self.scale[level]
                level_temp = temp / self._mean_squares[level] if stochastic else temp
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

    def _has_gathered(self) -> bool:
        return any(level._has_gathered() for level in self.levels)

    def restart_counts(self) -> Tensor:
        """Entries the levels have restarted since construction, int64 (D,)."""
        return torch.cat([self.level_at(level).restart_counts() for level in range(len(self.order))])

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether those of all levels are fixed."""
        return all(level.fixed_code_vectors for level in self.levels)

    @property
    def uses_all_parameters(self) -> bool:
        """Not with quantizer dropout."""
        return not self.options.quantize_dropout and all(level.uses_all_parameters for level in self.levels)

    def _to_space(self, z: Tensor) -> Tensor:
        check_vectors(z, self.dim)
        x = linear(self.project_in, z.float())
        return x if self.bound is None else self.bound(x)

    def _from_space(self, vectors: Tensor) -> Tensor:
        """Contiguous rows, so that the product has the same last bits whatever order the vectors were made in."""
        rows = linear(self.project_out, vectors.reshape(-1, vectors.shape[-1]).contiguous())
        return rows.view(*vectors.shape[:-1], self.dim)

    def _quantize(self, x: Tensor, mask: Tensor | None, kept: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The sum of the code vectors of the first levels, without a gradient, their codes and the terms."""
        residual, codes, terms = x, [], []
        total: Tensor | None = None
        for level, scale in enumerate(self.scale[:kept]):
            vectors, level_codes, level_terms = self.level_at(level).as_level(residual / scale, mask)
            vectors = vectors * scale
            residual, total = residual - vectors, vectors if total is None else total + vectors
            codes.append(level_codes)
            terms.append(level_terms)
        assert total is not None, "at least one level is kept"
        return total, torch.cat(codes, -1), _mean_terms(terms, x.device)

    def _levels_kept(self, device: torch.device | None = None) -> int:
        """All, or with dropout in train mode a random number; drawn on the CPU, without waiting for the device.

        Where `device` is given all processes get the number of the first one: a codebook that only some of them used
        could not be updated together.
        """
        num_levels = len(self.order)
        if not (self.options.quantize_dropout and self.training):
            return num_levels
        last = int(torch.randint(self.options.dropout_cutoff, num_levels, ()))
        kept = min(
            num_levels,
            math.ceil((last + 1) / self.options.dropout_multiple) * self.options.dropout_multiple,
        )
        return kept if device is None else sync.from_first_rank(kept, device)

    def _level_of(self, depth: int) -> tuple[int, int]:
        for level in range(len(self.order)):
            inner = len(self.level_at(level).num_codes)
            if depth < inner:
                return level, depth
            depth -= inner
        raise ValueError(f"the quantizer has {len(self.num_codes)} depths")

    def _split(self, codes: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(level, its codes) for every level that has codes here."""
        start = 0
        for level in range(len(self.order)):
            inner = len(self.level_at(level).num_codes)
            part = codes[..., start : start + inner]
            start += inner
            if part.shape[-1]:
                yield level, part

    def _level_vectors(self, codes: Tensor) -> Iterator[Tensor]:
        for level, part in self._split(codes):
            vectors = self.level_at(level).decode(part.clamp(min=0)) * self.scale[level]
            yield torch.where(part[..., :1] >= 0, vectors, 0.0)

    def _level_parts(self, codes: Tensor) -> Iterator[Tensor]:
        for level, part in self._split(codes):
            parts = self.level_at(level).embed_with_depth(part.clamp(min=0)) * self.scale[level]
            yield torch.where(part[..., None] >= 0, parts, 0.0)


def _mean_terms(terms: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    names = dict.fromkeys(name for level in terms for name in level)
    zero = torch.zeros((), device=device)
    return {name: torch.stack([level.get(name, zero) for level in terms]).mean() for name in names}
