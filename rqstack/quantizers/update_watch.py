"""Whether `update_codebook()` is forgotten: what train-mode forwards gather would grow, and the codebook never move."""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

NODES_SEARCHED = 64
WARN_FORWARDS = 4  # without a parameter behind the vectors, which would tell
KEPT_FORWARDS = 64  # of those
KEPT_MICRO_BATCHES = 1024  # with one: forwards between two steps of the optimizer


class UpdateWatch:
    """Sees every train-mode forward of a quantizer that gathers.

    A parameter from which the vectors came tells an optimizer step (its values have changed) from another micro-batch
    of the same step. What was gathered before a step that is past is no longer wanted.
    """

    def __init__(self) -> None:
        self._start(None)
        self._warned = False

    def forgotten(self, z: Tensor, quantizer: nn.Module, gathered: bool) -> bool:
        """To be called before a forward gathers. Whether what has been gathered is to be dropped; warns once.

        Args:
            z: what is quantized. gathered: whether anything has been gathered since the last update.
        """
        if torch.compiler.is_compiling():
            return False
        source = _parameter_behind(z)
        if not gathered:
            self._start(source)
            return False
        self._forwards += 1
        known = None if self._source is None else self._source()
        if source is not None and known is source:
            drop = source._version != self._version or self._forwards > KEPT_MICRO_BATCHES
            warn = drop
        else:
            drop, warn = self._forwards > KEPT_FORWARDS, self._forwards > WARN_FORWARDS
        if warn and not self._warned:
            self._warned = True
            warnings.warn(
                f"update_codebook() of this {type(quantizer).__name__} was not called since {self._forwards - 1} "
                "train-mode forward(s): its codebook does not learn. Call it once after every optimizer step; "
                "use .eval() where nothing is to be learned.",
                stacklevel=4,
            )
        if drop:
            self._start(source)
        return drop

    def __getstate__(self) -> dict[str, Any]:
        """Without the weak reference, which cannot be pickled."""
        return {**self.__dict__, "_source": None}

    def _start(self, source: nn.Parameter | None) -> None:
        self._source = None if source is None else weakref.ref(source)
        self._version = 0 if source is None else source._version
        self._forwards = 1


def _parameter_behind(z: Tensor) -> nn.Parameter | None:
    """The nearest parameter in the graph that made a tensor, if one is near."""
    waiting, seen = deque([z.grad_fn]), 0
    while waiting and seen < NODES_SEARCHED:
        node, seen = waiting.popleft(), seen + 1
        if node is None:
            continue
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            return variable
        waiting.extend(following for following, _ in node.next_functions)
    return None
