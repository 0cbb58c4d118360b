"""Finite scalar quantization: every scalar of a code vector is rounded to one of a few fixed values.

Legend: N vectors, D codebooks side by side, C scalars of a code vector (one per entry of `levels`).

Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024 (arXiv 2309.15505).
Symmetric variant: Parker et al., Scaling Transformers for Low-Bitrate High-Quality Speech Coding, 2024 (2411.19842).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rqvae.quantizers.implicit import ImplicitQuantizer

BOUNDS = ("tanh", "clamp")
MARGIN = 1e-3  # the bounded scalar reaches a little beyond the outermost values, so that these can be chosen


class FiniteScalarQuantizer(ImplicitQuantizer):
    """Bound every scalar, round it to one of L values; K is the product of the levels and no codebook is stored.

    dim: E; projected to `num_codebooks` x `len(levels)` scalars where it differs. Values are k / (L // 2) for k from
    -(L // 2) to (L - 1) // 2. preserve_symmetry: L values evenly from -1 to 1 instead, also for even L. bound: 'tanh',
    or 'clamp' for inputs that have been bounded before. noise_dropout: share of the scalars that are moved by a
    uniform offset of up to half a level before they are rounded, in train mode; code and value still agree.
    The first level varies fastest in a code. There is no loss. ValueError for levels below 2 and other wrong options.
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        *,
        num_codebooks: int = 1,
        preserve_symmetry: bool = False,
        bound: str = "tanh",
        noise_dropout: float = 0.0,
        project: bool | None = None,
    ):
        check_levels(levels)
        if bound not in BOUNDS:
            raise ValueError(f"bound {bound!r} is not one of {', '.join(BOUNDS)}")
        if not 0 <= noise_dropout <= 1:
            raise ValueError(f"noise_dropout must be in [0, 1], got {noise_dropout}")
        super().__init__(dim, len(levels), math.prod(levels), num_codebooks, project)
        self.preserve_symmetry, self.bound_kind, self.noise_dropout = preserve_symmetry, bound, noise_dropout
        strides = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(list(levels)), persistent=False)
        self.register_buffer("strides", torch.tensor(strides), persistent=False)

    def bound(self, x: torch.Tensor) -> torch.Tensor:
        """Scalars (..., C) -> the range of the values, without rounding."""
        units = self._units(x)
        if self.preserve_symmetry:
            return units * (2.0 / (self.levels - 1)) - 1.0
        return units / (self.levels // 2)

    def _units(self, x: torch.Tensor) -> torch.Tensor:
        """Bounded scalars in units of one level: from 0 (symmetric) or centred on level L // 2."""
        clamp = self.bound_kind == "clamp"
        if self.preserve_symmetry:
            return ((x.clamp(-1, 1) if clamp else x.tanh()) + 1) * ((self.levels - 1) / 2)
        centre = self.levels // 2
        if clamp:
            return (x * centre).clamp(-centre, self.levels - 1 - centre)
        half = (self.levels - 1) * ((1 + MARGIN) / 2)
        offset = 0.5 * (1 - self.levels % 2)
        return (x + (offset / half).atanh()).tanh() * half - offset

    def _search(self, x_NDC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        units = self._units(x_NDC)
        with torch.no_grad():
            digits = self._round(units)
            codes_ND = (digits * self.strides).sum(-1)
        if self.preserve_symmetry:
            return units * (2.0 / (self.levels - 1)) - 1.0, codes_ND
        return units / (self.levels // 2), codes_ND

    def _round(self, units: torch.Tensor) -> torch.Tensor:
        """Units -> int64 digits 0 .. L - 1."""
        if self.training and self.noise_dropout > 0:
            moved = torch.rand_like(units) < self.noise_dropout
            units = units + torch.where(moved, torch.rand_like(units) - 0.5, 0.0)
        if self.preserve_symmetry:
            digits = (units + 0.5).floor().long()
        else:
            digits = units.round().long() + self.levels // 2
        return digits.clamp_min(0).minimum(self.levels - 1)

    def _vectors(self, codes_ND: torch.Tensor) -> torch.Tensor:
        digits = codes_ND[..., None] // self.strides % self.levels
        if self.preserve_symmetry:
            return digits * (2.0 / (self.levels - 1)) - 1.0
        centre = self.levels // 2
        return (digits - centre) / centre


def check_levels(levels: Sequence[int]) -> None:
    """ValueError unless there is at least one level, all whole numbers from 2 on, and the codes fit 63 bits."""
    whole = all(isinstance(level, int) and not isinstance(level, bool) and level >= 2 for level in levels)
    if not len(levels) or not whole:
        raise ValueError(f"levels must be whole numbers of at least 2, got {list(levels)}")
    if math.prod(levels) >= 2**63:
        raise ValueError(f"levels {list(levels)} have more codes than fit 63 bits; use several codebooks")
