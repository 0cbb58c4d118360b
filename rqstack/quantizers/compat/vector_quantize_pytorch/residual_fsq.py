"""Residual FSQ with the signature of vector-quantize-pytorch 1.32.

Legend: B batch, M vectors, C scalars of a code vector, q levels, K codes of a level, g groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.mixed_radix import scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.channel_order import channels_back, channels_last
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import UsageError, check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project, projection_pair
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_levels import (
    GroupedLevels,
    ResidualLevels,
    added_up,
    all_level_vectors,
)


@checks_settings
class ResidualFSQ(KeepsFloat32, ResidualLevels):
    """FSQ levels on ever finer grids, each on what those before it left; `forward` returns (quantized, indices).

    Input (B, ..., dim), indices (B, ..., q) int32, or int64 with -1 where quantize dropout left a level out. With
    `is_channel_first` both have their last dim second, and the decoding methods read indices in that order too.
    Further keywords go to every `FSQ`.
    """

    drops_without_gradients = False

    scales: Tensor
    soft_clamp_input_value: Tensor | None

    def __init__(
        self,
        *,
        levels: Sequence[int],
        num_quantizers: int,
        dim: int | None = None,
        is_channel_first: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | Sequence[float] | Tensor | None = None,
        bound_hard_clamp: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        check_sizes(levels=levels, num_quantizers=num_quantizers, dim=dim)
        code_dim = len(levels)
        dim = code_dim if dim is None else dim
        require(
            not bound_hard_clamp or soft_clamp_input_value is None,
            "bound_hard_clamp sets soft_clamp_input_value",
        )
        self.dim, self.levels, self.num_quantizers = dim, levels, num_quantizers
        self.has_projections, self.is_channel_first = dim != code_dim, is_channel_first
        self.project_in, self.project_out = projection_pair(dim, code_dim, self.has_projections)
        options: dict[str, Any] = {"preserve_symmetry": True, "bound_hard_clamp": bound_hard_clamp, **kwargs}
        self.layers = ModuleList(FSQ(levels=levels, dim=code_dim, **options) for _ in range(num_quantizers))
        self.codebook_size = self.layers[0].codebook_size
        self._set_dropout(quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)
        levels_C = torch.tensor(levels).float()
        self.register_buffer(
            "scales", torch.stack([levels_C**-level for level in range(num_quantizers)]), persistent=False
        )
        clamp = 1 + 1 / (levels_C - 1) if bound_hard_clamp else soft_clamp_input_value
        clamp = clamp if clamp is None else torch.as_tensor(clamp, dtype=torch.float32)
        self.register_buffer("soft_clamp_input_value", clamp, persistent=False)

    @property
    def codebooks(self) -> Tensor:
        """The code vectors of all levels (q, K, C), each on the scale of the first."""
        return torch.stack([layer.implicit_codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices -> the code vector of every level (q, B, ..., C); those of index -1 are zero."""
        last = indices.movedim(1, -1) if self.is_channel_first else indices
        vectors = all_level_vectors(self._all_levels(last), self.layers)
        return torch.stack([v * scale for v, scale in zip(vectors, self.scales, strict=True)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices -> what `forward` returned with them, in the same layout."""
        with full_precision(indices.device):
            out = project(self.project_out, added_up(self.get_codes_from_indices(indices)))
        return channels_back(out, self.is_channel_first)

    def forward(
        self, x: Tensor, return_all_codes: bool = False, rand_quantize_dropout_fixed_seed: int | None = None
    ) -> tuple[Tensor, ...]:
        """(quantized like x, indices), and the code vectors of `get_codes_from_indices` if asked for."""
        last = self._last_level(x.device, rand_quantize_dropout_fixed_seed)
        rows = channels_last(x, self.is_channel_first, self.dim)
        with full_precision(x.device):
            residual_CM = scalars_first(self._clamped(project(self.project_in, rows)))
            total_CM: Tensor | None = None
            found: list[Tensor] = []
            for layer, scale_C1 in zip(self.layers[: last + 1], self.scales[..., None]):
                quantized_CM, level_indices = layer.quantize_scalars(residual_CM / scale_C1)
                quantized_CM = quantized_CM * scale_C1
                residual_CM = residual_CM - quantized_CM.detach()
                total_CM = quantized_CM if total_CM is None else total_CM + quantized_CM
                if level_indices is None:
                    raise UsageError("the levels of a residual quantizer return indices: return_indices must be True")
                found.append(level_indices)
            assert total_CM is not None
            out = project(self.project_out, scalars_last(total_CM, total_CM.shape[1:]))
            out = out.view(*rows.shape[:-1], self.dim).to(x.dtype)
        found += [torch.full_like(found[0], -1, dtype=torch.int64)] * (self.num_quantizers - len(found))
        indices = torch.stack(found, -1).view(*rows.shape[:-1], self.num_quantizers)
        results = tuple(channels_back(value, self.is_channel_first) for value in (out, indices))
        return (*results, self.get_codes_from_indices(results[1])) if return_all_codes else results

    def _clamped(self, x: Tensor) -> Tensor:
        clamp = self.soft_clamp_input_value
        return x if clamp is None else (x / clamp).tanh() * clamp


@checks_settings
class GroupedResidualFSQ(GroupedLevels[ResidualFSQ]):
    """Channels split evenly over residual FSQs; indices are (g, B, ..., q). Further keywords go to `ResidualFSQ`.

    accept_image_fmap: the channels come second.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any):
        def make(size: int) -> ResidualFSQ:
            return ResidualFSQ(dim=size, **kwargs)

        super().__init__(dim, groups, accept_image_fmap, make, kwargs.get("is_channel_first", False))
        self.codebook_size = self.rvqs[0].codebook_size

    def forward(self, x: Tensor, return_all_codes: bool = False) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """(quantized like x, indices), and a tuple of the groups' code vectors (q, B, ..., C) if asked for."""
        results = self._forward_groups(x, return_all_codes=return_all_codes)
        quantized, indices, *codes = zip(*results)
        return (self._joined(quantized), torch.stack(indices), *codes)
