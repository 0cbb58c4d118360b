"""A CPU stand-in for the recording of kernels: it keeps tensors, not Python code, and runs nothing while it records."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What a capture on a GPU refuses: copies from and to the host, and shapes that depend on values.
REFUSED = ("aten.lift_fresh", "aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.item")


class Recorded:
    """The operations of a step, on the very tensors that they had."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.replays = 0

    def replay(self) -> None:
        """All operations again; what they gave the first time gets the new values."""
        self.replays += 1
        for function, args, kwargs, outputs in self.operations:
            for old, new in zip(outputs, _tensors(function(*args, **kwargs)), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class StandInRecorder:
    """Records on a CPU.

    Attributes:
        recordings: all that were made.
        inside: whether work runs aside.
    """

    def __init__(self) -> None:
        self.recordings: list[Recorded] = []
        self.inside, self.waits = False, 0

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Notes who is inside."""
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def record(self, step: Callable[[], None]) -> Recorded:
        """Records the step and undoes what it did, as if it had not run."""
        assert self.inside, "recorded outside of its stream"
        mode = _Recording()
        with mode:
            step()
        for tensor, before in mode.before.values():
            tensor.copy_(before)
        self.recordings.append(mode.recorded)
        return mode.recorded

    def wait(self) -> None:
        """Counts."""
        self.waits += 1


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.recorded = Recorded()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # memory from outside that was written to
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if str(func).startswith(REFUSED):
            raise RuntimeError(f"{func} cannot be recorded")
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[place] if place < len(args) else kwargs.get(argument.name)
                for tensor in _tensors(given):
                    self._remember(tensor)
        out = func(*args, **kwargs)
        outputs = _tensors(out)
        known = {leaf.untyped_storage().data_ptr() for leaf in _tensors((args, kwargs))}
        self._made |= {tensor.untyped_storage().data_ptr() for tensor in outputs} - known
        self.recorded.operations.append((func, args, kwargs, outputs))
        return out

    def _remember(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._made or storage.data_ptr() in self.before:
            return
        whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
        self.before[storage.data_ptr()] = whole, whole.clone()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
