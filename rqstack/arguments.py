"""What a user gives to a library call: one number, choice or path, refused in one line that says what is valid.

The ground of all checks of arguments. Others stand on it, each for what only some calls are given:

rqstack.quantizers.arithmetic.signatures     whole calls of quantizers, by the types that they are annotated with
rqstack.quantizers.arithmetic.given_tensors  tensors of quantizers: vectors, masks, codes
rqtransformer.given_values                   what samplers take in several forms: tensors, arrays or lists
"""

from __future__ import annotations

import math
import numbers
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

INT64_MAX = 2**63 - 1
SHOWN = 80  # characters of a value in a message

Kind = TypeVar("Kind")


def shown(value: Any) -> str:
    """A value for a message: one line, not long; of a tensor its type and shape."""
    if _is_tensor(value):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    text = " ".join(repr(value).split())
    if " at 0x" in text or (type(value).__module__ == "numpy" and not isinstance(value, numbers.Number)):
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_tensor(value: Any) -> bool:
    """Without torch there are none: it takes seconds to import, for which flags and configs must not wait."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_number(value: Any) -> bool:
    """Whether it is a number of Python's or numpy's; truth values are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """ValueError unless it is a whole number in range, at most one of 64 bits."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least or value > (INT64_MAX if most is None else most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {shown(value)}")
    return int(value)


def check_counts(name: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """ValueError unless it is a sequence of whole numbers in range, with at least one of them."""
    if isinstance(values, (str, bytes)) or _is_tensor(values) or not isinstance(values, Sequence) or not len(values):
        raise ValueError(f"{name} must be one or more whole numbers of at least {least}, got {shown(values)}")
    return tuple(check_count(f"every number of {name}", value, least) for value in values)


def height_width(name: str, value: Any) -> tuple[int, int]:
    """(H, W) of an image size in pixels: the side of a square, or [height, width]; ValueError for anything else."""
    numbers_given = list(value) if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) else [value]
    sizes = numbers_given * 2 if numbers_given == [value] else numbers_given
    if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, numbers.Integral) for size in sizes):
        raise ValueError(f"{name} must be a side in pixels or [height, width], not {shown(value)}")
    for size in sizes:
        if not 1 <= size <= INT64_MAX:
            raise ValueError(f"{name} must be at least 1, not {shown(value)}")
    return int(sizes[0]), int(sizes[1])


def plain_size(height: int, width: int) -> int | list[int]:
    """An image size as configs and manifests say it: one number of a square, else [height, width]."""
    return height if height == width else [height, width]


def check_number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, above: bool = False, below: bool = False
) -> float:
    """ValueError unless it is a finite number in range; above, below: the limits themselves are not."""
    if is_number(value) and _is_finite(value):
        if (value > least if above else value >= least) and (value < most if below else value <= most):
            return float(value)
    low = "" if least == -math.inf else f" {'above' if above else 'of at least'} {least:g}"
    high = "" if most == math.inf else f"{' and' if low else ''} {'below' if below else 'at most'} {most:g}"
    raise ValueError(f"{name} must be a number{low}{high}, got {shown(value)}")


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floating-point ones
        return False


def check_flag(name: str, value: Any) -> bool:
    """ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}")
    return value


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError where the value is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} {shown(value)} is not one of {', '.join(choices)}")


def check_kind(name: str, value: Any, kind: type[Kind]) -> Kind:
    """TypeError unless it is of the type."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {shown(value)}")
    return value


def check_mapping(name: str, value: Any) -> None:
    """TypeError unless it is a mapping of names to values."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping of names to values, got {shown(value)}")


def checked_path(name: str, value: Any) -> Path:
    """A path, `~` expanded; TypeError for what is none, ValueError for an empty one."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    if not os.fspath(value):
        raise ValueError(f"{name} must be a path, got an empty one")
    return Path(value).expanduser()
