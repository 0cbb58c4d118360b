"""Multi-scale quantization with the signature of vector-quantize-pytorch 1.32.

Legend: B batch, C channels, "..." grid of 1 to 3 dims.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.map_scales import BlendedConv, conv_of_scale, pool_to, resize_to, scale_shapes
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_dropout import draw_seed
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_levels import added_up
from rqstack.quantizers.compat.vector_quantize_pytorch.token_layout import mask_of_samples
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from rqstack.quantizers.wrappers.layout import mask_from_lengths


@checks_settings
class HierarchicalVQ(nn.Module):
    """Every level quantizes the residual of the levels before it on its own, ever finer grid (`scales`).

    The code vectors are interpolated to the grid of the input and go through a convolution blended in by `quant_resi`;
    `share_quant_resi` 1: one convolution for all levels, 0 or less: one each, otherwise so many, spread evenly. Inputs
    are sequences, images (accept_image_fmap) or videos (accept_3d_fmap). nested_dropout: probability that a training
    forward returns only the first levels, at least `nested_dropout_min_levels`. Other keywords: `VectorQuantize`.
    Tian et al., Visual Autoregressive Modeling, arXiv 2404.02905, Algorithms 1 and 2.
    """

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int | tuple[int, ...],
        scales: Sequence[int | Sequence[int]],
        shared_codebook: bool = True,
        channel_first: bool = True,
        sync_codebook: bool | None = None,
        decay: float = 0.99,
        commitment_weight: float = 1.0,
        rotation_trick: bool = False,
        kmeans_init: bool = True,
        kmeans_iters: int = 10,
        threshold_ema_dead_code: float = 2,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 0.1,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_max_codes: int = 128,
        orthogonal_reg_active_codes_only: bool = False,
        quant_resi: float = 0.5,
        share_quant_resi: int = 1,
        nested_dropout: float = 0.0,
        nested_dropout_min_levels: int = 1,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
    ):
        super().__init__()
        require(not (accept_image_fmap and accept_3d_fmap), "choose one of accept_image_fmap and accept_3d_fmap")
        require(0 <= nested_dropout <= 1, f"nested_dropout must be in [0, 1], got {nested_dropout}")
        require(
            nested_dropout_min_levels >= 1,
            f"nested_dropout_min_levels must be at least 1, got {nested_dropout_min_levels}",
        )
        self.spatial_dims = 2 if accept_image_fmap else 3 if accept_3d_fmap else 1
        self.dim, self.channel_first = dim, channel_first
        self.scales, self.level_shapes = tuple(scales), scale_shapes(scales, self.spatial_dims)
        self.num_levels = levels = len(self.level_shapes)
        self.codebook_sizes = (codebook_size,) * levels if isinstance(codebook_size, int) else tuple(codebook_size)
        given = len(self.codebook_sizes)
        require(given == levels, f"codebook_size: {given} codebook sizes for {levels} scales")
        self.nested_dropout, self.nested_dropout_min_levels = nested_dropout, nested_dropout_min_levels
        options: dict[str, Any] = {
            "dim": dim,
            "decay": decay,
            "commitment_weight": commitment_weight,
            "rotation_trick": rotation_trick,
            "kmeans_init": kmeans_init,
            "kmeans_iters": kmeans_iters,
            "threshold_ema_dead_code": threshold_ema_dead_code,
            "stochastic_sample_codes": stochastic_sample_codes,
            "sample_codebook_temp": sample_codebook_temp,
            "orthogonal_reg_weight": orthogonal_reg_weight,
            "orthogonal_reg_max_codes": orthogonal_reg_max_codes,
            "orthogonal_reg_active_codes_only": orthogonal_reg_active_codes_only,
            "sync_codebook": sync_codebook,
        }
        self._build_quantizers(shared_codebook, options)
        self._build_convolutions(quant_resi, int(share_quant_resi))

    def _build_quantizers(self, shared: bool, options: dict[str, Any]) -> None:
        sizes = self.codebook_sizes
        require(not shared or len(set(sizes)) == 1, f"a shared codebook has one size, got {sizes}")
        self.vq = VectorQuantize(codebook_size=sizes[0], **options) if shared else None
        self.vqs = None if shared else ModuleList(VectorQuantize(codebook_size=size, **options) for size in sizes)

    def _build_convolutions(self, ratio: float, number: int) -> None:
        number = self.num_levels if number <= 0 else min(self.num_levels, number)
        convs = [BlendedConv(self.dim, self.spatial_dims, ratio) for _ in range(number)]
        one = number == 1 and self.num_levels > 0
        self.phi_shared = convs[0] if one else None
        self.phi_levels = None if one else ModuleList(convs)

    def get_vq(self, level_index: int) -> VectorQuantize:
        """The quantizer of a level."""
        if self.vq is not None:
            return self.vq
        assert self.vqs is not None
        return self.vqs[level_index]

    def choose_phi(self, level_index: int) -> BlendedConv:
        """The convolution of a level."""
        if self.phi_shared is not None:
            return self.phi_shared
        assert self.phi_levels is not None
        return self.phi_levels[conv_of_scale(level_index, self.num_levels, len(self.phi_levels))]

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        sample_codebook_temp: float | None = None,
        return_cutoff: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, ...] | int | None, ...]:
        """(reconstruction like x, a tuple of indices (B, *scale) per level, mean loss of the levels kept).

        mask (B, ...) or, for sequences, lens (B,): positions outside take no part and are 0; indices of cells without
        any position are -1. return_cutoff: a fourth entry, the last level kept, or None when all are.
        """
        require(indices is None, "indices are decoded by get_output_from_indices")
        features = x if self.channel_first else x.movedim(-1, 1)
        require(
            features.ndim == self.spatial_dims + 2 and features.shape[1] == self.dim,
            f"input must have {self.dim} channels and {self.spatial_dims} grid dims, got {tuple(x.shape)}",
        )
        grid = features.shape[2:]
        mask = self._mask(mask, lens, grid)
        options = {} if sample_codebook_temp is None else {"sample_codebook_temp": sample_codebook_temp}
        with full_precision(x.device):
            sums, codes, losses = self._quantize(features.float(), mask, options)
            cutoff = self._cutoff(x.device)
            kept = slice(None if cutoff is None else cutoff + 1)
            output = sums[kept][-1] if mask is None else torch.where(mask[:, None], sums[kept][-1], 0.0)
            output = (output if self.channel_first else output.movedim(1, -1)).to(x.dtype)
        results = (output, tuple(codes), torch.stack(losses[kept]).mean())
        return (*results, cutoff) if return_cutoff else results

    def get_output_from_indices(
        self, indices: Sequence[Tensor], full_shape: int | Sequence[int] | None = None
    ) -> Tensor:
        """Indices of all levels -> the reconstruction on `full_shape`, by default the finest scale; -1 counts as 0."""
        require(len(indices) == self.num_levels, f"indices of {len(indices)} levels; there are {self.num_levels}")
        grid = self.level_shapes[-1] if full_shape is None else scale_shapes([full_shape], self.spatial_dims)[0]
        parts = []
        with full_precision(indices[0].device):
            for level, codes in enumerate(indices):
                flat = codes.flatten(1)
                vectors = self.get_vq(level).get_output_from_indices(flat.clamp(min=0))
                vectors = torch.where(flat[..., None] >= 0, vectors, 0.0)
                parts.append(self._to_grid(vectors, level, grid))
            output = added_up(parts)
        return output if self.channel_first else output.movedim(1, -1)

    def _quantize(
        self, features: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The sums up to each level (B, C, ...), the indices and the losses of all levels."""
        total, sums, codes, losses = torch.zeros_like(features), [], [], []
        for level, shape in enumerate(self.level_shapes):
            pooled, counted = pool_to(features - total, shape, mask)
            counted = None if counted is None else counted.flatten(1)
            vectors, indices, loss = self.get_vq(level)(pooled.flatten(2).movedim(1, -1), mask=counted, **options)
            total = total + self._to_grid(vectors, level, features.shape[2:])
            sums.append(total)
            codes.append(indices.unflatten(1, shape))
            losses.append(loss)
        return sums, codes, losses

    def _to_grid(self, vectors_BNC: Tensor, level: int, grid: Sequence[int]) -> Tensor:
        on_scale = vectors_BNC.movedim(-1, 1).unflatten(2, self.level_shapes[level])
        blended: Tensor = self.choose_phi(level)(resize_to(on_scale, grid))
        return blended

    def _mask(self, mask: Tensor | None, lens: Tensor | None, grid: torch.Size) -> Tensor | None:
        require(mask is None or lens is None, "give mask or lens, not both")
        if lens is not None:
            require(self.spatial_dims == 1, "lens is for sequences")
            return mask_from_lengths(lens, grid[0])
        mask = None if mask is None else mask_of_samples(mask, grid)
        require(mask is None or mask.shape[1:] == grid, f"mask must have the grid {tuple(grid)} of the input")
        return mask

    def _cutoff(self, device: torch.device) -> int | None:
        """The last level that this training forward keeps, or None for all."""
        fewest = self.nested_dropout_min_levels
        if not self.training or self.nested_dropout <= 0 or fewest >= self.num_levels:
            return None
        draw = random.Random(draw_seed(device))
        return None if draw.random() >= self.nested_dropout else draw.randrange(fewest - 1, self.num_levels - 1)
