"""`VectorQuantize` with the signature and the behaviour of vector-quantize-pytorch 1.32.

Legend: B batch, N positions, C channels, X codebooks side by side, R rows (positions times the heads that share a
codebook), E code-vector size, K codebook size, H heads, T best codes.

Rows of separate codebooks are (H, B * N, E); those of one codebook are (1, B * N * H, E), with the heads of a position
next to each other. What the original does wrong or not at all is listed in docs/migrating.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from rqstack.quantizers.arithmetic import gradient, sync
from rqstack.quantizers.arithmetic.precision import full_precision, without_masked_nonfinite
from rqstack.quantizers.codebooks.alternating import codebook_gradients
from rqstack.quantizers.compat.vector_quantize_pytorch import vector_losses
from rqstack.quantizers.compat.vector_quantize_pytorch.codebook_access import CodebookAccess
from rqstack.quantizers.compat.vector_quantize_pytorch.ema_codebook import Codebook, StepWeight
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.look_up import Found
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import input_projection, output_projection, project
from rqstack.quantizers.compat.vector_quantize_pytorch.settings import check_vector_settings
from rqstack.quantizers.compat.vector_quantize_pytorch.token_layout import TokenLayout, mask_of
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_losses import LossBreakdown

__all__ = ["Codebook", "LossBreakdown", "VectorQuantize"]


@checks_settings
class VectorQuantize(CodebookAccess):
    """Nearest code vector of every vector; see docs/migrating.md for what each setting is in the core."""

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: Callable[[Tensor], Tensor] | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[..., Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
    ):
        super().__init__()
        check_sizes(dim=dim, codebook_size=codebook_size, codebook_dim=codebook_dim, heads=heads)
        by_gradient = directional_reparam or vq_bridge is not None
        ema_update = not by_gradient if ema_update is None else ema_update
        learnable_codebook = by_gradient if learnable_codebook is None else learnable_codebook
        rotation_trick = not directional_reparam and dim > 1 if rotation_trick is None else rotation_trick
        check_vector_settings(
            straight_through=straight_through,
            rotation_trick=rotation_trick,
            directional_reparam=directional_reparam,
            use_cosine_sim=use_cosine_sim,
            learnable_codebook=learnable_codebook,
            ema_update=ema_update,
            vq_bridge=vq_bridge,
            threshold_ema_dead_code=threshold_ema_dead_code,
            sync_update_v=sync_update_v,
            affine_param=affine_param,
        )
        self.dim, self.heads, self.codebook_size, self.eps = dim, heads, codebook_size, eps
        self.separate_codebook_per_head = separate_codebook_per_head
        codebook_dim = dim if codebook_dim is None else codebook_dim
        inner = codebook_dim * heads
        self.has_projections = inner != dim
        self.project_in = input_projection(dim, inner, layernorm_after_project_in)
        self.project_out = output_projection(inner, dim)
        self.commitment_weight = commitment_weight
        self.has_commitment_loss = commitment_weight > 0 and not directional_reparam
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.learnable_codebook = learnable_codebook
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.has_codebook_diversity_loss = codebook_diversity_loss_weight > 0
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.codebook_diversity_temperature = codebook_diversity_temperature
        self.rotation_trick, self.directional_reparam = rotation_trick, directional_reparam
        self.directional_reparam_variance = directional_reparam_variance
        self.route_gradients_to_input = route_gradients_to_input
        self.sync_update_v = sync_update_v
        self.use_cosine_sim = use_cosine_sim
        self._codebook = Codebook(
            codebook_dim,
            codebook_size,
            num_codebooks=heads if separate_codebook_per_head else 1,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            sync_kmeans=sync_kmeans,
            decay=decay,
            eps=eps,
            threshold_ema_dead_code=threshold_ema_dead_code,
            use_ddp=sync_codebook,
            learnable_codebook=self.has_codebook_orthogonal_loss or learnable_codebook,
            stochastic=stochastic_sample_codes,
            straight_through=straight_through,
            sample_codebook_temp=sample_codebook_temp,
            ema_update=ema_update,
            manual_ema_update=manual_ema_update,
            affine_param=affine_param,
            sync_affine_param=sync_affine_param,
            affine_param_batch_decay=affine_param_batch_decay,
            affine_param_codebook_decay=affine_param_codebook_decay,
            use_cosine_sim=use_cosine_sim,
            vq_bridge=vq_bridge,
        )
        make_optimizer, parameters = in_place_codebook_optimizer, list(self._codebook.parameters())
        require(make_optimizer is None or bool(parameters), "in_place_codebook_optimizer needs learnable_codebook=True")
        self.in_place_codebook_optimizer = make_optimizer and make_optimizer(parameters)
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update
        self.accept_image_fmap, self.accept_3d_fmap = accept_image_fmap, accept_3d_fmap
        self.channel_last = channel_last
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.freeze_codebook = freeze_codebook
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable[[Tensor], Tensor] | None = None,
        ema_update_weight: StepWeight | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> tuple[Tensor | LossBreakdown, ...]:
        """(quantized, indices, loss), with the loss terms as a fourth entry on request.

        indices: return (quantized, cross entropy of the scores against them) instead; -1 does not count.
        topk: that many codes of every vector, best first, in a dim of their own (the loss too).
        """
        topk = self._checked_topk(topk)
        frozen = self.freeze_codebook if freeze_codebook is None else freeze_codebook
        layout = self._layout(x)
        mask_BN = mask_of(layout, mask, lens, self._is_map)
        tokens_BNC = layout.to_tokens(x)
        if mask_BN is not None:
            tokens_BNC = without_masked_nonfinite(tokens_BNC, mask_BN)
        keep_scores = indices is not None or self._needs_scores
        search = dict(temp=sample_codebook_temp, topk=topk, transform=codebook_transform_fn, keep_scores=keep_scores)
        with full_precision(x.device):
            rows_XRE, valid_R = self._rows(tokens_BNC), self._row_mask(mask_BN)
            found = self._look_up(rows_XRE, valid_R, **search)
            in_place = rows_XRE.new_zeros(())
            if self.training and not frozen and topk is None:
                alternates = self.in_place_codebook_optimizer is not None
                if alternates:  # before the moving averages: the gradient is that of the vectors found
                    in_place = self._gather_gradients(rows_XRE, valid_R, found)
                self._learn(rows_XRE, valid_R, found, ema_update_weight, accum_ema_update, ema_update)
                if alternates:
                    if not self.manual_in_place_optimizer_update:
                        self.update_in_place_optimizer()
                    found = self._look_up(rows_XRE, valid_R, **search)
            output_XRE = self._estimate(rows_XRE, found, x.requires_grad, sample_codebook_temp)
            vectors = self._by_token(output_XRE, layout)
            if indices is not None:
                loss = self._cross_entropy(rows_XRE, valid_R, found, layout.flatten(indices))
                return self._beside_cross_entropy(vectors, layout, indices).to(x.dtype), loss
            terms, loss = self._losses(rows_XRE, valid_R, found, frozen, layout, mask_BN)
            tokens = project(self.project_out, vectors.movedim(2, -2).flatten(-2)).to(x.dtype)
        codes = self._by_token(found.codes, layout)
        codes = codes[:, :, 0] if self.heads == 1 else codes
        if mask_BN is not None:
            tokens, codes = self._filled(tokens, codes, mask_BN, layout.to_tokens(x))
        if loss.ndim:
            loss = layout.grid_back(loss)
        result = (layout.vectors_back(tokens), layout.grid_back(codes), loss)
        return (*result, terms._replace(inplace_optimize=in_place)) if return_loss_breakdown else result

    def _checked_topk(self, topk: int | None) -> int | None:
        if topk is None:
            return None
        require(self.heads == 1, "topk is for a single head")
        require(int(topk) > 0, f"topk must be at least 1, got {topk}")
        off = "topk in training does not go with"
        require(not (self.training and self.commitment_use_cross_entropy_loss), f"{off} cross-entropy commitment")
        require(not (self.training and self.in_place_codebook_optimizer), f"{off} an in-place optimizer")
        return min(int(topk), self.codebook_size)

    def _look_up(self, rows_XRE: Tensor, valid_R: Tensor | None, **search: Any) -> Found:
        return self._codebook.look_up(rows_XRE.float(), self._mask_of_books(valid_R), **search)

    @property
    def _needs_scores(self) -> bool:
        losses = self.commitment_use_cross_entropy_loss or self.has_codebook_diversity_loss
        return self.training and (losses or self._codebook.straight_through)

    def _learn(
        self,
        rows_XRE: Tensor,
        valid_R: Tensor | None,
        found: Found,
        weight: StepWeight | None,
        accumulate: bool,
        ema_update: bool | None,
    ) -> None:
        x_XRE = rows_XRE.detach().float()
        coded = self._codebook.coded(x_XRE, found.codes, self._mask_of_books(valid_R))
        self._codebook.update_codebook(coded, weight, accumulate, ema_update)

    def _gather_gradients(self, rows_XRE: Tensor, valid_R: Tensor | None, found: Found) -> Tensor:
        """Add to the gradients for the codebook's own optimizer; the loss they are of."""
        x_XRE, book = rows_XRE.detach().float(), self._codebook
        parameters = list(book.parameters())
        coded = book.coded(x_XRE, found.codes, self._mask_of_books(valid_R))
        with sync.alone() if book.use_ddp is False else contextlib.nullcontext():
            loss, grads, _ = codebook_gradients(
                parameters, lambda: list(book.effective_embed()), [[rows] for rows in coded]
            )
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
        return loss

    def _estimate(self, rows_XRE: Tensor, found: Found, input_needs_grad: bool, temp: float | None) -> Tensor:
        """The vectors found, with the gradient that the settings route to the input."""
        vectors = found.vectors
        if not self.training:
            return vectors
        x = rows_XRE if found.codes.ndim == 2 else rows_XRE[:, :, None].expand(vectors.shape)
        if input_needs_grad and self.route_gradients_to_input:
            if self.rotation_trick:
                vectors = gradient.rotation_trick(x, vectors)
            elif self.directional_reparam:
                vectors = gradient.directional(x, vectors, self.directional_reparam_variance**0.5)
            else:
                vectors = gradient.straight_through(x, vectors)
        elif self._codebook.straight_through and torch.is_grad_enabled():
            vectors = self._gumbel(rows_XRE, found, temp)
        return gradient.synchronised(vectors, vectors, self.sync_update_v) if self.sync_update_v > 0 else vectors

    def _gumbel(self, rows_XRE: Tensor, found: Found, temp: float | None) -> Tensor:
        """The vectors found, with the gradient of the mean of the draw."""
        book = self._codebook
        temp = book.sample_codebook_temp if temp is None else temp
        if temp <= 0 or found.codes.ndim > 2 or found.scores_XRK is not None:
            return found.vectors
        return gradient.straight_through(book.expected(rows_XRE.float(), found.weight_XKE, temp), found.vectors)

    def _cross_entropy(self, rows_XRE: Tensor, valid_R: Tensor | None, found: Found, indices_BN: Tensor) -> Tensor:
        require(found.codes.ndim == 2, "give topk or indices, not both")
        codes_XR = self._index_rows(indices_BN, rows_XRE.shape)
        return vector_losses.cross_entropy(self._codebook, rows_XRE, found, codes_XR, valid_R)

    def _beside_cross_entropy(self, vectors_BNHE: Tensor, layout: TokenLayout, indices: Tensor) -> Tensor:
        """Of a sequence, or with flat indices: the vectors as they were searched (B, N, E), (H, B, N, E) or
        (1, B * H, N, E). Of a map or a single token, with indices of its shape: in the layout of the input."""
        if len(layout.grid) != 1 and indices.ndim == 1 + len(layout.grid) + (self.heads > 1):
            return layout.vectors_back(project(self.project_out, vectors_BNHE.flatten(2)))
        return self.maybe_split_heads_from_input(vectors_BNHE.flatten(2))

    def _losses(
        self,
        rows_XRE: Tensor,
        valid_R: Tensor | None,
        found: Found,
        frozen: bool,
        layout: TokenLayout,
        mask_BN: Tensor | None,
    ) -> tuple[LossBreakdown, Tensor]:
        """The terms, unweighted, and the loss: scalars, or (B, N, T) with topk."""
        zero = torch.zeros((), device=rows_XRE.device)
        commit, diverse, orthogonal = zero, zero, zero
        is_topk = found.codes.ndim > 2
        if not self.training:
            if is_topk:
                commit = vector_losses.commitment_of_each(rows_XRE, found.vectors, valid_R)
                commit = self._by_token(commit, layout)[:, :, 0]
            weighted = commit * self.commitment_weight if self.has_commitment_loss else commit
            return LossBreakdown(commit, zero, zero, zero), weighted if is_topk else zero
        loss = torch.zeros((), device=rows_XRE.device, requires_grad=True)
        book = self._codebook
        if self.has_codebook_diversity_loss:
            grid = (layout.batch, layout.num_positions)
            temp = 1 / self.codebook_diversity_temperature
            diverse = vector_losses.diversity(book, rows_XRE, found, grid, temp, mask_BN)
            loss = loss + diverse * self.codebook_diversity_loss_weight
        if self.has_commitment_loss:
            commit = self._commitment(rows_XRE, valid_R, found, frozen)
            commit = self._by_token(commit, layout)[:, :, 0] if commit.ndim else commit
            loss = loss + commit * self.commitment_weight
        if self.has_codebook_orthogonal_loss:
            limits = (self.orthogonal_reg_active_codes_only, self.orthogonal_reg_max_codes)
            orthogonal = vector_losses.orthogonal(book, found.codes, valid_R, *limits)
            loss = loss + orthogonal * self.orthogonal_reg_weight
        return LossBreakdown(commit, diverse, orthogonal, zero), loss

    def _commitment(self, rows_XRE: Tensor, valid_R: Tensor | None, found: Found, frozen: bool) -> Tensor:
        if self.commitment_use_cross_entropy_loss:
            return vector_losses.cross_entropy(self._codebook, rows_XRE, found, found.codes, valid_R)
        vectors = found.vectors if self.learnable_codebook and not frozen else found.vectors.detach()
        term = vector_losses.commitment if found.codes.ndim == 2 else vector_losses.commitment_of_each
        return term(rows_XRE, vectors, valid_R)

    def _filled(self, tokens: Tensor, codes: Tensor, mask_BN: Tensor, original_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros, or the input, and -1 where the mask is False."""
        original = original_BNC if tokens.ndim == 3 else original_BNC[:, :, None]
        outside = torch.zeros_like(original) if self.return_zeros_for_masked_padding else original
        keep = mask_BN.view(*mask_BN.shape, *[1] * (tokens.ndim - 2))
        codes = codes.masked_fill(~mask_BN.view(*mask_BN.shape, *[1] * (codes.ndim - 2)), -1)
        return torch.where(keep, tokens, outside), codes
