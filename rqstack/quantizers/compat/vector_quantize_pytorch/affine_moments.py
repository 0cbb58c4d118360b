"""The running moments of an affinely re-parametrised `_codebook`, under the names of its state.

Legend: X codebooks side by side, R rows (vectors), E code-vector size, K codebook size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rqstack.quantizers.codebooks.affine import VectorMoments, blend, carry, vector_moments


class AffineMoments(nn.Module):
    """Mean and variance (X, 1, E) of the vectors, from the first forward on, and of the raw code vectors."""

    batch_mean: Tensor | None
    batch_variance: Tensor | None
    codebook_mean: Tensor
    codebook_variance: Tensor
    codebook_mean_needs_init: Tensor
    codebook_variance_needs_init: Tensor

    def _register_moments(
        self, on: bool, across_ranks: bool, batch_decay: float, codebook_decay: float, shape: tuple[int, int, int]
    ) -> None:
        self.affine_param, self.sync_affine_param = on, across_ranks
        self.affine_param_batch_decay, self.affine_param_codebook_decay = batch_decay, codebook_decay
        if not on:
            return
        for name in ("mean", "variance"):
            self.register_buffer(f"batch_{name}", None)
            self.register_buffer(f"codebook_{name}_needs_init", torch.tensor(True))
            self.register_buffer(f"codebook_{name}", torch.zeros(shape, dtype=torch.float32))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Moments of the vectors exist only after a forward: make room for those of the file."""
        for name in ("batch_mean", "batch_variance"):
            if self.affine_param and getattr(self, name) is None and prefix + name in state_dict:
                setattr(self, name, torch.zeros_like(self.codebook_mean))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forget_moments(self) -> None:
        """Back to the state before the first forward."""
        if self.affine_param:
            self.batch_mean = self.batch_variance = None
            self.codebook_mean_needs_init.fill_(True)
            self.codebook_variance_needs_init.fill_(True)

    def observe(self, x_XRE: Tensor, embed_XKE: Tensor, valid_XR: Tensor | None) -> None:
        """Average in the moments of the valid vectors, and those of the raw code vectors in training (or at first)."""
        known, _ = vector_moments(embed_XKE, across_ranks=False)
        first = self.codebook_mean_needs_init
        new = blend(self._codebook_moments(), known, self.affine_param_codebook_decay, ~first)
        learns = first | self.training
        for before, after in zip(self._codebook_moments(), new, strict=True):
            before.copy_(torch.where(learns, after, before))
        self.codebook_mean_needs_init.fill_(False)
        self.codebook_variance_needs_init.fill_(False)
        seen, count_X11 = vector_moments(x_XRE, valid_XR)
        if self.batch_mean is None:
            self.batch_mean, self.batch_variance = seen
            return
        old = self._batch_moments()
        new = blend(old, seen, self.affine_param_batch_decay, True)
        self.batch_mean = torch.where(count_X11 > 0, new.mean, old.mean)
        self.batch_variance = torch.where(count_X11 > 0, new.variance, old.variance)

    def to_batch_moments(self, embed_XKE: Tensor) -> Tensor:
        """Raw code vectors -> those that are searched; unchanged before the first forward."""
        if self.batch_mean is None:
            return embed_XKE
        return carry(embed_XKE, self._codebook_moments(), self._batch_moments())

    def to_codebook_moments(self, x_RE: Tensor, book: int) -> Tensor:
        """Vectors of one codebook -> where they lie among its raw code vectors."""
        pair = (self._batch_moments(), self._codebook_moments())
        return carry(x_RE, *(VectorMoments(m.mean[book], m.variance[book]) for m in pair))

    def _batch_moments(self) -> VectorMoments:
        assert self.batch_mean is not None and self.batch_variance is not None, "no vectors have been observed"
        return VectorMoments(self.batch_mean, self.batch_variance)

    def _codebook_moments(self) -> VectorMoments:
        return VectorMoments(self.codebook_mean, self.codebook_variance)
