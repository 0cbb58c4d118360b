"""Packages whose public names are imported when they are asked for: `--help` of a command does not wait for torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def late_names(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) that takes each name from the module that defines it.

    A type checker does not see through it: the package imports the same names under `TYPE_CHECKING`.

    Args:
        package: its `__name__`.
        homes: full name of a module -> the names that it defines.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
