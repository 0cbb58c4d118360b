"""Random-projection quantization: a frozen random map and frozen random codebooks; nothing is learned.

Legend: N vectors, E size of an input vector, D codebooks side by side, C size of a code vector, K codebook size.

Chiu et al., Self-supervised Learning with Random-projection Quantizer for Speech Recognition, ICML 2022 (2202.01855).
Several codebooks: Zhang et al., Google USM, 2023 (2303.01037).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.arguments import check_count
from rqstack.quantizers.arithmetic.given_tensors import check_vectors
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.methods.side_by_side import SideBySideQuantizer


@checks_arguments
@dataclass(frozen=True)
class RandomProjectionOptions:
    """Settings of random-projection quantization.

    Attributes:
        codebook_dim: C, size of the projected vectors.
        normalize: subtract the mean over channels and divide by their spread before projecting (without it codes of
            features of unlike scales collapse).
    """

    codebook_dim: int
    normalize: bool = True


@checks_arguments
class RandomProjectionQuantizer(KeepsFloat32, SideBySideQuantizer):
    """The code with the highest cosine to the projected input, in each of `num_codebooks` codebooks.

    dim: E. The method is made for targets, not for reconstruction: `decode` gives the shortest vector whose projection
    is the code vector. There is no loss; all state is buffers.
    """

    projection: Tensor
    back_projection: Tensor
    codebooks: Tensor

    def __init__(self, dim: int, codebook_size: int, options: RandomProjectionOptions, *, num_codebooks: int = 1):
        for name, size in (("dim", dim), ("codebook_size", codebook_size), ("num_codebooks", num_codebooks)):
            check_count(name, size)
        codebook_dim = check_count("codebook_dim", options.codebook_dim)
        super().__init__(dim, codebook_dim, codebook_size, num_codebooks, project=True)
        self.project_in = self.project_out = nn.Identity()  # the frozen maps below take their place
        self.normalize = options.normalize
        projection_DEC = torch.empty(num_codebooks, dim, codebook_dim)
        for projection_EC in projection_DEC:
            nn.init.xavier_normal_(projection_EC)
        projection_EI = projection_DEC.transpose(0, 1).flatten(1)
        self.register_buffer("projection", projection_EI.contiguous())
        self.register_buffer("back_projection", torch.linalg.pinv(projection_EI.double()).float())
        self.register_buffer("codebooks", F.normalize(torch.randn(num_codebooks, codebook_size, codebook_dim), dim=-1))

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors of depth `depth`, of length 1."""
        return self.codebooks[depth]

    def _to_space(self, z: Tensor) -> Tensor:
        check_vectors(z, self.dim)
        x_NE = z.float().reshape(-1, self.dim)
        if self.normalize:
            x_NE = F.layer_norm(x_NE, (self.dim,))
        return F.normalize((x_NE @ self.projection).view(len(x_NE), len(self.num_codes), self.code_dim), dim=-1)

    def _search(self, x_NDC: Tensor) -> tuple[Tensor, Tensor]:
        found = [nearest_codes(x_NC, book_KC) for x_NC, book_KC in zip(x_NDC.detach().unbind(1), self.codebooks)]
        return x_NDC, torch.stack(found, 1)

    def _vectors(self, codes_ND: Tensor) -> Tensor:
        books = zip(codes_ND.unbind(1), self.codebooks, strict=True)
        return torch.stack([F.embedding(codes_N, book_KC) for codes_N, book_KC in books], 1)

    def _from_space(self, vectors_NDC: Tensor) -> Tensor:
        return vectors_NDC.flatten(1) @ self.back_projection

    def _out_matrix(self) -> Tensor:
        return self.back_projection.T

    @torch.no_grad()
    def indices(self, z: Tensor) -> Tensor:
        """Codes (..., D) alone, the targets of the method, without code vectors."""
        with full_precision(z.device):
            return self._search(self._to_space(z))[1].view(*z.shape[:-1], len(self.num_codes))
