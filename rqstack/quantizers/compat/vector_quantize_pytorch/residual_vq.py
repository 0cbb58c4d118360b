"""`ResidualVQ` and `GroupedResidualVQ` with the signatures and the behaviour of vector-quantize-pytorch 1.32.

Legend: B batch, N positions, C channels, E code-vector size, K codebook size, q levels, g groups.

What the original does wrong or not at all is listed in docs/migrating.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic.gradient import directional
from rqstack.quantizers.arithmetic.precision import full_precision, without_masked_nonfinite
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import UsageError, check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import input_projection, output_projection, project
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_levels import GroupedLevels, ResidualLevels, added_up
from rqstack.quantizers.compat.vector_quantize_pytorch.token_layout import TokenLayout, mask_of, token_layout
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_level import (
    KnownCodes,
    OwnCodebooks,
    ResidualLevel,
    initialize_levels,
    level_vectors,
    search_codes,
    share_of_gradient,
)
from rqstack.quantizers.methods.neural_codebook import NeuralCodebook

__all__ = ["GroupedResidualVQ", "ResidualVQ"]

DIVEQ_NOISE = 5e-3**0.5


@checks_settings
class ResidualVQ(ResidualLevels):
    """`num_quantizers` VectorQuantize levels, each on what the levels before it left over.

    Further keywords go to every `VectorQuantize`. Zeghidour et al., SoundStream, arXiv 2107.03312, Algorithm 1;
    implicit_neural_codebook: Huijben et al., QINCo, arXiv 2401.14732.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict[str, Any] = {},  # noqa: B006  the signature programs know; never changed
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: list[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        **vq_kwargs: Any,
    ):
        super().__init__()
        check_sizes(
            dim=dim, num_quantizers=num_quantizers, codebook_size=codebook_size, codebook_dim=codebook_dim, heads=heads
        )
        require(heads == 1, f"heads must be 1 in a residual quantizer, got {heads}")
        sizes = _sizes(codebook_size, num_quantizers, shared_codebook)
        self.num_quantizers, self.codebook_sizes = len(sizes), sizes
        self.uniform_codebook_size = len(set(sizes)) == 1
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.has_projections = self.codebook_dim != dim
        self.project_in = input_projection(dim, self.codebook_dim, layernorm=False)
        self.project_out = output_projection(self.codebook_dim, dim)
        self.accept_image_fmap = accept_image_fmap
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.implicit_neural_codebook, self.diveq, self.shared_codebook = (
            implicit_neural_codebook,
            diveq,
            shared_codebook,
        )
        options = dict(vq_kwargs)
        if implicit_neural_codebook:
            options |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            options |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            options |= {"learnable_codebook": True, "ema_update": False, "route_gradients_to_input": False}
            options["commitment_weight"] = 0.0
        self.layers = ModuleList(
            ResidualLevel(dim=self.codebook_dim, codebook_size=size, codebook_dim=self.codebook_dim, **options)
            for size in sizes
        )
        for layer in self.layers[1:] if shared_codebook else ():
            layer._codebook = self.layers[0]._codebook
        self._set_dropout(quantize_dropout, quantize_dropout_cutoff_index, quantize_dropout_multiple_of)
        self._set_beam(beam_size, eval_beam_size, beam_score_quantizer_weights)
        self.vq_is_ema_updating = self.layers[0].ema_update
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.mlps: ModuleList[NeuralCodebook] | tuple[None, ...] = (None,) * (len(sizes) - 1)
        if implicit_neural_codebook:
            network = {{"dim_hidden": "hidden"}.get(name, name): value for name, value in mlp_kwargs.items()}
            self.mlps = ModuleList(
                NeuralCodebook(self.codebook_dim, skip=False, **network) for _ in range(len(sizes) - 1)
            )

    def _set_beam(self, width: int | None, eval_width: int | None, weights: list[float] | None) -> None:
        require(eval_width is None or width is not None, "eval_beam_size needs beam_size")
        weights = [1.0] * self.num_quantizers if weights is None else list(weights)
        require(
            len(weights) == self.num_quantizers and min(weights) >= 0,
            f"beam_score_quantizer_weights needs {self.num_quantizers} numbers, none negative; got {weights}",
        )
        self.beam_size = width
        self.eval_beam_size = width if eval_width is None else eval_width
        self._beam_weights = [float(weight) for weight in weights]
        self.register_buffer("beam_score_weights", torch.tensor(self._beam_weights), persistent=False)

    @property
    def codebook_size(self) -> int:
        """K of the first level."""
        return self.layers[0].codebook_size

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The code vectors of all levels (q, K, E); a tuple of (K, E) where sizes differ."""
        books = tuple(layer.codebook for layer in self.layers)
        return torch.stack(books) if self.uniform_codebook_size else books

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> code vectors of every level (q, B, ..., E), channels last for image maps too.

        -1 stands for a dropped level and decodes to zero; fewer levels than there are need `quantize_dropout`.
        """
        indices = self._all_levels(indices)
        with full_precision(indices.device):
            vectors = level_vectors(self.layers, self._transforms, indices.flatten(0, -2))
        return torch.stack(vectors).view(self.num_quantizers, *indices.shape[:-1], -1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices -> what the eval-mode forward returned with them, in the layout of its input."""
        total = added_up(self.get_codes_from_indices(indices))
        with full_precision(indices.device):
            output = project(self.project_out, total)
        return output.movedim(-1, 1) if self.accept_image_fmap else output

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ) -> tuple[Tensor, ...]:
        """(quantized like x, indices (B, ..., q), losses (q,)), and all codes (q, B, ..., E) if asked for.

        indices: return (quantized, sum of the levels' cross entropies of their scores against them) instead; every
        level is scored on what the given codes of the levels before leave over.
        """
        layout = token_layout(x, self.accept_image_fmap, 2 if self.accept_image_fmap else None)
        mask_BN = mask_of(layout, mask, None, self.accept_image_fmap)
        tokens_BNC = layout.to_tokens(x)
        clean_BNC = tokens_BNC if mask_BN is None else without_masked_nonfinite(tokens_BNC, mask_BN)
        given = None if indices is None else self._checked_indices(indices, layout, mask_BN)
        last = self.num_quantizers - 1
        if given is None:
            last = self._last_level(x.device, rand_quantize_dropout_fixed_seed)
        options: dict[str, Any] = {"mask": mask_BN, "sample_codebook_temp": sample_codebook_temp}
        options["freeze_codebook"] = True if freeze_codebook else None
        with full_precision(x.device):
            space_BNE = project(self.project_in, clean_BNC)
            if given is not None:
                total_BNE, loss = self._score(space_BNE, given, options)
            else:
                known = self._search(space_BNE, mask_BN, last + 1, self._width(beam_size), sample_codebook_temp)
                total_BNE, codes, losses = self._quantize(space_BNE, known, last + 1, options)
            if self.diveq:
                total_BNE = directional(space_BNE, total_BNE, DIVEQ_NOISE)
            output_BNC = project(self.project_out, total_BNE).to(x.dtype)
        if mask_BN is not None:
            outside = torch.zeros_like(output_BNC) if self.return_zeros_for_masked_padding else tokens_BNC
            output_BNC = torch.where(mask_BN[..., None], output_BNC, outside)
        quantized = layout.vectors_back(output_BNC)
        if given is not None:
            return quantized, loss
        result = (quantized, layout.grid_back(codes), losses)
        return (*result, self.get_codes_from_indices(result[1])) if return_all_codes else result

    def warmup_rows(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The vectors (N, E) of an input that are searched and not masked, for `codebook_warmup`."""
        layout = token_layout(x, self.accept_image_fmap, 2 if self.accept_image_fmap else None)
        mask_BN = mask_of(layout, mask, None, self.accept_image_fmap)
        with full_precision(x.device):
            rows_BNE = project(self.project_in, layout.to_tokens(x))
        return rows_BNE.flatten(0, 1) if mask_BN is None else rows_BNE[mask_BN]

    def initialize_codebook(self, x_NE: Tensor, method: str = "kmeans", seed: int = 0) -> None:
        """Set the codebooks from vectors (N, E) of all processes, level by level: 'kmeans', or 'data' (drawn)."""
        initialize_levels(x_NE.float(), self.layers, self._transforms, method, seed)

    @property
    def _transforms(self) -> tuple[NeuralCodebook | None, ...]:
        return (None, *self.mlps)

    def _width(self, beam_size: int | None) -> int:
        default = self.beam_size if self.training else self.eval_beam_size
        return (default if beam_size is None else beam_size) or 1

    def _checked_indices(self, indices: Tensor | list[Tensor], layout: TokenLayout, mask_BN: Tensor | None) -> Tensor:
        """(B, N, q) of a tensor or of a list of its rows."""
        indices = layout.flatten(torch.stack(indices) if isinstance(indices, list) else indices)
        dropped = indices < 0 if mask_BN is None else (indices < 0) & mask_BN[..., None]
        require(not dropped.any(), "indices of dropped levels (-1) have no cross entropy; take those of the eval mode")
        return indices

    def _search(
        self, x_BNE: Tensor, mask_BN: Tensor | None, kept: int, width: int, temp: float | None
    ) -> Tensor | None:
        """The codes (B, N, kept) where levels cannot find theirs one after the other."""
        needs_scores = self.implicit_neural_codebook and self.layers[0]._needs_scores
        if width == 1 and (not self.implicit_neural_codebook or needs_scores):
            return None
        require(not needs_scores, "a beam in training goes with no loss over all scores of an implicit codebook")
        return search_codes(x_BNE, mask_BN, self.layers[:kept], self._transforms, width, self._beam_weights, temp)

    def _quantize(
        self, x_BNE: Tensor, known: Tensor | None, kept: int, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of the first `kept` levels, codes (B, N, q) and losses (q,)."""
        residual, total = x_BNE, torch.zeros_like(x_BNE)
        residuals, codes, losses = [], [], []
        for index, (layer, transform) in enumerate(zip(self.layers[:kept], self._transforms, strict=False)):
            search: KnownCodes | OwnCodebooks | None = None
            if known is not None:
                search = KnownCodes(known[..., index], transform, total)
            elif transform is not None:
                search = OwnCodebooks(transform, total)
            residuals.append(residual.detach())
            quantized, level_codes, loss = layer(residual, codebook_transform_fn=search, **options)
            residual, total = residual - share_of_gradient(quantized, self.quant_grad_frac), total + quantized
            codes.append(level_codes)
            losses.append(loss)
        if self.training and self.shared_codebook and not self._frozen(options):
            self._update_shared(residuals, options["mask"])
        return total, *self._with_dropped(codes, losses)

    def _score(self, x_BNE: Tensor, given: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The sum of what the levels find, and the sum of their cross entropies."""
        forced = level_vectors(self.layers, self._transforms, given.flatten(0, 1))
        residual, found, total = x_BNE, torch.zeros_like(x_BNE), torch.zeros_like(x_BNE)
        residuals, losses = [], []
        for index, (layer, transform) in enumerate(zip(self.layers, self._transforms, strict=True)):
            search = None if transform is None else OwnCodebooks(transform, total)
            residuals.append(residual.detach())
            quantized, loss = layer(residual, indices=given[..., index], codebook_transform_fn=search, **options)
            vectors = forced[index].detach().view_as(residual)
            residual, total, found = residual - vectors, total + vectors, found + quantized
            losses.append(loss)
        if self.training and self.shared_codebook and not self._frozen(options):
            self._update_shared(residuals, options["mask"])
        return found, added_up(losses)

    def _frozen(self, options: dict[str, Any]) -> bool:
        return bool(options["freeze_codebook"] or self.layers[0].freeze_codebook)

    def _update_shared(self, residuals: list[Tensor], mask_BN: Tensor | None) -> None:
        """What the levels have gathered takes effect once; unused codes become residuals of any level."""
        first = self.layers[0]
        if self.vq_is_ema_updating:
            first._codebook.update_ema()
        first.update_in_place_optimizer()
        if first._codebook.has_dead_code_replacement:
            rows = torch.stack(residuals, -2).flatten(1, 2)
            valid = None if mask_BN is None else mask_BN.repeat_interleave(len(residuals), 1)
            first._codebook.expire_codes_(rows, valid)


def _sizes(codebook_size: int | tuple[int, ...], num_quantizers: int | None, shared: bool) -> tuple[int, ...]:
    if isinstance(codebook_size, tuple):
        sizes = codebook_size
    elif num_quantizers is None:
        raise UsageError("give num_quantizers, or a tuple of codebook sizes")
    else:
        sizes = (codebook_size,) * num_quantizers
    require(
        num_quantizers in (None, len(sizes)), f"num_quantizers is {num_quantizers}, but there are {len(sizes)} sizes"
    )
    require(not shared or len(set(sizes)) == 1, f"a shared codebook needs one size, got {sizes}")
    return sizes


@checks_settings
class GroupedResidualVQ(GroupedLevels[ResidualVQ]):
    """A `ResidualVQ` for every equal share of the channels. Yang et al., HiFi-Codec, arXiv 2305.02765."""

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs: Any):
        def make(size: int) -> ResidualVQ:
            return ResidualVQ(**{"dim": size, "accept_image_fmap": accept_image_fmap, **kwargs})

        super().__init__(dim, groups, accept_image_fmap, make, moved=True)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | Sequence[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
    ) -> tuple[Tensor | tuple[Tensor, ...], ...]:
        """(quantized like x, indices (g, B, ..., q), losses (g, q)), and a tuple over groups of all codes if asked for.

        indices: one entry per group; return (quantized, sum of the cross entropies) instead. All groups drop the same
        levels.
        """
        require(
            x.shape[self.split_dim] == self.dim,
            f"x has {x.shape[self.split_dim]} channels; the quantizer takes {self.dim}",
        )
        given = [None] * self.groups if indices is None or len(indices) == 0 else list(indices)
        require(len(given) == self.groups, f"indices have {len(given)} groups of {self.groups}")
        outputs = self._forward_groups(
            x,
            [{"indices": part} for part in given],
            mask=mask,
            return_all_codes=return_all_codes,
            sample_codebook_temp=sample_codebook_temp,
            freeze_codebook=freeze_codebook,
        )
        parts, *others = zip(*outputs, strict=True)
        quantized = self._joined(parts)
        if given[0] is not None:
            return quantized, added_up(others[0])
        codes, losses, *all_codes = others
        return (quantized, torch.stack(codes), torch.stack(losses), *all_codes)
