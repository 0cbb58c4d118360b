"""SimVQ with the signature of vector-quantize-pytorch 1.32.

Legend: N vectors, E code-vector size, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.gradient import rotation_trick, straight_through
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings
from rqstack.quantizers.methods.simvq import mapped_codebook


def _unchanged(codebook: Tensor) -> Tensor:
    return codebook


@checks_settings
class SimVQ(nn.Module):
    """Frozen random vectors (codebook_size, frozen_codebook_dim) seen through a learned map to `dim`.

    codebook_transform: module in place of the linear map. init_fn: applied once to the normal random vectors.
    channel_first: inputs are (B, dim, ...) instead of (B, ..., dim). Loss = commitment_weight x (mean squared distance
    that pulls the codes + input_to_quantize_commit_loss_weight x the same that pulls the input).
    """

    frozen_codebook: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_transform: nn.Module | None = None,
        init_fn: Callable[[Tensor], Tensor] = _unchanged,
        channel_first: bool = False,
        rotation_trick: bool = True,
        input_to_quantize_commit_loss_weight: float = 0.25,
        commitment_weight: float = 1.0,
        frozen_codebook_dim: int | None = None,
    ):
        super().__init__()
        check_sizes(dim=dim, codebook_size=codebook_size, frozen_codebook_dim=frozen_codebook_dim)
        self.dim, self.codebook_size, self.channel_first = dim, codebook_size, channel_first
        frozen_dim = dim if frozen_codebook_dim is None else frozen_codebook_dim
        frozen_KF = torch.randn(codebook_size, frozen_dim) * frozen_dim**-0.5
        self.register_buffer("frozen_codebook", init_fn(frozen_KF))
        self.code_transform = (
            nn.Linear(frozen_dim, dim, bias=False) if codebook_transform is None else codebook_transform
        )
        self.rotation_trick = rotation_trick
        self.input_to_quantize_commit_loss_weight = input_to_quantize_commit_loss_weight
        self.commitment_weight = commitment_weight

    @property
    def codebook(self) -> Tensor:
        """The (K, dim) code vectors, fp32, differentiable in the map."""
        with full_precision(self.frozen_codebook.device):
            return mapped_codebook(self.code_transform, self.frozen_codebook, self.dim)

    @property
    def codebook_dim(self) -> int:
        """Size of a code vector."""
        return self.dim

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Indices (B, ...) -> code vectors, (B, ..., dim) or channel-first."""
        codes = F.embedding(indices, self.codebook)
        return codes.movedim(-1, 1) if self.channel_first else codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(quantized like x, indices int64 of x's shape without the channels, loss ()), in train and eval mode."""
        rows = x.movedim(1, -1) if self.channel_first else x
        if rows.shape[-1] != self.dim:
            raise ValueError(f"input has {rows.shape[-1]} channels; the quantizer takes dim {self.dim}")
        with full_precision(x.device):
            weight_KE = self.codebook
            x_NE = rows.reshape(-1, self.dim)
            x_NE = x_NE.to(torch.promote_types(x.dtype, torch.float32))
            codes_N = nearest_codes(x_NE.detach(), weight_KE.detach())
            vectors_NE = F.embedding(codes_N, weight_KE).to(x_NE.dtype)
            loss = mean_square(vectors_NE, x_NE.detach(), None)
            loss = loss + self.input_to_quantize_commit_loss_weight * mean_square(x_NE, vectors_NE.detach(), None)
            estimate = rotation_trick if self.rotation_trick else straight_through
            quantized = estimate(x_NE, vectors_NE).to(x.dtype).view(rows.shape)
        quantized = quantized.movedim(-1, 1) if self.channel_first else quantized
        return quantized, codes_N.view(rows.shape[:-1]), loss * self.commitment_weight
