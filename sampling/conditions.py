"""What samples are asked to show: classes or captions, taken in turn.

Legend: B batch, L condition length, M conditions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Conditions(Protocol):
    """What samples are asked to show. Sample i has condition i modulo `num`."""

    @property
    def num(self) -> int:
        """How many there are (M)."""

    @property
    def key(self) -> str:
        """What a condition's number is called in a batch."""

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """What the model takes for conditions with these numbers; None for a model without condition."""


@dataclass(frozen=True)
class ClassConditions:
    """The classes of a model; one class stands for an unconditional model."""

    num: int
    key: str = "label"

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """The numbers themselves (B,)."""
        return condition_B if self.num > 1 else None


@dataclass(frozen=True)
class CaptionConditions:
    """Captions, as their token ids (M, L)."""

    token_ML: Tensor
    key: str = "caption"

    @property
    def num(self) -> int:
        return len(self.token_ML)

    def ids(self, condition_B: Tensor) -> Tensor:
        """Token ids (B, L)."""
        return self.token_ML[condition_B]
