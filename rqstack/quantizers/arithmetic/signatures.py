"""Arguments checked by the annotations of their call: one line that names the argument, before anything is made of it.

What is more than a type (a range, a choice, what goes with what) each call checks itself, with `rqstack.arguments`.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rqstack.arguments import INT64_MAX, check_number, shown

FLOAT32_MAX = torch.finfo(torch.float32).max

Called = TypeVar("Called", bound=Callable[..., Any])


def checks_arguments(called: Called, error: type[ValueError] = ValueError) -> Called:
    """The function or class, whose arguments are checked by their annotations at every call (of its own `__init__`).

    Numbers are finite in fp32 and whole ones have 64 bits; truth values are no numbers; a sequence may be of any kind,
    text is none. Annotations of other kinds are not looked at.
    """
    if not inspect.isclass(called):
        return typing.cast("Called", _checking(called, called, error, 0))
    annotated = called if dataclasses.is_dataclass(called) else called.__init__  # the class knows inherited fields
    called.__init__ = _checking(called.__init__, annotated, error, 1)  # type: ignore[method-assign]  # that is the point
    return called


def _checking(
    function: Callable[..., Any], annotated: Any, error: type[ValueError], skipped: int
) -> Callable[..., Any]:
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    by_position = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    variadic = {p.name for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}

    @functools.cache
    def hints() -> dict[str, Any]:  # at the first call: names in annotations may be defined below
        known = typing.get_type_hints(annotated)
        return {name: hint for name, hint in known.items() if name not in variadic}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in [*zip(by_position, args[skipped:], strict=False), *kwargs.items()]:
            problem = _problem(name, value, hints().get(name, Any))
            if problem is not None:
                raise error(problem)
        return function(*args, **kwargs)

    return checked


def _problem(name: str, value: Any, hint: Any) -> str | None:
    """A line that says what the value should be, or None."""
    if isinstance(hint, TypeVar):
        hint = hint.__bound__ or Any
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _problem_of_union(name, value, parts)
    if hint is float:
        return _problem_of_number(name, value)
    if origin in (list, tuple, collections.abc.Sequence):
        return _problem_of_sequence(name, value, parts, origin is tuple)
    wanted, right = _kind(value, hint, origin)
    return None if right else f"{name} must be {wanted}, got {shown(value)}"


def _kind(value: Any, hint: Any, origin: Any) -> tuple[str, bool]:
    """What is wanted, in words, and whether it is that."""
    if hint is bool:
        of_numpy = type(value).__module__ == "numpy" and type(value).__name__.startswith("bool")
        return "True or False", of_numpy or (isinstance(value, int) and value in (0, 1))
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return "a whole number", whole and abs(int(value)) <= INT64_MAX
    if collections.abc.Callable in (hint, origin):
        return "callable", callable(value)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return "anything", True
    return f"of type {kind.__name__}", isinstance(value, kind)


def _problem_of_number(name: str, value: Any) -> str | None:
    try:
        if abs(check_number(name, value)) > FLOAT32_MAX:
            return f"{name} must be a number that 32 bits can hold, got {shown(value)}"
    except ValueError as error:
        return str(error)
    return None


def _problem_of_union(name: str, value: Any, parts: tuple[Any, ...]) -> str | None:
    """That of the only kind beside None, else one line about all kinds."""
    others = [part for part in parts if part is not type(None)]
    if value is None and len(others) < len(parts):
        return None
    problems = [_problem(name, value, part) for part in others]
    if None in problems:
        return None
    if len(problems) == 1:
        return problems[0]
    wanted = [str(problem).removeprefix(f"{name} must be ").split(", got ")[0] for problem in problems]
    return f"{name} must be {' or '.join(dict.fromkeys(wanted))}, got {shown(value)}"


def _problem_of_sequence(name: str, value: Any, parts: tuple[Any, ...], fixed: bool) -> str | None:
    if isinstance(value, (str, bytes, Tensor)) or not isinstance(value, Sequence):
        return f"{name} must be a sequence, got {shown(value)}"
    fixed = fixed and Ellipsis not in parts
    if fixed and len(value) != len(parts):
        return f"{name} must have {len(parts)} entries, got {shown(value)}"
    hints = parts if fixed else [parts[0] if parts else Any] * len(value)
    problems = (_problem(f"every entry of {name}", entry, hint) for entry, hint in zip(value, hints, strict=True))
    return next((problem for problem in problems if problem is not None), None)
