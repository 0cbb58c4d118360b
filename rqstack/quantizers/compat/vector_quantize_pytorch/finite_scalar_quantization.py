"""Finite scalar quantization with the signature of vector-quantize-pytorch 1.32; the arithmetic is `ScalarGrid`.

Legend: B batch, N rows, c codebooks side by side, C scalars of a code vector, M = N x c, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic.mixed_radix import scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.channel_order import (
    MAP_DIMS,
    channels_back,
    channels_last,
    index_type,
)
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_numbers import LevelNumbers
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project, projection_pair
from rqstack.quantizers.methods.finite_scalar import MARGIN, ScalarGrid


@checks_settings
class FSQ(KeepsFloat32, LevelNumbers):
    """Rounds every scalar to one of a few values; `forward` returns (quantized like the input, int32 indices).

    Sequences are (B, n, dim), or (B, dim, n) with `channel_first`; images and video (B, dim, ...). Indices have the
    shape of the input without channels, with the codebooks last where there are several. Half precision is raised to
    fp32 inside; fp64 stays if it is among `allowed_dtypes`.
    """

    orthogonal_rot: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        scale: float | None = None,
        allowed_dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64),
        channel_first: bool = False,
        projection_has_bias: bool = True,
        return_indices: bool = True,
        force_quantization_f32: bool = True,
        preserve_symmetry: bool = False,
        noise_dropout: float = 0.0,
        bound_hard_clamp: bool = False,
        orthogonal_rotation: bool = False,
    ):
        super().__init__()
        check_sizes(levels=levels, dim=dim, num_codebooks=num_codebooks)
        levels = [int(level) for level in levels]
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        require(preserve_symmetry or 2 not in levels, f"levels {levels} contain 2, which needs preserve_symmetry=True")
        require(preserve_symmetry or noise_dropout == 0, "noise_dropout needs preserve_symmetry=True")
        require(keep or num_codebooks == 1, "several codebooks need keep_num_codebooks_dim=True")
        self.scale, self.preserve_symmetry, self.noise_dropout = scale, preserve_symmetry, noise_dropout
        self.bound_hard_clamp, self.force_quantization_f32 = bound_hard_clamp, force_quantization_f32
        self.allowed_dtypes, self.return_indices, self.channel_first = allowed_dtypes, return_indices, channel_first
        self.num_codebooks, self.keep_num_codebooks_dim = num_codebooks, keep
        self.codebook_dim, self.codebook_size = len(levels), math.prod(levels)
        self.effective_codebook_dim = inner = len(levels) * num_codebooks
        self.dim = inner if dim is None else dim
        self.has_projections = self.dim != inner
        pair = projection_pair(self.dim, inner, self.has_projections, projection_has_bias)
        self.project_in, self.project_out = pair
        bound = "hard_tanh" if bound_hard_clamp else "tanh"
        self.grid = ScalarGrid(levels, preserve_symmetry, bound, counted=return_indices)
        self.orthogonal_rotation = orthogonal_rotation
        if orthogonal_rotation:
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(len(levels), len(levels))))

    @property
    def implicit_codebook(self) -> Tensor:
        """All code vectors (K, C), made on request."""
        codes_K = torch.arange(self.codebook_size, device=self.grid.levels.device)
        return scalars_last(self._values(codes_K), codes_K.shape)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Quantize z; indices are None with `return_indices=False`."""
        first = z.ndim >= MAP_DIMS or self.channel_first
        x = channels_last(z, first, self.dim)
        shape = (*x.shape[:-1], self.num_codebooks)
        with full_precision(z.device):
            x = project(self.project_in, x)
            x = (x if x.dtype in self.allowed_dtypes else x.float()).reshape(-1, self.num_codebooks, self.codebook_dim)
            vectors_CM, indices = self.quantize_scalars(scalars_first(x))
            vectors = scalars_last(vectors_CM, x.shape[:2]).flatten(1)
            out = project(self.project_out, vectors).view(*shape[:-1], self.dim).to(z.dtype)
            indices = None if indices is None else indices.view(shape)
        if indices is not None and not self.keep_num_codebooks_dim:
            indices = indices[..., 0]
        return channels_back(out, first), indices

    def quantize_scalars(self, x_CM: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scalars first, not projected -> code vectors (C, M), rotated, and indices (M,), None without."""
        if self.orthogonal_rotation:
            x_CM = self.orthogonal_rot.to(x_CM.dtype).T @ x_CM
        vectors_CM, digits_CM = self.grid.nearest(x_CM)
        indices_M = self._indices(digits_CM) if self.return_indices else None
        vectors_CM = self.maybe_apply_noise(vectors_CM.T).T
        if self.orthogonal_rotation:
            vectors_CM = self.orthogonal_rot.to(x_CM.dtype) @ vectors_CM
        return vectors_CM, indices_M

    def quantize(self, z: Tensor) -> Tensor:
        """Scalars (..., C), not projected -> their values, with the gradient of the bound."""
        return _rounded(z, self.grid)

    def bound(self, z: Tensor, eps: float = MARGIN, hard_clamp: bool = False) -> Tensor:
        """`quantize` on the grid that is not symmetric. eps: the margin of the bound; hard_clamp: straight lines in the
        place of tanh."""
        return _rounded(z, self._other_grid(False, hard_clamp, eps))

    def symmetry_preserving_bound(self, z: Tensor, hard_clamp: bool = False) -> Tensor:
        """`quantize` on the symmetric grid."""
        return _rounded(z, self._other_grid(True, hard_clamp))

    def _other_grid(self, symmetric: bool, hard_clamp: bool, margin: float = MARGIN) -> ScalarGrid:
        bound = "hard_tanh" if hard_clamp else "tanh"
        return ScalarGrid(self._levels.tolist(), symmetric, bound, False, margin).to(self._levels.device)

    def maybe_apply_noise(self, bounded_z: Tensor) -> Tensor:
        """In train mode a share of `noise_dropout` of the values (..., C) is moved by up to 1/2, within [-1, 1]."""
        if not self.training or self.noise_dropout == 0:
            return bounded_z
        values = bounded_z.contiguous()
        moved = torch.full_like(values, self.noise_dropout).bernoulli_().bool()
        offset = torch.rand_like(values) - 0.5
        return torch.where(moved, values + offset, values).clamp(-1, 1)

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Values (..., C) -> int32 indices (...)."""
        require(zhat.shape[-1] == self.codebook_dim, f"codes have {zhat.shape[-1]} scalars of {self.codebook_dim}")
        digits_CM = self.grid.digits_of_values(scalars_first(zhat))
        return self._indices(digits_CM).view(zhat.shape[:-1])

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Indices (...) -> the number of the value of every scalar (..., C), of the same type."""
        return scalars_last(self.grid.digits(indices.reshape(-1).long()), indices.shape).to(indices.dtype)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices -> what `forward` returned with them, in the same layout."""
        first = self.channel_first or indices.ndim >= MAP_DIMS - 1 + int(self.keep_num_codebooks_dim)
        with full_precision(indices.device):
            vectors = self.indices_to_vectors(indices if self.keep_num_codebooks_dim else indices[..., None])
            out = project(self.project_out, vectors.reshape(-1, self.effective_codebook_dim))
        return channels_back(out.view(*vectors.shape[:-2], self.dim), first)

    def indices_to_vectors(self, indices: Tensor) -> Tensor:
        """Indices (...) of one codebook -> code vectors (..., C), rotated but not projected."""
        values_CM = self._values(indices)
        values_CM = self.orthogonal_rot @ values_CM if self.orthogonal_rotation else values_CM
        return scalars_last(values_CM, indices.shape)

    def _values(self, indices: Tensor) -> Tensor:
        return self.grid.values(self.grid.digits(indices.reshape(-1).long()))

    def _indices(self, digits_CM: Tensor) -> Tensor:
        return self.grid.codes(digits_CM).to(index_type(self.codebook_size))


def _rounded(z: Tensor, grid: ScalarGrid) -> Tensor:
    """Scalars (..., C) -> the values of the grid, with the gradient of the bound."""
    return scalars_last(grid.nearest(scalars_first(z))[0], z.shape[:-1])
