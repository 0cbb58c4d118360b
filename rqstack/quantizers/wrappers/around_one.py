"""What every quantizer around one other quantizer passes on to it."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from rqstack.quantizers.base import Quantizer, QuantizerOutput


class AroundOne(Quantizer):
    """A quantizer of tensors in another form; codes, codebooks and learning are those of the quantizer inside.

    A subclass says how its tensors become the vectors of the inner quantizer, and how vectors come back. What is said
    of code vectors (`embed_with_depth`, `codebook`, `code_vectors`, `targets`) speaks of the inner quantizer's.
    """

    def __init__(self, quantizer: Quantizer):
        super().__init__()
        self._watch_from_outside(quantizer)
        self.quantizer = quantizer
        self.num_codes, self.drops_levels = quantizer.num_codes, quantizer.drops_levels

    @abc.abstractmethod
    def _inward(self, z: Tensor) -> Tensor:
        """The vectors (..., E) that the inner quantizer takes; ValueError for a tensor of another form."""

    @abc.abstractmethod
    def _outward(self, vectors: Tensor, like: Tensor) -> Tensor:
        """Vectors (..., E) in the form of the tensor `like`."""

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize a tensor; `quantized` has its form. A mask has the shape of the codes without their depth."""
        vectors = self._inward(z)
        self._before_gathering(z)
        out = self.quantizer(vectors, mask)
        return out._replace(quantized=self._outward(out.quantized, z))

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> the part of every depth (..., D, E)."""
        return self.quantizer.embed_with_depth(codes)

    def codebook(self, depth: int) -> Tensor:
        """The (K, C) code vectors of depth `depth`."""
        return self.quantizer.codebook(depth)

    def code_vectors(self, depth: int) -> Tensor:
        """What each code of one depth adds (K, E)."""
        return self.quantizer.code_vectors(depth)

    def targets(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The vector every depth searches with (..., D, C) and its code (..., D)."""
        return self.quantizer.targets(self._inward(z), temp, stochastic, generator)

    def soft_codes(
        self, z: Tensor, temp: float = 1.0, stochastic: bool = False, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The probabilities (..., D, K) and codes (..., D) of the inner quantizer."""
        return self.quantizer.soft_codes(self._inward(z), temp, stochastic, generator)

    def update_codebook(self) -> None:
        """Apply what has been gathered."""
        self.quantizer.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what has been gathered."""
        self.quantizer.discard_codebook_update()

    def restart_counts(self) -> Tensor:
        """Entries restarted since construction, int64 (D,)."""
        return self.quantizer.restart_counts()

    @property
    def fixed_code_vectors(self) -> bool:
        """Whether those of the inner quantizer are fixed."""
        return self.quantizer.fixed_code_vectors

    @property
    def uses_all_parameters(self) -> bool:
        """Whether the inner quantizer does."""
        return self.quantizer.uses_all_parameters

    def _has_gathered(self) -> bool:
        return self.quantizer._has_gathered()
