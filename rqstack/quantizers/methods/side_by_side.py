"""What the quantizers without a learned EMA codebook share: projections, the straight-through step, depths, targets.

Legend: N vectors, E size of an input vector, D codebooks side by side (the code depth), C size of a code vector,
K codebook size.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_count
from rqstack.quantizers.arithmetic.given_tensors import check_vectors, checked_input
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.nearest import sampled_codes
from rqstack.quantizers.arithmetic.precision import full_precision, linear
from rqstack.quantizers.base import Quantizer, QuantizerOutput


class SideBySideQuantizer(Quantizer):
    """D codebooks side by side in a space of D x C scalars, which a linear map joins to E where the sizes differ.

    dim: E. code_dim: C. num_codebooks: D. num_codes: K of each. project: learned maps E -> D x C -> E; None: only
    where E is not D x C. Subclasses say how a row is searched (`_search`), what a code stands for (`_vectors`) and
    what is lost (`_terms`). `codebook` and `targets` speak of the C-sized space that is searched, `decode` and
    `embed_with_depth` of the E-sized space of the input. ValueError where E does not fit and there is no projection.
    """

    def __init__(self, dim: int, code_dim: int, num_codes: int, num_codebooks: int = 1, project: bool | None = None):
        super().__init__()
        for name, size in (("dim", dim), ("size of a code vector", code_dim), ("num_codebooks", num_codebooks)):
            check_count(name, size)
        inner = code_dim * num_codebooks
        project = dim != inner if project is None else project
        if not project and dim != inner:
            raise ValueError(f"dim {dim} needs a projection to {num_codebooks} codebooks of {code_dim} scalars")
        self.dim, self.code_dim = dim, code_dim
        self.num_codes = (num_codes,) * num_codebooks
        self.project_in = nn.Linear(dim, inner) if project else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if project else nn.Identity()

    @abc.abstractmethod
    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        """The searched vectors (N, D, C), differentiable, and their codes (N, D)."""

    @abc.abstractmethod
    def _vectors(self, codes_ND: Tensor) -> Tensor:
        """Code vectors (N, D, C), fp32."""

    def _quantize(self, x_NDC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The searched vectors, their code vectors and their codes. Overridden where the last two cost one search."""
        space_NDC, codes_ND = self._search(x_NDC)
        return space_NDC, self._vectors(codes_ND), codes_ND

    def _terms(self, space_NDC: Tensor, vectors_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        """Named, weighted losses. None by default."""
        return {}

    def _input_terms(self, x_NDC: Tensor, mask_N: Tensor | None) -> dict[str, Tensor]:
        """Named, weighted losses of what the search was given. None by default."""
        return {}

    def _estimate(self, space_NDC: Tensor, vectors_NDC: Tensor) -> Tensor:
        """The code vectors with a gradient towards the searched vectors."""
        return straight_through(space_NDC, vectors_NDC)

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (..., E) in any float dtype; positions where `mask` (...) is False count in no loss."""
        z = checked_input(z, mask, self.dim)
        with full_precision(z.device):
            x_NDC, mask_N = self._to_space(z), None if mask is None else mask.reshape(-1)
            space_NDC, vectors_NDC, codes_ND = self._quantize(x_NDC)
            terms = self._terms(space_NDC, vectors_NDC, mask_N) | self._input_terms(x_NDC, mask_N)
            loss = sum(terms.values(), torch.zeros((), device=z.device))
            quantized = self._from_space(self._estimate(space_NDC, vectors_NDC)).view(z.shape)
        return QuantizerOutput(quantized.to(z.dtype), codes_ND.view(*z.shape[:-1], len(self.num_codes)), loss, terms)

    def as_level(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Quantizer.as_level`; without the estimator, and where there are no terms without a gradient."""
        x_NDC, mask_N = self._to_space(x), None if mask is None else mask.reshape(-1)
        space_NDC, vectors_NDC, codes_ND = self._quantize(x_NDC)
        terms = self._terms(space_NDC, vectors_NDC, mask_N) | self._input_terms(x_NDC, mask_N)
        vectors = self._from_space(vectors_NDC.detach()).detach().view(x.shape)
        return vectors, codes_ND.view(*x.shape[:-1], len(self.num_codes)), terms

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> vectors (..., E), equal to `forward(...).quantized`; missing last depths count as zero."""
        codes = self._checked(codes)
        with full_precision(codes.device):
            vectors_NE = self._from_space(self._padded_vectors(codes))
        return vectors_NE.view(*codes.shape[:-1], self.dim)

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the part of every depth (..., D, E); they add up to `decode`. Depth 0 has the bias."""
        codes = self._checked(codes)
        depth = codes.shape[-1]
        vectors_NDC = self._padded_vectors(codes)
        with full_precision(codes.device):
            weight_ECs = self._out_matrix()
            parts = [vectors_NDC[:, d] @ weight_ECs[:, d * self.code_dim :][:, : self.code_dim].T for d in range(depth)]
            if isinstance(self.project_out, nn.Linear):
                parts[0] = parts[0] + self.project_out.bias.float()
        return torch.stack(parts, 1).view(*codes.shape, self.dim)

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors of depth `depth`, fp32, made on request."""
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        codes_K = torch.arange(self.num_codes[depth], device=device)
        return self._vectors(codes_K[:, None].expand(-1, len(self.num_codes)))[:, depth]

    @torch.no_grad()
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The searched vectors (..., D, C) fp32 and their codes (..., D), nearest or drawn."""
        with full_precision(z.device):
            space_NDC, codes_ND = self._search(self._to_space(z))
            if stochastic:
                drawn = (
                    sampled_codes(space_NDC[:, d], self.codebook(d), temp, generator)
                    for d in range(len(self.num_codes))
                )
                codes_ND = torch.stack(list(drawn), 1)
        grid = z.shape[:-1]
        return space_NDC.view(*grid, *space_NDC.shape[1:]), codes_ND.view(*grid, len(self.num_codes))

    def _to_space(self, z: Tensor) -> Tensor:
        check_vectors(z, self.dim)
        x = linear(self.project_in, z.float().reshape(-1, self.dim))
        return x.view(len(x), len(self.num_codes), self.code_dim)

    def _from_space(self, vectors_NDC: Tensor) -> Tensor:
        return linear(self.project_out, vectors_NDC.flatten(1))

    def _padded_vectors(self, codes: Tensor) -> Tensor:
        codes_Nd = codes.reshape(-1, codes.shape[-1])
        missing = len(self.num_codes) - codes_Nd.shape[1]
        vectors_NDC = self._vectors(F.pad(codes_Nd, (0, missing)))
        return F.pad(vectors_NDC[:, : codes_Nd.shape[1]], (0, 0, 0, missing)) if missing else vectors_NDC

    def _out_matrix(self) -> Tensor:
        if isinstance(self.project_out, nn.Linear):
            return self.project_out.weight.float()
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        return torch.eye(self.dim, device=device)
