"""One decoding step as a CUDA graph: hundreds of kernels started by a single call.

Not verified on a GPU. The step it replays keeps its position in device tensors, and that form is tested on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

EAGER_STEPS = 2


class StepGraph:
    """Calls a step twice as it is, then records it and replays the record; the last position runs as it is again.

    The first calls load kernels and fill workspaces, which recording forbids. They are real steps, so nothing has to be
    undone.

    Args:
        step: the step of one position, whose tensors stay where they are.
        decoder: its `Decoder`, whose Python-side position moves on with every replay.
    """

    def __init__(self, step: Callable[[], None], decoder: Any):
        self._step, self._decoder = step, decoder
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._stream = torch.cuda.Stream()

    def __call__(self) -> None:
        """One position."""
        decoder = self._decoder
        last = decoder.position + 1 == decoder.model.num_positions
        if last or self._calls < EAGER_STEPS:
            self._calls += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._step()
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        if self._graph is None:
            self._graph = self._record()  # moves the Python-side position on
        else:
            decoder.position += 1
        self._graph.replay()

    def _record(self) -> torch.cuda.CUDAGraph:
        static_BC = self._decoder.context.clone()
        self._decoder.keep_context_in(static_BC)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
            self._decoder.keep_context_in(static_BC)
        return graph
