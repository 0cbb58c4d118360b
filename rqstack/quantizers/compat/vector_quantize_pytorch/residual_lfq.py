"""Residual LFQ with the signature of vector-quantize-pytorch 1.32.

Legend: B batch, n positions, C bits of a code, q levels, K codes of a level, g groups.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project, projection_pair
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_levels import (
    GroupedLevels,
    ResidualLevels,
    added_up,
    all_level_vectors,
)


@checks_settings
class ResidualLFQ(ResidualLevels):
    """LFQ levels whose scale halves, each on what those before it left; `forward` returns (quantized, indices, losses).

    Input (B, ..., dim), int64 indices (B, ..., q) with -1 where quantize dropout left a level out, losses (q,).
    Further keywords go to every `LFQ`.
    """

    drops_without_gradients = False

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        soft_clamp_input_value: float | None = None,
        **kwargs: Any,
    ):
        super().__init__()
        check_sizes(dim=dim, num_quantizers=num_quantizers, codebook_size=codebook_size)
        bits = int(math.log2(codebook_size))
        self.dim, self.num_quantizers, self.has_projections = dim, num_quantizers, bits != dim
        self.project_in, self.project_out = projection_pair(dim, bits, self.has_projections)
        clamp = soft_clamp_input_value
        self.layers = ModuleList(
            LFQ(
                dim=bits,
                codebook_scale=2.0**-level,
                soft_clamp_input_value=None if clamp is None else clamp * 0.5**level,
                **kwargs,
            )
            for level in range(num_quantizers)
        )
        self._set_dropout(quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)

    @property
    def codebooks(self) -> Tensor:
        """The codes of all levels as +scale and -scale (q, K, C)."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> the code vector of every level (q, B, ..., C); those of index -1 are zero."""
        return torch.stack(all_level_vectors(self._all_levels(indices), self.layers))

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> what `forward` returned with them (B, ..., dim)."""
        with full_precision(indices.device):
            return project(self.project_out, added_up(self.get_codes_from_indices(indices)))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        return_all_codes: bool = False,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """(quantized like x, indices, losses), and the code vectors of `get_codes_from_indices` if asked for."""
        require(x.shape[-1] == self.dim, f"vectors have {x.shape[-1]} channels, the quantizer takes {self.dim}")
        last = self._last_level(x.device, rand_quantize_dropout_fixed_seed)
        with full_precision(x.device):
            residual = project(self.project_in, x)
            residual = residual.float().flatten(1, -2) if x.ndim > 2 else residual.float()[:, None]
            total, found, losses = torch.zeros_like(residual), [], []
            for layer in self.layers[: last + 1]:
                quantized, level_indices, loss = layer(residual, mask=mask)
                residual, total = residual - quantized.detach(), total + quantized
                found.append(level_indices)
                losses.append(loss)
            out = project(self.project_out, total).view(*x.shape).to(x.dtype)
        indices, loss = self._with_dropped(found, losses)
        indices = indices.view(*x.shape[:-1], self.num_quantizers)
        results = (out, indices, loss)
        return (*results, self.get_codes_from_indices(indices)) if return_all_codes else results


@checks_settings
class GroupedResidualLFQ(GroupedLevels[ResidualLFQ]):
    """Channels split evenly over residual LFQs; indices are (g, B, ..., q), losses (g, q).

    accept_image_fmap: the channels come second. Further keywords go to `ResidualLFQ`.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any):
        def make(size: int) -> ResidualLFQ:
            return ResidualLFQ(dim=size, **kwargs)

        super().__init__(dim, groups, accept_image_fmap, make, moved=False)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, return_all_codes: bool = False
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """(quantized like x, indices, losses), and a tuple of the groups' code vectors if asked for."""
        results = self._forward_groups(x, mask=mask, return_all_codes=return_all_codes)
        quantized, indices, losses, *codes = zip(*results)
        return (self._joined(quantized), torch.stack(indices), torch.stack(losses), *codes)
