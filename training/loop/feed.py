"""Batches for the loop that outlive their data workers.

The order of the samples is a function of the images seen, so a loader whose worker was killed (out of memory, a
signal) is simply opened again where it stood: the batches that follow are those that would have followed.
"""

from __future__ import annotations

import itertools
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from runtime.errors import UserError, one_line
from runtime.processes.system import CHILD_SIGNAL
from training.stage import Batch

_DEATH = re.compile(r"DataLoader worker \(pid|Pin memory thread exited")


class Feed:
    """Endless micro-batches from a loader that can be opened at any step.

    Args:
        open_at: `(images_seen, num_workers) -> batches` of this rank from the step that starts after `images_seen`
            images of all ranks.
        num_workers: data workers of the loader.
        images_seen: where the run stands.
        global_batch: images of one step over all ranks and micro-batches.
        accumulation: micro-batches of one step.
        max_deaths: how often the loader is opened again before the run stops.
        warn: told about every death.
    """

    def __init__(
        self,
        open_at: Callable[[int, int], Iterable[Batch]],
        num_workers: int,
        *,
        images_seen: int,
        global_batch: int,
        accumulation: int,
        max_deaths: int,
        warn: Callable[[str], None],
    ) -> None:
        self._open_at, self._num_workers = open_at, num_workers
        self._start, self._global_batch, self._accumulation = images_seen, global_batch, accumulation
        self._taken = 0
        self._survivor = Survivor(max_deaths, warn)
        self._batches = self._survivor.iterate(self._reopen)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._taken += 1
        return batch

    def step_again(self, images_seen: int) -> list[Batch]:
        """This rank's micro-batches of the step that started after `images_seen` images, made once more."""
        return list(itertools.islice(self._open_at(images_seen, 0), self._accumulation))

    def _reopen(self) -> Iterator[Batch]:
        steps, within = divmod(self._taken, self._accumulation)
        return itertools.islice(
            self._open_at(self._start + steps * self._global_batch, self._num_workers), within, None
        )


class Survivor:
    """Iterates over what loaders give and opens them again when one of their workers has died.

    Args:
        max_deaths: deaths, over all iterations, after which the run stops.
        warn: told about every one before.
    """

    def __init__(self, max_deaths: int, warn: Callable[[str], None]) -> None:
        self.max_deaths, self.warn = max_deaths, warn
        self.deaths = 0

    def iterate(self, reopen: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
        """The batches of `reopen()`, which is called again after a death and goes on where the last one stood.

        Raises:
            UserError: more than `max_deaths` workers have died.
        """
        batches = iter(reopen())
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if not is_death(error):
                    raise
                self._count(error)
                batches = iter(reopen())
                continue
            let_deaths_wait()
            yield batch

    def iterate_once(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Every batch of a finite loader once, those before a death not again."""
        given = 0

        def rest() -> Iterator[Batch]:
            return itertools.islice(iter(batches), given, None)

        for batch in self.iterate(rest):
            given += 1
            yield batch

    def _count(self, error: Exception) -> None:
        self.deaths += 1
        if self.deaths > self.max_deaths:
            raise UserError(
                f"{self.deaths} data workers have died, more than experiment.max_worker_deaths={self.max_deaths}; "
                f"the last one: {one_line(error)}"
            ) from error
        self.warn(f"a data worker has died ({one_line(error)}); the loader goes on where it stood")


def is_death(error: Exception) -> bool:
    """Whether reading from a loader failed because a worker is no more, not because of what the worker did.

    PyTorch says so, or the connection breaks over which a worker hands out the memory of its tensors.
    """
    if isinstance(error, RuntimeError):
        return _DEATH.search(str(error)) is not None
    files = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(Path(file).parent.name == "multiprocessing" for file in files)


def let_deaths_wait() -> None:
    """Leaves the death of a data worker to be found by the next read.

    PyTorch's handler of SIGCHLD raises wherever the main thread happens to be, which may be in the middle of an
    optimizer step; without it a reader finds out within five seconds.
    """
    if CHILD_SIGNAL is None or threading.current_thread() is not threading.main_thread():
        return
    handler = signal.getsignal(CHILD_SIGNAL)
    if getattr(handler, "__module__", "").startswith("torch.utils.data"):
        signal.signal(CHILD_SIGNAL, signal.SIG_DFL)
