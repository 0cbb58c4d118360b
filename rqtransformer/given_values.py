"""What users give to the samplers, in whatever holds it: whole numbers, alone or many, codes in a vocabulary, settings.

Here a number may also come in a tensor or an array. Settings of models, which are written down, are checked by
`rqstack.arguments`, which takes plain numbers alone.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rqstack.arguments import INT64_MAX, shown


def whole_number(name: str, value: Any, lowest: int | None = None) -> int:
    """A Python int of anything that is a whole number.

    Raises:
        ValueError: for another type, a truth value, or a number below `lowest` or beyond int64.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or (lowest is not None and number < lowest) or abs(number) > INT64_MAX:
        at_least = "" if lowest is None else f" of at least {lowest}"
        raise ValueError(f"{name}={shown(value)} must be a whole number{at_least}")
    return number


def whole_numbers(name: str, value: Any) -> Tensor:
    """An int64 tensor with at least one axis, where a tensor lies, of a tensor, an array or a list.

    Raises:
        ValueError: for other types, numbers that are not whole by type, or nothing but a number.
    """
    try:
        numbers = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"{name} must be whole numbers in a tensor, an array or lists of equal length, not {shown(value)}"
        ) from None
    if numbers.dtype == torch.bool or numbers.is_floating_point() or numbers.is_complex():
        if numbers.numel():  # an empty list is one of floats
            raise ValueError(f"{name} is of type {numbers.dtype} and must be of whole numbers: {name}.long()")
    if not numbers.ndim:
        raise ValueError(f"{name}={shown(value)} must have one entry per sample: a tensor, an array or a list")
    return numbers.long()


def check_codes_below(name: str, codes: Tensor, sizes: Sequence[int]) -> None:
    """ValueError for codes (..., D) that are not below the sizes of their depths. Waits for the device of the codes."""
    sizes_D = torch.tensor(sizes, device=codes.device)
    wrong = (codes < 0) | (codes >= sizes_D)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: code {int(codes[tuple(place)])} of depth {place[-1]} must lie in 0..{sizes[place[-1]] - 1}"
        )


def plain(value: Any) -> Any:
    """Settings that came in a tensor or an array as Python's numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value
