"""The interface of every quantizer, its one result type, and the null quantizer.

Legend: B batch, H W latent grid, h w code grid, D code depth, E code-vector size, K codebook size.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic.given_tensors import checked_codes
from rqstack.quantizers.arithmetic.nearest import soft_code_probs, wanted_precision
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.update_watch import UpdateWatch


class QuantizerOutput(NamedTuple):
    """What a quantizer returns.

    quantized: shape and dtype of the input; its value equals `decode(codes)`.
    codes: int64, the input's leading shape (on the code grid) plus the code depth.
    loss: scalar, fp32, unweighted (the published `loss_latent`).
    terms: named scalars that add up to `loss`.
    """

    quantized: Tensor
    codes: Tensor
    loss: Tensor
    terms: dict[str, Tensor]


class Quantizer(nn.Module, abc.ABC):
    """Channels-last vectors -> codes -> vectors.

    `num_codes` holds the codebook size of every depth; its length is the code depth D. Every depth searches
    `codebook(depth)` with a vector that `targets` gives.

    Codes that are looked up (`decode` and its kin) must be in range: see `arithmetic.given_tensors.checked_codes`. A
    train-mode forward after a forgotten `update_codebook()` warns once, and nothing more is gathered: `update_watch`.
    """

    num_codes: tuple[int, ...]
    drops_levels = False  # whether negative codes stand for dropped levels
    _watch: UpdateWatch | None = None
    __call__: Callable[..., QuantizerOutput]  # that of torch, with the result of `forward`

    def __init__(self) -> None:
        super().__init__()
        wanted_precision()  # a value that the search would refuse is refused before anything is trained
        self._watch = UpdateWatch()

    @abc.abstractmethod
    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize `z` (..., E). Positions where `mask` is False count neither in the loss nor in the codebook."""

    def as_level(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What a stack of quantizers needs of `forward` for fp32 x: code vectors without a gradient, codes, terms."""
        out = self(x, mask)
        return out.quantized.detach(), out.codes, out.terms

    @abc.abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the vectors that `forward` would return for them, fp32."""

    @abc.abstractmethod
    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the part of `decode` that every depth adds (..., D, E), not cumulated, fp32."""

    @abc.abstractmethod
    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors that depth `depth` searches, fp32; C is E unless the method projects."""

    def update_codebook(self) -> None:
        """Apply what the train-mode forwards since the last call have gathered. Nothing to do by default."""

    def discard_codebook_update(self) -> None:
        """Forget what the train-mode forwards since the last call have gathered (a skipped optimizer step)."""

    def restart_counts(self) -> Tensor:
        """Codebook entries restarted since construction, int64 (D,), equal on all processes; zeros by default.

        Depths that share a codebook share its count.
        """
        device = next((tensor.device for tensor in (*self.parameters(), *self.buffers())), None)
        return torch.zeros(len(self.num_codes), dtype=torch.int64, device=device)

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every train-mode forward uses every trainable parameter. Not where levels are dropped at random."""
        return True

    @abc.abstractmethod
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The vector every depth searches with (..., D, C) fp32 and the code it finds (..., D); nothing is learned.

        stochastic: draw the code from softmax(-squared distance / temp) over `codebook(depth)` instead.
        """

    @torch.no_grad()
    def soft_codes(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """softmax(-squared distance / temp) (..., D, K) fp32 and the codes (..., D) of `targets`.

        Depths with fewer codes than the largest are filled up with probability 0.
        """
        searched, codes = self.targets(z, temp, stochastic, generator)
        probs = searched.new_zeros((*codes.shape, max(self.num_codes)))
        for depth, size in enumerate(self.num_codes):
            rows = searched[..., depth, :].reshape(-1, searched.shape[-1])
            with full_precision(z.device):
                soft = soft_code_probs(rows, self.codebook(depth), temp)
            probs[..., depth, :size] = soft.view(*codes.shape[:-1], size)
        return probs, codes

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether what a code adds to the output follows from the code alone, not from those of the depths before."""
        return True

    @torch.no_grad()
    def code_vectors(self, depth: int) -> Tensor:
        """What each code of one depth adds to the output, (K, E) fp32: the rows that `embed_with_depth` looks up.

        Equal to `codebook(depth)` where nothing is projected, grouped or cut. ValueError without `fixed_code_vectors`.
        """
        if not self.fixed_code_vectors:
            raise ValueError("the code vectors of this quantizer depend on the codes before them: there is no table")
        weight = self.codebook(depth)
        codes_K = torch.arange(self.num_codes[depth], device=weight.device)
        parts = []
        for codes_k in codes_K.split(max(1, 2**14 // len(self.num_codes))):
            codes_kD = codes_k.new_zeros(len(codes_k), len(self.num_codes))
            codes_kD[:, depth] = codes_k
            parts.append(self.embed_with_depth(codes_kD)[:, depth])
        return torch.cat(parts)

    def decode_depth(self, codes: Tensor, depth: int) -> Tensor:
        """Codes (..., D) -> the part (..., E) of one depth alone."""
        return self.embed_with_depth(codes)[..., depth, :]

    def _checked(self, codes: Tensor) -> Tensor:
        """The codes as int64; ValueError or TypeError for what cannot be looked up."""
        return checked_codes(codes, self.num_codes, self.drops_levels)

    def _has_gathered(self) -> bool:
        """Whether forwards have gathered anything that waits for `update_codebook()`."""
        return False

    def _before_gathering(self, z: Tensor) -> None:
        """To be called by every train-mode forward: drops what a forgotten update has left."""
        if self.training and self._watch is not None and self._watch.forgotten(z, self, self._has_gathered()):
            self.discard_codebook_update()

    @staticmethod
    def _watch_from_outside(*parts: nn.Module) -> None:
        """The quantizer that holds these watches; they do not."""
        for part in parts:
            if isinstance(part, Quantizer):
                part._watch = None


class NullQuantizer(Quantizer):
    """No bottleneck: the latent passes unchanged and has no codes (D = 0)."""

    num_codes: tuple[int, ...] = ()

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Return `z` itself, an empty last axis of codes and a loss of zero."""
        codes = torch.empty((*z.shape[:-1], 0), dtype=torch.int64, device=z.device)
        return QuantizerOutput(z, codes, torch.zeros((), device=z.device), {})

    def decode(self, codes: Tensor) -> Tensor:
        """There is nothing to decode."""
        raise ValueError("bottleneck_type 'none' has no codes to decode; choose 'rq'")

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """There is nothing to look up."""
        raise ValueError("bottleneck_type 'none' has no code vectors; choose 'rq'")

    def codebook(self, depth: int) -> Tensor:
        """There is no codebook."""
        raise ValueError("bottleneck_type 'none' has no codebook; choose 'rq'")

    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """There is nothing to search."""
        raise ValueError("bottleneck_type 'none' has no codes; choose 'rq'")
