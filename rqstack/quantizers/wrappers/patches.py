"""Code grids smaller than the latent grid: neighbouring latent vectors are joined and share one stack of codes.

Legend: B batch, H W latent grid, h w code grid, E size of a latent vector, P size of a joined vector (E times the
vectors per patch), D code depth, C size of the vectors a depth searches with, K codebook size.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from rqstack.quantizers.arithmetic.arguments import check_counts, shown
from rqstack.quantizers.base import Quantizer, QuantizerOutput


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


class InPatches(Quantizer):
    """Any quantizer on joined vectors: input (B, H, W, E), codes (B, h, w, D).

    quantizer: of vectors of size P = E x rows x columns. patch: (rows, columns) of latent vectors that share their
    codes. `embed_with_depth`, `codebook` and `targets` speak of the code grid, `forward` and `decode` of the latent
    grid; a mask has the shape of the code grid. ValueError for a grid that is not made of whole patches.
    """

    def __init__(self, quantizer: Quantizer, patch: tuple[int, int]):
        super().__init__()
        if len(check_counts("patch", patch)) != 2:
            raise ValueError(f"patch must be (rows, columns), got {patch}")
        self._watch_from_outside(quantizer)
        self.drops_levels = quantizer.drops_levels
        self.quantizer, self.patch = quantizer, (int(patch[0]), int(patch[1]))
        self.num_codes = quantizer.num_codes

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize z (B, H, W, E); code positions where `mask` (B, h, w) is False count in no loss and no codebook."""
        joined = join_patches(z, self.patch)
        self._before_gathering(z)
        out = self.quantizer(joined, mask)
        return out._replace(quantized=split_patches(out.quantized, self.patch))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, D) -> vectors (B, H, W, E)."""
        return split_patches(self.quantizer.decode(codes), self.patch)

    def decode_depth(self, codes: Tensor, depth: int) -> Tensor:
        """Codes (B, h, w, D) -> the part (B, H, W, E) of one depth alone."""
        return split_patches(self.quantizer.decode_depth(codes, depth), self.patch)

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w, D) -> the part of every depth (B, h, w, D, P), on the code grid."""
        return self.quantizer.embed_with_depth(codes)

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors of depth `depth`."""
        return self.quantizer.codebook(depth)

    def code_vectors(self, depth: int) -> Tensor:
        """What each code of one depth adds on the code grid (K, P)."""
        return self.quantizer.code_vectors(depth)

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether those of the quantizer are fixed."""
        return self.quantizer.fixed_code_vectors

    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The vector every depth searches with (B, h, w, D, C) and its code (B, h, w, D)."""
        return self.quantizer.targets(join_patches(z, self.patch), temp, stochastic, generator)

    def soft_codes(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The probabilities (B, h, w, D, K) and codes (B, h, w, D) of the quantizer."""
        return self.quantizer.soft_codes(join_patches(z, self.patch), temp, stochastic, generator)

    def update_codebook(self) -> None:
        """Apply what has been gathered."""
        self.quantizer.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what has been gathered."""
        self.quantizer.discard_codebook_update()

    def _has_gathered(self) -> bool:
        return self.quantizer._has_gathered()

    def restart_counts(self) -> Tensor:
        """Entries restarted since construction, int64 (D,)."""
        return self.quantizer.restart_counts()

    @property
    def uses_all_parameters(self) -> bool:
        """Whether the quantizer does."""
        return self.quantizer.uses_all_parameters
