"""Codes drawn ahead: on a GPU the next batch is drawn while the caller decodes, scores and saves the one before.

Not verified on a GPU; the order of starts and waits is tested with stand-ins for its streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor


def drawn_ahead(draws: Iterable[Callable[[], Tensor]], device: torch.device) -> Iterator[Tensor]:
    """What the calls give, in order.

    On a GPU each call is started before the caller gets the result of the one before, on a stream of its own; what the
    caller does with a result waits for that result alone. Elsewhere a call is made when its result is asked for.
    """
    if device.type != "cuda":
        for draw in draws:
            yield draw()
        return
    # Two in turn: what a call copies to the device waits for its stream, and shall not wait for the call before.
    streams = itertools.cycle((torch.cuda.Stream(device), torch.cuda.Stream(device)))
    started: _Started | None = None
    for draw, stream in zip(draws, streams):
        stream.wait_stream(torch.cuda.current_stream(device))
        before, started = started, _Started(draw, stream)
        if before is not None:
            yield before.result(device)
    if started is not None:
        yield started.result(device)


class _Started:
    """A call whose kernels run on a stream."""

    def __init__(self, draw: Callable[[], Tensor], stream: torch.cuda.Stream):
        with torch.cuda.stream(stream):
            self._result = draw()
        self._end = stream.record_event()

    def result(self, device: torch.device) -> Tensor:
        """What the call gives, for use on the current stream."""
        caller = torch.cuda.current_stream(device)
        caller.wait_event(self._end)
        self._result.record_stream(caller)
        return self._result
