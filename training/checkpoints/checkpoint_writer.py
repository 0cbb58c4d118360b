"""Checkpoints: what a run needs to go on exactly where it stopped.

A checkpoint is a directory `checkpoints/step_00001000/`: `rank_XXXXX.safetensors` with the part each rank wrote,
`index.json` (where each tensor lies), `state.json` (all that is not a tensor) and `manifest.json` (SHA-256 of the
others). It is written beside its final name and renamed when complete; a reader does not see it before. It can be read
by any number of ranks, sharded or not, whatever wrote it. To use a trained model elsewhere, write a snapshot instead.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from runtime import distributed
from runtime.atomic import check_free_space, new_mark, partial_of, remove_partial_directories
from runtime.errors import UserError, one_line
from runtime.step_directories import STEP_PREFIX, step_name
from training.checkpoints import state_tree
from training.checkpoints.checkpoint_index import state_text
from training.checkpoints.checkpoint_storage import RankShare, SafetensorsWriter
from training.checkpoints.engine import explained, quiet_without_group

RESERVED_NAMES = ("step", "meta")


class CheckpointWriter:
    """Writes a run's checkpoints, in the background if asked to: `save` returns when the state has been copied.

    All ranks make one and call its methods at the same points. As a context manager it waits at the end for what is
    still being written.

    Args:
        directory: the run's `checkpoints` directory, on a disk that all ranks see; one run writes to it.
        keep_last: complete checkpoints that stay, the one just written (always) and the newest others; None keeps all.
        keep_every: checkpoints of steps that are multiples of it stay forever, beside the last ones.
        asynchronous: write in a thread while training goes on.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        keep_last: int | None = None,
        keep_every: int | None = None,
        asynchronous: bool = True,
    ) -> None:
        self.directory, self.keep_last, self.keep_every = Path(directory), keep_last, keep_every
        self.asynchronous = asynchronous
        # the thread's collectives must not meet those of training
        self._group = distributed.new_host_group() if asynchronous else None
        self._agreement = distributed.HostAgreement() if asynchronous else None
        self._pending: _Background | None = None

    def save(self, step: int, objects: Mapping[str, Any], meta: Mapping[str, Any] | None = None) -> None:
        """Start writing `step_XXXXXXXX` when the checkpoint before is complete.

        Args:
            step: optimizer steps done.
            objects: name -> something with `state_dict()`, or a nested state itself; the same names on every rank.
            meta: what the run wants back besides (images seen, ...); rank 0's is kept.

        Raises:
            UserError: this one, or the one before, cannot be written.
        """
        self.wait()
        save = _Save(self.directory, step, objects, meta, self.keep_last, self.keep_every)
        if not self.asynchronous:
            save.write()
            return
        group = self._group
        self._pending = _Background(lambda: save.write(group))

    def check(self) -> None:
        """For every step: raise on all ranks what went wrong in the background, as soon as all of them know."""
        if self._pending is None or self._agreement is None:
            return
        if not self._agreement.any(self._pending.is_alive()):
            self.wait()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            UserError: the checkpoint could not be written; the ones before are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.finish()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            self.wait()
        except UserError:
            if kind is None:  # otherwise what ended the run first is the one to be told
                raise
        finally:
            self._group = self._agreement = None


class _Background(Thread):
    """A thread that keeps its failure for `finish`. When it has ended nothing refers to its work any more."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(name="checkpoint")
        self._work = work
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's own."""
        try:
            self._work()
        except BaseException as failure:
            self._failure = failure
        finally:
            del self._work

    def finish(self) -> None:
        """Wait for the end, and raise what the work raised."""
        self.join()
        failure, self._failure = self._failure, None
        if isinstance(failure, UserError):
            raise failure.with_traceback(None)  # its frames would keep the process group alive
        if failure is not None:
            raise failure


class _Save:
    """One checkpoint, copied from the live objects and ready to be written."""

    def __init__(
        self,
        directory: Path,
        step: int,
        objects: Mapping[str, Any],
        meta: Mapping[str, Any] | None,
        keep_last: int | None,
        keep_every: int | None,
    ) -> None:
        self.final = directory / step_name(step)
        self.rank, self.world_size = distributed.get_rank(), distributed.get_world_size()
        trees: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for name, item in objects.items():
            assert name not in RESERVED_NAMES and name.isidentifier(), f"{name!r} cannot name an object of a checkpoint"
            trees[name], parts = state_tree.take_apart(state_tree.state_of(item))
            tensors |= {f"{name}/{key}": tensor for key, tensor in parts.items()}
        meta_tree, meta_tensors = state_tree.take_apart(dict(meta or {}))
        assert not meta_tensors, "meta holds plain values; tensors belong into an object"
        state = state_text(step, meta_tree, trees)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        self.mark = distributed.run_on_main(lambda: self._make_room(num_bytes + len(state)))
        self.share = RankShare(tensors, self.rank, self.world_size)
        self.writer = SafetensorsWriter(self.final, self.mark, self.rank, state, keep_last, keep_every)

    def _make_room(self, num_bytes: int) -> str:
        if self.final.parent.is_dir():
            remove_partial_directories(self.final.parent, STEP_PREFIX)
        check_free_space(self.final, num_bytes)
        return new_mark()

    def write(self, group: Any = None) -> None:
        """Write it, on all ranks; `group` is what the engine talks over."""
        try:
            quiet_without_group()
            dcp_save(
                {}, storage_writer=self.writer, planner=self.share, process_group=group, no_dist=self.world_size == 1
            )
        except CheckpointException as failure:
            raise explained(failure, f"cannot write {self.final}") from None
        except RuntimeError as error:  # the process group: another rank is gone
            raise UserError(f"cannot write {self.final}: {one_line(error)}") from error
        finally:
            if self.rank == 0:
                shutil.rmtree(partial_of(self.final, self.mark), ignore_errors=True)
