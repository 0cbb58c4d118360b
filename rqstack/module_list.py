"""`torch.nn.ModuleList` with the type of its modules.

For the type checker alone: when a program runs, `ModuleList` is torch's own class, under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

M = TypeVar("M", bound=nn.Module)

if TYPE_CHECKING:

    class ModuleList(nn.ModuleList, Generic[M]):
        """A list of modules of one type."""

        def __init__(self, modules: Iterable[M] | None = None) -> None: ...

        @overload
        def __getitem__(self, idx: slice) -> ModuleList[M]: ...

        @overload
        def __getitem__(self, idx: int) -> M: ...

        def __getitem__(self, idx: int | slice) -> M | ModuleList[M]: ...

        def __iter__(self) -> Iterator[M]: ...

else:
    ModuleList = nn.ModuleList
