"""How one code is drawn: one table of rules, which every form of the draw is held to.

Legend: V vocabulary; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.arguments import is_number, shown


@dataclass(frozen=True)
class Rule:
    """One rule of the draw.

    Attributes:
        check: raises ValueError for a value out of range.
        apply: logits (..., V), or probabilities (..., V) that sum to 1, and a valid value -> the same, cut or scaled.
        after_softmax: whether it is given probabilities.
    """

    check: Callable[[Any], None]
    apply: Callable[[Tensor, Any], Tensor]
    after_softmax: bool = False


def divide_by_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits of a flatter (above 1) or sharper distribution."""
    return logits / temperature


def check_temperature(temperature: float) -> None:
    """Raises ValueError for a temperature that is not above 0."""
    if not is_number(temperature) or not temperature > 0:
        raise ValueError(f"temperature={shown(temperature)} must be above 0 (top_k=1 decodes greedily)")


def filter_top_k(logits: Tensor, k: int | None) -> Tensor:
    """Logits (..., V) with everything below the k-th largest set to -inf; ties at the k-th largest all stay."""
    if k is None or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def check_top_k(k: int | None) -> None:
    """Raises ValueError for a k below 1."""
    if k is not None and (isinstance(k, bool) or not isinstance(k, Integral) or k < 1):
        raise ValueError(f"top_k={shown(k)} must be a whole number of at least 1, or None for all codes")


def filter_top_p(probs: Tensor, p: float | None) -> Tensor:
    """Probabilities (..., V) cut to the smallest set of most likely codes that reaches p, renormalised.

    The code that crosses p stays (nucleus sampling, Holtzman et al. 2020). Which of several equally likely codes cross
    it is unspecified, as with the published sampler.
    """
    if p is None or p == 1.0:
        return probs
    ordered, order = probs.sort(dim=-1, descending=True)
    # The sum before each code is the sum up to its neighbour, not the sum without itself: only then does a sum of
    # exactly p close the set, whatever the subtraction would round to.
    before = F.pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
    kept = torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill(before >= p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def check_top_p(p: float | None) -> None:
    """Raises ValueError for a p that is not above 0 and at most 1."""
    if p is not None and (not is_number(p) or not 0.0 < p <= 1.0):
        raise ValueError(f"top_p={shown(p)} must be above 0 and at most 1, or None for all codes")


def row(off: Any, rule: Rule) -> Any:
    """A field of `DrawSettings`: the value that switches its rule off, and the rule."""
    return field(default=off, metadata={"rule": rule})


@dataclass(frozen=True)
class DrawSettings:
    """How one code is drawn: the table of the rules, top to bottom in the order in which they are applied.

    First those on logits, then the softmax, then those on probabilities. A rule that is added is a row that is added:
    `sampling_probs` walks the table, and the fast draws, which name the rules they know, step aside where another one
    is switched on.

    Raises:
        ValueError: for a value out of range.
    """

    temperature: float = row(1.0, Rule(check_temperature, divide_by_temperature))
    top_k: int | None = row(None, Rule(check_top_k, filter_top_k))
    top_p: float | None = row(None, Rule(check_top_p, filter_top_p, after_softmax=True))

    def __post_init__(self) -> None:
        for entry in fields(self):
            entry.metadata["rule"].check(getattr(self, entry.name))

    def in_force(self) -> dict[str, tuple[Rule, Any]]:
        """The rules that are switched on, by name, with their values."""
        return {
            entry.name: (entry.metadata["rule"], getattr(self, entry.name))
            for entry in fields(self)
            if getattr(self, entry.name) != entry.default
        }
