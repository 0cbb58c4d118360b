"""Tensors of a file for a module that a config has built: whether they fit, and in what they do not.

PyTorch itself copies any tensor into any other of the same shape: whole numbers, or the real half of complex ones, into
weights, and weights into counters.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

SHOWN = 2  # problems of one kind
LONGEST = 280  # characters of a message
_REPEATED_BYTES = 1 << 20  # a few bytes of a file may stand for terabytes, by a step of 0


def check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str | Path) -> None:
    """Compares names, shapes and kinds of numbers.

    Args:
        wanted: the module's state dict; its tensors may have no memory (the meta device).
        given: what the file holds.
        source: the file, for the message.

    Raises:
        ValueError: in one line, the first of what is missing (with the nearest name that is left over), unexpected, or
            of another shape or kind.
    """
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    # names are compared letter by letter: only for those that are shown
    guesses = [name + _nearest(name, unexpected) for name in missing[:SHOWN]]
    problems = [*_first("missing", guesses + missing[SHOWN:]), *_first("unexpected", unexpected)]
    wrong = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    shapes = [f"{name} is {list(given[name].shape)}, the config wants {list(wanted[name].shape)}" for name in wrong]
    problems += _first("", shapes)
    both = [name for name in wanted if name in given and name not in wrong]
    odd = [(name, kind_that_differs(given[name], wanted[name])) for name in both]
    problems += _first("", [f"{name} {kind}" for name, kind in odd if kind])
    if problems:
        message = f"{source} does not fit the config: {'; '.join(problems)}"
        raise ValueError(message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}...")


def kind_that_differs(given: Tensor, wanted: Tensor) -> str:
    """What a tensor is that another one cannot be filled from; empty where it can."""
    if not_plain := form_of(given):
        return f"is {not_plain}"
    kind = _kind(given.dtype)
    if kind == _kind(wanted.dtype):
        return ""
    return f"holds {kind} ({str(given.dtype).removeprefix('torch.')}), {_kind(wanted.dtype)} are wanted"


def form_of(tensor: Tensor) -> str:
    """`sparse`, `nested`, `quantized`, `without numbers`, or a view that repeats; empty for a plain tensor."""
    if tensor.is_meta:
        return "without numbers (on the meta device)"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse" if tensor.layout != torch.strided else "nested"
    if tensor.is_quantized:
        return "quantized"
    held = tensor.untyped_storage().nbytes() if type(tensor) in (torch.Tensor, torch.nn.Parameter) else tensor.nbytes
    return "a view that repeats its numbers" if tensor.nbytes > held + _REPEATED_BYTES else ""


def check_kinds(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """ValueError, in one line, for the first tensor of another kind; names and shapes are PyTorch's to compare."""
    for name in wanted.keys() & given.keys():
        if kind := kind_that_differs(given[name], wanted[name]):
            raise ValueError(f"{name} {kind}")


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex numbers"
    if dtype.is_floating_point:
        return "floats"
    return "yes and no" if dtype == torch.bool else "whole numbers"


def _nearest(name: str, others: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(others), n=1)
    return f" (is it {nearest[0]}?)" if nearest else ""


def _first(label: str, items: list[str]) -> list[str]:
    shown = [f"{label} {item}".strip() for item in items[:SHOWN]]
    return shown + ([f"and {len(items) - SHOWN} more"] if len(items) > SHOWN else [])
