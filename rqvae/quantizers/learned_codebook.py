"""A codebook trained by the optimizer.

Legend: E code-vector size, K codebook size.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rqvae.quantizers.distance import nearest_codes
from rqvae.quantizers.restart import CodedVectors


class LearnedCodebook(nn.Module):
    """K code vectors of size E as one parameter; uniform in +-1/K at first, as in the VQ-VAE paper.

    normalize: the code vectors in use are the parameter's rows scaled to length 1.
    """

    def __init__(self, num_codes: int, dim: int, *, normalize: bool = False):
        super().__init__()
        self.normalize = normalize
        self.rows = nn.Parameter(torch.empty(num_codes, dim).uniform_(-1 / num_codes, 1 / num_codes))
        self.register_buffer("num_restarts", torch.zeros((), dtype=torch.int64), persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The (K, E) code vectors, fp32, with the gradient of the parameter."""
        rows = self.rows.float()
        return F.normalize(rows, dim=1) if self.normalize else rows

    def nearest(self, x_NE: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code vector of every row."""
        return nearest_codes(x_NE, self.weight.detach())

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes of any shape -> code vectors (..., E)."""
        return F.embedding(codes, self.weight)

    @torch.no_grad()
    def assign(self, vectors_KE: torch.Tensor, sizes_K: torch.Tensor) -> None:
        """Replace all code vectors. `sizes_K` is for codebooks that count."""
        self.rows.copy_(vectors_KE)

    def update(self, batches: list[CodedVectors]) -> None:
        """The optimizer does it."""
