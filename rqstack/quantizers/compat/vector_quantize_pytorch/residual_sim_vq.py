"""Residual SimVQ with the signature of vector-quantize-pytorch 1.32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.module_list import ModuleList
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_levels import ResidualLevels
from rqstack.quantizers.compat.vector_quantize_pytorch.sim_vq import SimVQ


@checks_settings
class ResidualSimVQ(ResidualLevels):
    """`num_quantizers` SimVQ levels, each on what the levels before it left over.

    Further keywords go to every `SimVQ`. Zeghidour et al., SoundStream, arXiv 2107.03312, Algorithm 1.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int,
        codebook_size: int,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        channel_first: bool = False,
        rotation_trick: bool = True,
        **sim_vq_kwargs: Any,
    ):
        super().__init__()
        check_sizes(dim=dim, num_quantizers=num_quantizers, codebook_size=codebook_size, heads=heads)
        require(heads == 1, f"heads must be 1 in a residual quantizer, got {heads}")
        self.channel_first, self.num_quantizers = channel_first, num_quantizers
        options: dict[str, Any] = {"channel_first": channel_first, "rotation_trick": rotation_trick, **sim_vq_kwargs}
        self.layers = ModuleList(SimVQ(dim=dim, codebook_size=codebook_size, **options) for _ in range(num_quantizers))
        self._set_dropout(quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)

    @property
    def codebook_size(self) -> int:
        """K of every level."""
        return self.layers[0].codebook_size

    @property
    def codebook_dim(self) -> int:
        """Size of a code vector."""
        return self.layers[0].codebook_dim

    @property
    def codebooks(self) -> Tensor:
        """The code vectors of all levels (q, K, dim)."""
        return torch.stack([layer.codebook for layer in self.layers])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> code vectors of every level (q, B, ..., dim) or channel-first.

        -1 stands for a dropped level and decodes to zero; fewer levels than there are need `quantize_dropout`.
        """
        indices = self._all_levels(indices)
        kept = (indices >= 0).movedim(-1, 0)
        parts = [
            F.embedding(level.clamp(min=0), layer.codebook)
            for level, layer in zip(indices.unbind(-1), self.layers, strict=True)
        ]
        codes = torch.where(kept[..., None], torch.stack(parts), 0.0)
        return codes.movedim(-1, 2) if self.channel_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """The sum of the code vectors of all levels."""
        return self.get_codes_from_indices(indices).sum(0)

    def forward(
        self, x: Tensor, return_all_codes: bool = False, rand_quantize_dropout_fixed_seed: int | None = None
    ) -> tuple[Tensor, ...]:
        """(quantized like x, indices (B, ..., q), losses (q,)), and all codes (q, B, ...) if asked for."""
        last = self._last_level(x.device, rand_quantize_dropout_fixed_seed)
        residual = x.to(torch.promote_types(x.dtype, torch.float32))
        total = torch.zeros_like(residual)
        indices, losses = [], []
        for layer in self.layers[: last + 1]:
            quantized, level_indices, loss = layer(residual)
            residual, total = residual - quantized.detach(), total + quantized
            indices.append(level_indices)
            losses.append(loss)
        results = (total.to(x.dtype), *self._with_dropped(indices, losses))
        return (*results, self.get_codes_from_indices(results[1])) if return_all_codes else results
