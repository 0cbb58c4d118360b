"""The interface of every quantizer, its one result type, and the null quantizer.

Legend: B batch, H W latent grid, h w code grid, D code depth, E code-vector size, K codebook size.
"""

from __future__ import annotations

import abc
import contextlib
from typing import NamedTuple

import torch
from torch import nn


class QuantizerOutput(NamedTuple):
    """What a quantizer returns.

    quantized: shape and dtype of the input; its value equals `decode(codes)`.
    codes: int64, the input's leading shape (on the code grid) plus the code depth.
    loss: scalar, fp32, unweighted (the published `loss_latent`).
    terms: named scalars that add up to `loss`.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    terms: dict[str, torch.Tensor]


class Quantizer(nn.Module, abc.ABC):
    """Channels-last vectors -> codes -> vectors.

    `num_codes` holds the codebook size of every depth; its length is the code depth D.
    """

    num_codes: tuple[int, ...]

    @abc.abstractmethod
    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> QuantizerOutput:
        """Quantize `z` (..., E). Positions where `mask` is False count neither in the loss nor in the codebook."""

    @abc.abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., D) -> the vectors that `forward` would return for them, fp32."""

    @abc.abstractmethod
    def embed_with_depth(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (..., D) -> the code vector of every depth (..., D, E), neither summed nor cumulated, fp32."""

    @abc.abstractmethod
    def codebook(self, depth: int) -> torch.Tensor:
        """The (K, E) code vectors that depth `depth` searches, fp32."""

    def update_codebook(self) -> None:
        """Apply what the train-mode forwards since the last call have gathered. Nothing to do by default."""

    def discard_codebook_update(self) -> None:
        """Forget what the train-mode forwards since the last call have gathered (a skipped optimizer step)."""


class NullQuantizer(Quantizer):
    """No bottleneck: the latent passes unchanged and has no codes (D = 0)."""

    num_codes: tuple[int, ...] = ()

    def forward(self, z: torch.Tensor, mask: torch.Tensor | None = None) -> QuantizerOutput:
        """Return `z` itself, an empty last axis of codes and a loss of zero."""
        codes = torch.empty((*z.shape[:-1], 0), dtype=torch.int64, device=z.device)
        return QuantizerOutput(z, codes, torch.zeros((), device=z.device), {})

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """There is nothing to decode."""
        raise ValueError("bottleneck_type 'none' has no codes to decode; choose 'rq'")

    def embed_with_depth(self, codes: torch.Tensor) -> torch.Tensor:
        """There is nothing to look up."""
        raise ValueError("bottleneck_type 'none' has no code vectors; choose 'rq'")

    def codebook(self, depth: int) -> torch.Tensor:
        """There is no codebook."""
        raise ValueError("bottleneck_type 'none' has no codebook; choose 'rq'")


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast off: the arithmetic of a quantizer is fp32 whatever surrounds it."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
