"""A stage 1 of code vectors alone, for what is measured of stage 2 without images."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor


class CodeVectors:
    """An `ImageTokenizer` with one codebook (K, E) for all depths and neither encoder nor decoder."""

    def __init__(self, book_KE: Tensor) -> None:
        self.book_KE = book_KE

    def codebook(self, depth: int) -> Tensor:
        """The code vectors (K, E)."""
        return self.book_KE

    def embed_code_with_depth(self, codes_BHWD: Tensor) -> Tensor:
        """Code vectors (B, H, W, D, E)."""
        return self.book_KE[codes_BHWD]

    def get_codes(self, image_BCHW: Tensor) -> NoReturn:
        raise NotImplementedError("there is no encoder")

    def get_soft_codes(self, image_BCHW: Tensor, temp: float, stochastic: bool) -> NoReturn:
        raise NotImplementedError("there is no encoder")

    def get_latent_targets(self, image_BCHW: Tensor, temp: float, stochastic: bool) -> NoReturn:
        raise NotImplementedError("there is no encoder")

    def decode_code(self, codes_BHWD: Tensor) -> NoReturn:
        raise NotImplementedError("there is no decoder")
