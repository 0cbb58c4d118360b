"""Code grids smaller than the latent grid: neighbouring latent vectors are joined and share one stack of codes.

Legend: B batch, H W latent grid, h w code grid, E size of a latent vector, P size of a joined vector (E times the
vectors per patch), D code depth, C size of the vectors a depth searches with, K codebook size.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from rqstack.arguments import check_counts, shown
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer
from rqstack.quantizers.wrappers.around_one import AroundOne


def join_patches(z_BHWE: Tensor, patch: tuple[int, int]) -> Tensor:
    """Space to depth: (B, H, W, E) -> (B, h, w, P). Any shape passes unchanged where a patch is a single vector."""
    if not isinstance(z_BHWE, Tensor):
        raise TypeError(f"latents must be a tensor (B, H, W, E), got {shown(z_BHWE)}")
    if patch == (1, 1):
        return z_BHWE
    rows, columns = patch
    if z_BHWE.ndim != 4 or z_BHWE.shape[1] % rows or z_BHWE.shape[2] % columns:
        raise ValueError(f"patches of {rows} x {columns} need a (B, H, W, E) grid of them, got {tuple(z_BHWE.shape)}")
    return rearrange(z_BHWE, "b (h p) (w q) e -> b h w (p q e)", p=rows, q=columns)


def split_patches(vectors_BhwP: Tensor, patch: tuple[int, int]) -> Tensor:
    """Depth to space, the inverse of `join_patches`: (B, h, w, P) -> (B, H, W, E)."""
    if patch == (1, 1):
        return vectors_BhwP
    rows, columns = patch
    return rearrange(vectors_BhwP, "b h w (p q e) -> b (h p) (w q) e", p=rows, q=columns)


@checks_arguments
class InPatches(AroundOne):
    """Any quantizer on joined vectors: input (B, H, W, E), codes (B, h, w, D).

    quantizer: of vectors of size P = E x rows x columns. patch: (rows, columns) of latent vectors that share their
    codes. `embed_with_depth`, `codebook` and `targets` speak of the code grid, `forward` and `decode` of the latent
    grid; a mask has the shape of the code grid. ValueError for a grid that is not made of whole patches.
    """

    def __init__(self, quantizer: Quantizer, patch: tuple[int, int]):
        if len(check_counts("patch", patch)) != 2:
            raise ValueError(f"patch must be (rows, columns), got {patch}")
        super().__init__(quantizer)
        self.patch = (int(patch[0]), int(patch[1]))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, D) -> vectors (B, H, W, E)."""
        return split_patches(self.quantizer.decode(codes), self.patch)

    def decode_depth(self, codes: Tensor, depth: int) -> Tensor:
        """Codes (B, h, w, D) -> the part (B, H, W, E) of one depth alone."""
        return split_patches(self.quantizer.decode_depth(codes, depth), self.patch)

    def _inward(self, z: Tensor) -> Tensor:
        return join_patches(z, self.patch)

    def _outward(self, vectors: Tensor, like: Tensor) -> Tensor:
        return split_patches(vectors, self.patch)
