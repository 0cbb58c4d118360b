"""Recordings on a GPU: hundreds of kernels started by a single call.

Not verified on a GPU. What is recorded works on fixed buffers alone; that form is tested on the CPU, with a stand-in
for the recording.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import torch


class Recording(Protocol):
    """What was recorded: the same kernels on the same memory, whenever it is asked for."""

    def replay(self) -> None:
        """Starts all of it."""
        ...


class Recorder(Protocol):
    """Where recorded work runs."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """The place of all work on a program's buffers, in order with the caller's work before and after."""
        ...

    def record(self, step: Callable[[], None]) -> Recording | None:
        """Records a step that has run before, without running it; None where nothing is ever recorded."""
        ...

    def wait(self) -> None:
        """Until nothing that was started is still running."""
        ...


class NoRecorder:
    """Runs every step as it is: devices without graphs."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Here and now."""
        return contextlib.nullcontext()

    def record(self, step: Callable[[], None]) -> Recording | None:
        """Nothing."""
        return None

    def wait(self) -> None:
        """Nothing is left running."""


class CudaRecorder:
    """Records CUDA graphs on one stream, with one memory pool.

    One stream, so that there is one workspace of cuBLAS and replays follow each other; then they may also share what
    they allocate while they run. A stream that is being recorded must see no other work, so a lock keeps threads apart.

    Args:
        device: with its index.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On the recorder's stream; the caller's stream waits for it afterwards, the host does not."""
        with self._lock, torch.cuda.device(self._device):
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                caller.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Recording:
        """See `Recorder`. Threads that do other things meanwhile, such as pinning memory, do not spoil it."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what is freed while recording would be freed by the recording
        with self.aside():
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                step()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the first error says more
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def wait(self) -> None:
        """See `Recorder`."""
        self._stream.synchronize()


def recorder_on(device: torch.device) -> Recorder:
    """The recorder of a device, always the same one."""
    if device.type != "cuda":
        return NoRecorder()
    return _cuda_recorder(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _cuda_recorder(index: int) -> CudaRecorder:
    return CudaRecorder(torch.device("cuda", index))
