"""Vectors cut into heads, each with a code of its own, and put together again.

Legend: N vectors, H heads (the code depth), E size of a code vector, K codebook size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_count
from rqstack.quantizers.arithmetic.given_tensors import check_vectors
from rqstack.quantizers.arithmetic.nearest import nearest_codes, sampled_codes
from rqstack.quantizers.arithmetic.precision import full_precision, linear
from rqstack.quantizers.base import Quantizer


class HeadedQuantizer(Quantizer):
    """Base of quantizers whose code vectors stand for the H parts of a vector. Subclasses say what `codebook(h)` is.

    dim: of the input (..., dim). codebook_dim: E, by default dim / H; where H * E is not dim, learned projections lead
    there and back. cosine: parts are scaled to length 1. keep_length: each part then gets its length back, which codes
    do not tell: `decode` gives unit vectors unless it is told `lengths(z)`.
    """

    def __init__(
        self, dim: int, num_codes: int, heads: int, codebook_dim: int | None, cosine: bool, keep_length: bool = False
    ):
        super().__init__()
        for name, size in (("dim", dim), ("num_codes", num_codes), ("heads", heads)):
            check_count(name, size)
        if codebook_dim is not None:
            check_count("codebook_dim", codebook_dim)
        if codebook_dim is None and dim % heads:
            raise ValueError(f"dim {dim} cannot be cut into {heads} heads; give codebook_dim")
        if keep_length and not cosine:
            raise ValueError("keep_length is about unit vectors: it needs distance 'cosine'")
        self.dim, self.heads = dim, heads
        self.codebook_dim = dim // heads if codebook_dim is None else codebook_dim
        self.num_codes = (num_codes,) * heads
        self.cosine, self.keep_length = cosine, keep_length
        inner = heads * self.codebook_dim
        self.project_in = nn.Linear(dim, inner) if inner != dim else None
        self.project_out = nn.Linear(inner, dim) if inner != dim else None

    def lengths(self, z: Tensor) -> Tensor:
        """Length of every head's part of z (..., dim), fp32 (..., H)."""
        with full_precision(z.device):
            lengths_NH: Tensor = self._split(z).norm(dim=-1)
            return lengths_NH.view(*z.shape[:-1], self.heads)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes (..., H) -> vectors (..., dim), equal to `forward(...).quantized`; missing last heads count as zero.

        lengths: (..., H), what the code vectors are multiplied with; needed for that equality with `keep_length`.
        """
        codes = self._checked(codes)
        vectors = self._looked_up(codes)
        vectors = vectors if lengths is None else lengths[..., None] * vectors
        vectors = F.pad(vectors, (0, 0, 0, self.heads - codes.shape[-1]))
        with full_precision(codes.device):
            return self._from_heads(vectors.flatten(-2), (*codes.shape[:-1], self.dim))

    def head_vectors(self, codes: Tensor) -> Tensor:
        """Codes (..., H) -> the code vector of every head (..., H, E), before the output projection."""
        return self._looked_up(self._checked(codes))

    def _looked_up(self, codes: Tensor) -> Tensor:
        return torch.stack([F.embedding(codes[..., h], self.codebook(h)) for h in range(codes.shape[-1])], -2)

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., H) -> the part of every head (..., H, dim); they add up to `decode`. Head 0 has the bias."""
        parts, size = [], self.codebook_dim
        with full_precision(codes.device):
            for head, vectors in enumerate(self.head_vectors(codes).unbind(-2)):
                if self.project_out is None:
                    parts.append(F.pad(vectors, (head * size, (self.heads - head - 1) * size)))
                    continue
                weight = self.project_out.weight.float()[:, head * size : (head + 1) * size]
                parts.append(F.linear(vectors, weight, None if head else self.project_out.bias.float()))
        return torch.stack(parts, -2)

    @torch.no_grad()
    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The vector every head searches with (..., H, E) fp32 and its code (..., H), nearest or drawn."""
        with full_precision(z.device):
            x_NHE = self._to_heads(z)
            books = [(x_NHE[:, h], self.codebook(h)) for h in range(self.heads)]
            found = [sampled_codes(*pair, temp, generator) if stochastic else nearest_codes(*pair) for pair in books]
        return x_NHE.view(*z.shape[:-1], *x_NHE.shape[1:]), torch.stack(found, -1).view(*z.shape[:-1], self.heads)

    def _split(self, z: Tensor) -> Tensor:
        """z (..., dim) in any float dtype -> its parts (N, H, E), fp32, with their lengths."""
        check_vectors(z, self.dim)
        x = z.float() if self.project_in is None else linear(self.project_in, z.float())
        return x.reshape(-1, self.heads, self.codebook_dim)

    def _to_heads(self, z: Tensor) -> Tensor:
        """z (..., dim) -> what the heads search with (N, H, E)."""
        return self._scaled(self._split(z))

    def _scaled(self, parts_NHE: Tensor) -> Tensor:
        return F.normalize(parts_NHE, dim=-1) if self.cosine else parts_NHE

    def _from_heads(self, vectors_NHE: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
        vectors = vectors_NHE.reshape(*shape[:-1], self.heads * self.codebook_dim)
        return vectors if self.project_out is None else linear(self.project_out, vectors)
