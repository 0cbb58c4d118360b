"""What samples are asked to show: classes or captions.

Legend: B batch, L condition length, M conditions, N samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from data.tokenizers.caption_tokenizer import CaptionTokenizer
from evaluation.protocol import balanced_conditions, proportional_conditions
from runtime.errors import UserError, first_few


class Conditions(Protocol):
    """What samples are asked to show, numbered 0..M-1."""

    @property
    def num(self) -> int:
        """How many there are (M)."""

    @property
    def key(self) -> str:
        """What a condition is called in a batch."""

    def of_samples(self, num_samples: int) -> Tensor:
        """The number of the condition of every sample (N,): of sample i a function of i alone."""

    def names(self, condition_B: Tensor) -> Tensor:
        """What a batch says of conditions with these numbers: classes as the data set numbers them."""

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """What the model takes for conditions with these numbers; None for a model without condition."""


@dataclass(frozen=True, eq=False)
class ClassConditions:
    """The classes of a model; one class stands for an unconditional model.

    Attributes:
        num_classes: of the model.
        classes: those that are asked for, int64 (M,), ascending; None: all.
        counts: how often each of them occurs (M,), and so is asked for; None: each in turn.
    """

    num_classes: int
    classes: Tensor | None = None
    counts: Tensor | None = None
    key: str = "label"

    @property
    def num(self) -> int:
        return self.num_classes if self.classes is None else len(self.classes)

    def of_samples(self, num_samples: int) -> Tensor:
        """In turn, or as often as they occur."""
        if self.counts is None:
            return balanced_conditions(num_samples, self.num)
        return proportional_conditions(num_samples, self.counts)

    def names(self, condition_B: Tensor) -> Tensor:
        """The classes (B,)."""
        return condition_B if self.classes is None else self.classes.to(condition_B.device)[condition_B]

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """The classes (B,)."""
        return self.names(condition_B) if self.num_classes > 1 else None

    def fits(self, num_classes: int) -> bool:
        """Whether they are classes of a data set with so many: all of the model's, or those that are asked for."""
        return num_classes == self.num_classes if self.classes is None else int(self.classes.max()) < num_classes

    @classmethod
    def of_counts(cls, count_Y: Tensor, by_frequency: bool = False) -> ClassConditions:
        """The classes that occur in `count_Y`, in turn or as often as they occur.

        Raises:
            ValueError: none occurs.
        """
        classes = count_Y.nonzero().squeeze(1)
        if not len(classes):
            raise ValueError("no class has images")
        counts = count_Y[classes] if by_frequency else None
        return cls(len(count_Y), None if len(classes) == len(count_Y) else classes, counts)


@dataclass(frozen=True)
class CaptionConditions:
    """Captions, as their token ids (M, L)."""

    token_ML: Tensor
    key: str = "caption"

    @property
    def num(self) -> int:
        return len(self.token_ML)

    def of_samples(self, num_samples: int) -> Tensor:
        """In turn."""
        return balanced_conditions(num_samples, self.num)

    def names(self, condition_B: Tensor) -> Tensor:
        """The numbers themselves (B,)."""
        return condition_B

    def ids(self, condition_B: Tensor) -> Tensor:
        """Token ids (B, L)."""
        return self.token_ML[condition_B]


def class_number(asked: str, class_names: Sequence[str], num_classes: int) -> int:
    """The class that a user calls by its name or its number.

    Args:
        class_names: of the model; empty where it does not know them.
        num_classes: of the model.

    Raises:
        UserError: none of them; the message has the choices.
    """
    class_names = class_names[:num_classes]  # those of a snapshot from elsewhere may be more
    if asked in class_names:
        return class_names.index(asked)
    if asked.isdecimal() and len(asked) < 10 and int(asked) < num_classes:
        return int(asked)
    numbers = f"0..{num_classes - 1}"
    choices = f"{first_few(class_names, 10)}, or {numbers}" if class_names else numbers
    raise UserError(f"--class {asked} is none of the model's: {choices}")


def condition_texts(
    conditions: Conditions,
    condition_N: Tensor,
    class_names: Sequence[str] = (),
    tokenizer: CaptionTokenizer | None = None,
) -> list[str]:
    """What samples of these conditions are asked to show, in words; empty where nothing is asked or no words are known.

    Args:
        condition_N: the number of the condition of every sample.
        class_names: of the data set; a class without a name is called by its number.
        tokenizer: what made the tokens of captions.
    """
    asked = conditions.ids(condition_N)
    if asked is None:
        return []
    if asked.dim() > 1:
        return [] if tokenizer is None else [tokenizer.decode(ids) for ids in asked.tolist()]
    return [class_names[number] if number < len(class_names) else f"class {number}" for number in asked.tolist()]
