"""Random-projection quantization with the signature of vector-quantize-pytorch 1.32.

Legend: B batch, N positions, C size of an input vector, H codebooks, E size of a code vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize


@checks_settings
class RandomProjectionQuantizer(nn.Module):
    """The code with the highest cosine to a frozen random projection of the input, in each of `num_codebooks`.

    norm: scale every vector to mean 0 and variance 1 first. Further keywords go to the `VectorQuantize` inside, which
    is always in eval mode. The code vectors have the size `codebook_dim`; the original ignores that with more than one
    codebook and projects once more to vectors of size codebook_dim * num_codebooks each. A state of that kind can be
    loaded: the quantizer then does the same.

    Chiu et al., arXiv 2202.01855; several codebooks: Zhang et al., Google USM, arXiv 2303.01037.
    """

    rand_projs: Tensor

    def __init__(
        self,
        *,
        dim: int,
        codebook_size: int,
        codebook_dim: int,
        num_codebooks: int = 1,
        norm: bool = True,
        **kwargs: Any,
    ):
        super().__init__()
        check_sizes(dim=dim, codebook_size=codebook_size, codebook_dim=codebook_dim, num_codebooks=num_codebooks)
        self.dim, self.codebook_dim, self.num_codebooks = dim, codebook_dim, num_codebooks
        projections_HCE = torch.empty(num_codebooks, dim, codebook_dim)
        nn.init.xavier_normal_(projections_HCE)
        self.register_buffer("rand_projs", projections_HCE)
        self.norm = nn.LayerNorm(dim, elementwise_affine=False) if norm else nn.Identity()
        self._options: dict[str, Any] = {
            "dim": codebook_dim * num_codebooks,
            "heads": num_codebooks,
            "codebook_size": codebook_size,
            "use_cosine_sim": True,
            "separate_codebook_per_head": True,
            **kwargs,
        }
        self.vq = VectorQuantize(codebook_dim=codebook_dim, **self._options)
        self.register_load_state_dict_pre_hook(_take_the_size_of_the_state)

    def forward(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """x (B, N, C) -> int64 indices (B, N), or (B, N, H) with several codebooks.

        indices: return their mean cross entropy under the cosines instead, a scalar.
        """
        require(x.shape[-1] == self.dim, f"input has {x.shape[-1]} channels; the quantizer takes dim {self.dim}")
        with full_precision(x.device):
            x_BNC = x.float()
            if isinstance(self.norm, nn.LayerNorm):
                x_BNC = F.layer_norm(x_BNC, (self.dim,), eps=self.norm.eps)
            x_BNI = x_BNC @ self.rand_projs.float().transpose(0, 1).flatten(1)
        self.vq.eval()
        found: Tensor = self.vq(x_BNI, indices=indices)[1]
        return found


def _take_the_size_of_the_state(
    module: RandomProjectionQuantizer, state: dict[str, Any], prefix: str, *_: object
) -> None:
    """Build the quantizer with the inner projections of the original if a state has them."""
    if f"{prefix}vq.project_in.weight" in state and isinstance(module.vq.project_in, nn.Identity):
        module.vq = VectorQuantize(**module._options).to(module.rand_projs.device)
