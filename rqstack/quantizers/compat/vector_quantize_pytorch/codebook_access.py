"""What `VectorQuantize` offers besides its forward: code vectors, layouts of inputs, updates from given indices.

Legend: B batch, N positions, C channels, X codebooks side by side, R rows (positions times the heads that share a
codebook), M = B * N, E code-vector size, K codebook size, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.ema_codebook import Codebook
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project
from rqstack.quantizers.compat.vector_quantize_pytorch.token_layout import TokenLayout, mask_of, token_layout


class CodebookAccess(nn.Module):
    """The part of `VectorQuantize` that is about its codebook and not about learning."""

    _codebook: Codebook
    heads: int
    separate_codebook_per_head: bool
    channel_last: bool
    accept_image_fmap: bool
    accept_3d_fmap: bool
    project_in: nn.Module
    project_out: nn.Module
    freeze_codebook: bool
    in_place_codebook_optimizer: torch.optim.Optimizer | None

    @property
    def ema_update(self) -> bool:
        """Whether the codebook follows moving averages."""
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The code vectors (K, E), or (H, K, E) for separate heads."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor) -> None:
        self._codebook.embed.data.copy_(codes if self.separate_codebook_per_head else codes[None])

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ...), or (B, ..., H) with heads -> code vectors, channels where the input has them.

        Separate heads are joined to (..., H * E), those of one codebook stay (..., H, E). -1 gives zeros.
        """
        codes = self._embedded(indices)
        if self.separate_codebook_per_head:
            codes = codes.flatten(-2)
        elif self.heads == 1:
            codes = codes[..., 0, :]
        return codes.movedim(-1, 1) if self._channels_first else codes

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices -> what the eval-mode forward returned with them."""
        codes = self._embedded(indices).flatten(-2)
        with full_precision(codes.device):
            output = project(self.project_out, codes)
        dropped = indices < 0 if self.heads == 1 else (indices < 0).all(-1)
        output = output.masked_fill(dropped[..., None], 0.0)
        return output.movedim(-1, 1) if self._channels_first else output

    def _embedded(self, indices: Tensor) -> Tensor:
        """(..., H, E) code vectors as they are searched."""
        weights_XKE = self._codebook.effective_embed()
        codes = indices if self.heads > 1 else indices[..., None]
        looked_up = [
            nn.functional.embedding(codes[..., head].clamp(min=0), weights_XKE[head % len(weights_XKE)])
            for head in range(self.heads)
        ]
        return torch.stack(looked_up, -2).masked_fill((codes < 0)[..., None], 0.0)

    def update_in_place_optimizer(self) -> None:
        """One step of the codebook's own optimizer on the gradients gathered so far."""
        if self.in_place_codebook_optimizer is not None:
            self.in_place_codebook_optimizer.step()
            self.in_place_codebook_optimizer.zero_grad()

    def maybe_split_heads_from_input(self, x: Tensor) -> Tensor:
        """(B, N, H * E) -> (H, B, N, E) for separate heads, (1, B * H, N, E) for shared ones; one head: x itself."""
        if self.heads == 1:
            return x
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.movedim(2, 0) if self.separate_codebook_per_head else heads.transpose(1, 2).flatten(0, 1)[None]

    def expire_codes_(self, x: Tensor) -> None:
        """Replace codes used less than the threshold by vectors of x (B, N, H * E), in the space of the codebook."""
        self._codebook.expire_codes_(self.maybe_split_heads_from_input(self._codebook.transform_input(x)))

    @torch.no_grad()
    def update_indices(self, x: Tensor, indices: Tensor, mask: Tensor | None = None) -> None:
        """A moving-average step with x, in the layout of an input, and indices found elsewhere. mask: (B, N)."""
        layout = self._layout(x)
        mask_BN = mask_of(layout, mask, None, self._is_map)
        with full_precision(x.device):
            rows_XRE = self._rows(layout.to_tokens(x)).float()
            valid_XR = self._mask_of_books(self._row_mask(mask_BN))
            codes_XR = self._index_rows(layout.flatten(indices), rows_XRE.shape)
            self._codebook.update_codebook(self._codebook.coded(rows_XRE, codes_XR, valid_XR))

    update_ema_indices = update_indices

    def warmup_rows(self, x: Tensor, mask: Tensor | None = None, lens: Tensor | None = None) -> Tensor:
        """The vectors (N, H * E) of an input that are searched and not masked, for `codebook_warmup`."""
        layout = self._layout(x)
        mask_BN = mask_of(layout, mask, lens, self._is_map)
        with full_precision(x.device):
            rows_BNC = project(self.project_in, layout.to_tokens(x))
        return rows_BNC.flatten(0, 1) if mask_BN is None else rows_BNC[mask_BN]

    @torch.no_grad()
    def initialize_codebook(self, x_NE: Tensor, method: str = "kmeans", seed: int = 0) -> None:
        """Set the codebook from vectors (N, H * E) of all processes: 'kmeans', or 'data' (drawn). Not a frozen one."""
        iterations = {"kmeans": self._codebook.kmeans_iters, "data": 0}
        require(method in iterations, f"method {method!r} is not one of {', '.join(iterations)}")
        if not self.freeze_codebook:
            rows_XRE = self._split_rows(x_NE.float())
            self._codebook.start_from(rows_XRE, None, iterations[method], seed)

    # --- layouts and rows

    @property
    def _is_map(self) -> bool:
        return self.accept_image_fmap or self.accept_3d_fmap

    @property
    def _channels_first(self) -> bool:
        return self._is_map or not self.channel_last

    def _layout(self, x: Tensor) -> TokenLayout:
        map_dims = 2 if self.accept_image_fmap else 3 if self.accept_3d_fmap else None
        layout = token_layout(x, self._channels_first, map_dims)
        channels = x.shape[1 if layout.channels_first else -1]
        require(channels == self.dim, f"input has {channels} channels; the quantizer takes dim {self.dim}")
        return layout

    def _rows(self, tokens_BNC: Tensor) -> Tensor:
        """(B, N, C) -> the rows (X, R, E) that are searched, at least fp32."""
        return self._split_rows(project(self.project_in, tokens_BNC))

    def _split_rows(self, vectors: Tensor) -> Tensor:
        """(..., H * E) -> (X, R, E), of length 1 for cosine similarity."""
        heads_MHE = vectors.reshape(-1, self.heads, self._codebook.dim)
        rows_XRE = heads_MHE.transpose(0, 1) if self.separate_codebook_per_head else heads_MHE.flatten(0, 1)[None]
        return self._codebook.transform_input(rows_XRE)

    def _row_mask(self, mask_BN: Tensor | None) -> Tensor | None:
        if mask_BN is None:
            return None
        heads = 1 if self.separate_codebook_per_head else self.heads
        return mask_BN.reshape(-1).repeat_interleave(heads)

    def _index_rows(self, codes: Tensor, rows_shape: torch.Size) -> Tensor:
        """(B, N), or (B, N, H) with heads -> (X, R)."""
        expected = rows_shape[0] * rows_shape[1]
        require(codes.numel() == expected, f"indices of shape {tuple(codes.shape)} do not fit {expected} vectors")
        if self.separate_codebook_per_head:
            return codes.reshape(-1, self.heads).T
        return codes.reshape(1, -1)

    def _by_token(self, rows: Tensor, layout: TokenLayout) -> Tensor:
        """(X, R, ...) -> (B, N, H, ...)."""
        if self.separate_codebook_per_head:
            rows = rows.transpose(0, 1)
        return rows.reshape(layout.batch, layout.num_positions, self.heads, *rows.shape[2:])

    def _mask_of_books(self, valid_R: Tensor | None) -> Tensor | None:
        """(R,) -> (X, R)."""
        return None if valid_R is None else valid_R.expand(self._codebook.num_codebooks, -1)
