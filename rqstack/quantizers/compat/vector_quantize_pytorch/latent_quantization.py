"""Latent quantization with the signature of vector-quantize-pytorch 1.32; the arithmetic is that of the core.

Legend: B batch, N rows, c codebooks side by side, C scalars of a code vector, M = N x c, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.mixed_radix import MixedRadix, scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.channel_order import channels_back, channels_last, index_type
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_numbers import LevelNumbers
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project, projection_pair
from rqstack.quantizers.methods.latent_quantization import (
    distance_gradients,
    initial_values,
    look_up,
    nearest_digits,
    step_in_place,
)


@checks_settings
class LatentQuantize(LevelNumbers):
    """Every scalar takes the nearest of its values; `forward` returns (quantized like the input, int32 indices, loss).

    Input is (B, dim, ...); where the second dim is not `dim` and the last one is, (B, ..., dim). The loss is that of
    the original: both parts train the input, and the values have no gradient. With `in_place_codebook_optimizer` they
    learn: a train-mode forward takes a step on their mean squared distance to the input, then quantizes.
    """

    commitment_loss_weight: Tensor
    quantization_loss_weight: Tensor

    def __init__(
        self,
        levels: int | Sequence[int],
        dim: int,
        commitment_loss_weight: float = 0.1,
        quantization_loss_weight: float = 0.1,
        num_codebooks: int = 1,
        codebook_dim: int = -1,
        keep_num_codebooks_dim: bool | None = None,
        optimize_values: bool = True,
        in_place_codebook_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    ):
        super().__init__()
        check_sizes(levels=levels, dim=dim, num_codebooks=num_codebooks)
        if isinstance(levels, int):
            if codebook_dim < 1:
                raise RuntimeError(f"levels={levels} for every scalar needs codebook_dim, got {codebook_dim}")
            levels = [levels] * codebook_dim
        levels = [int(level) for level in levels]
        require(codebook_dim in (-1, len(levels)), f"codebook_dim {codebook_dim} is not that of levels {levels}")
        keep = keep_num_codebooks_dim or num_codebooks > 1
        self.dim, self.num_codebooks, self.keep_num_codebooks_dim = dim, num_codebooks, keep
        self.codebook_dim, self.codebook_size = len(levels), math.prod(levels)
        self.effective_codebook_dim = inner = len(levels) * num_codebooks
        for name, weight in (("commitment", commitment_loss_weight), ("quantization", quantization_loss_weight)):
            self.register_buffer(f"{name}_loss_weight", torch.tensor(weight, dtype=torch.float32), persistent=False)
        self.has_projections = dim != inner
        self.project_in, self.project_out = projection_pair(dim, inner, self.has_projections)
        self.radix, self.optimize_values = MixedRadix(levels), optimize_values
        values = [initial_values(level) for level in levels]
        learned = nn.ParameterList(values)
        self.values_per_latent = learned if optimize_values else [v.data for v in values]
        self.in_place_codebook_optimizer = None
        if in_place_codebook_optimizer is not None:
            require(optimize_values, "in_place_codebook_optimizer needs optimize_values=True")
            self.in_place_codebook_optimizer = in_place_codebook_optimizer(learned)

    @property
    def implicit_codebook(self) -> Tensor:
        """All code vectors (K, C), made on request."""
        return self._vectors(torch.arange(self.codebook_size, device=self.radix.levels.device)).detach()

    def quantization_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """Squared distance with the gradient in z."""
        return F.mse_loss(zhat.detach(), z, reduction=reduce)

    def commitment_loss(self, z: Tensor, zhat: Tensor, reduce: str = "mean") -> Tensor:
        """Squared distance with the gradient in zhat."""
        return F.mse_loss(z.detach(), zhat, reduction=reduce)

    def quantize(self, z: Tensor) -> Tensor:
        """Scalars (..., C), not projected -> the nearest values, straight through."""
        digits_CM = nearest_digits(scalars_first(z.detach()), self._values())
        return straight_through(z, scalars_last(look_up(digits_CM, self._values()), z.shape[:-1]))

    def codes_to_indices(self, zhat: Tensor) -> Tensor:
        """Values (..., C) -> int32 indices (...)."""
        require(zhat.shape[-1] == self.codebook_dim, f"codes have {zhat.shape[-1]} scalars of {self.codebook_dim}")
        digits_CM = nearest_digits(scalars_first(zhat.detach()), self._values())
        return self.radix.codes(digits_CM).to(index_type(self.codebook_size)).view(zhat.shape[:-1])

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Indices (B, ...) -> what `forward` returned with them, channels second."""
        indices = indices if self.keep_num_codebooks_dim else indices[..., None]
        with full_precision(indices.device):
            vectors = self._vectors(indices).flatten(-2)
            return channels_back(project(self.project_out, vectors) if project_out else vectors, True)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize z; the loss is 0 in eval mode."""
        first = z.shape[1] == self.dim or z.shape[-1] != self.dim
        rows = channels_last(z, first, self.dim)
        with full_precision(z.device):
            x = project(self.project_in, rows).reshape(-1, self.num_codebooks, self.codebook_dim)
            if self.in_place_codebook_optimizer is not None and self.training:
                gradients = distance_gradients(x.detach(), self._values())
                step_in_place(self.in_place_codebook_optimizer, self._values(), gradients)
            digits_CM = nearest_digits(scalars_first(x.detach()), self._values())
            vectors = straight_through(x, scalars_last(look_up(digits_CM, self._values()), x.shape[:2]))
            out = project(self.project_out, vectors.reshape(*rows.shape[:-1], self.effective_codebook_dim))
            loss = self._loss(rows if rows.dtype == out.dtype else rows.to(out.dtype), out)
        indices = self.radix.codes(digits_CM).to(index_type(self.codebook_size))
        indices = indices.view(*rows.shape[:-1], self.num_codebooks)
        return channels_back(out.to(z.dtype), first), indices if self.keep_num_codebooks_dim else indices[..., 0], loss

    def _loss(self, x: Tensor, out: Tensor) -> Tensor:
        total = torch.zeros((), device=x.device)
        if not (self.training and len(x)):
            return total
        commitment = self.commitment_loss_weight * self.commitment_loss(x, out)
        return commitment + self.quantization_loss_weight * self.quantization_loss(x, out)

    def _vectors(self, indices: Tensor) -> Tensor:
        digits_CM = self.radix.digits(indices.reshape(-1).long())
        return scalars_last(look_up(digits_CM, self._values()), indices.shape)

    def _values(self) -> list[Tensor]:
        return [values.to(self.radix.levels.device) for values in self.values_per_latent]
