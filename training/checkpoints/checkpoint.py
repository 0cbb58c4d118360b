"""Checkpoints: what a run needs to go on exactly where it stopped.

A checkpoint is a directory `checkpoints/step_00001000/`: `rank_XXXXX.safetensors` with the part each rank wrote,
`index.json` (where each tensor lies), `state.json` (all that is not a tensor) and `manifest.json` (SHA-256 of the
others). It is written beside its final name and renamed when complete; a reader does not see it before. It can be read
by any number of ranks, sharded or not, whatever wrote it. To use a trained model elsewhere, write a snapshot instead.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from runtime import distributed
from runtime.atomic import check_free_space, partial_of, remove_partial_directories
from runtime.errors import UserError, one_line
from runtime.step_directories import STEP_PREFIX, step_name
from training.checkpoints import state_tree
from training.checkpoints.checkpoint_directories import find_damage, find_latest_checkpoint
from training.checkpoints.checkpoint_index import Contents, read_contents, state_text
from training.checkpoints.checkpoint_storage import RankShare, SafetensorsReader, SafetensorsWriter

_RESERVED = ("step", "meta")


def save_checkpoint(
    directory: str | Path,
    step: int,
    objects: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    *,
    keep_last: int | None = None,
    keep_every: int | None = None,
) -> Path:
    """Write `directory/step_XXXXXXXX` and return it. All ranks call it; each writes its part.

    Args:
        directory: the run's `checkpoints` directory, on a disk that all ranks see; one run writes to it.
        step: optimizer steps done.
        objects: name -> something with `state_dict()`, or a nested state itself; the same names on every rank.
        meta: what the run wants back besides (images seen, ...); rank 0's is kept.
        keep_last: complete checkpoints that stay, this one (always) and the newest others; None keeps all.
        keep_every: checkpoints of steps that are multiples of it stay forever, beside the last ones.

    Raises:
        UserError: the directory cannot be written (full disk, no permission); older checkpoints are untouched.
    """
    return _Save(Path(directory), step, objects, meta, keep_last, keep_every).write()


class CheckpointWriter:
    """Writes a run's checkpoints, in the background if asked to: `save` returns when the state has been copied.

    All ranks make one and call its methods at the same points. As a context manager it waits at the end for what is
    still being written.

    Args:
        directory, keep_last, keep_every: as for `save_checkpoint`.
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
        """Start writing a checkpoint when the one before is complete.

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
        if self._pending is not None and not self._agreement.any(self._pending.is_alive()):
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


def load_checkpoint(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """One checkpoint: `{"step": int, "meta": dict, <object name>: <nested state>, ...}`, tensors whole, on the CPU.

    Args:
        path: a `step_XXXXXXXX` directory, or a run or `checkpoints` directory whose newest one is meant.
        verify: compare every file with its SHA-256 in the manifest.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
        UserError: a file is missing, truncated or altered; the message names it.
    """
    contents = _open(path, verify)
    targets = _targets(contents, {})
    _fill(contents, targets, alone=True)
    states = {name: _decoded(contents, name, targets) for name in contents.trees}
    return {"step": contents.step, "meta": _meta(contents), **states}


def read_progress(path: str | Path) -> dict[str, Any]:
    """`meta` and `step` of a run's checkpoint in one dict, without its tensors.

    Raises:
        UserError: they do not say where a run stands.
    """
    contents = _open(path, verify=False)
    progress = {**_meta(contents), "step": contents.step}
    if contents.step < 1 or type(progress.get("images_seen")) is not int:
        raise UserError(f"{contents.directory} does not say how many steps and images its run had done")
    return progress


def restore_checkpoint(path: str | Path, objects: Mapping[str, Any], *, verify: bool = True) -> dict[str, Any]:
    """Load a checkpoint into live objects (each with `load_state_dict`); returns its `meta` and `step` in one dict.

    All ranks call it. Where an object's state holds sharded tensors, a rank reads its shards only. An object whose
    state appears with training (an optimizer's moments) and is sharded then has `allocate_state()`.

    Raises:
        UserError: the checkpoint has other objects than asked for, or one does not fit.
    """
    contents = _open(path, verify)
    if set(contents.trees) != set(objects):
        raise UserError(
            f"{path} holds {', '.join(sorted(contents.trees))} but this run has {', '.join(sorted(objects))}: "
            "resume with the configuration it was started with"
        )
    meta = _meta(contents)
    targets = _targets(contents, {name: _live_tensors(name, item, contents) for name, item in objects.items()})
    _fill(contents, targets)
    for name, item in objects.items():
        state = _decoded(contents, name, targets)
        try:
            item.load_state_dict(state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: {name} does not fit this run: {one_line(error)}") from error
    return {**meta, "step": contents.step}


class _Background(Thread):
    """A thread that keeps its failure for `finish`. When it has ended nothing refers to its work any more."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(name="checkpoint")
        self._work: Callable[[], Any] | None = work
        self._failure: BaseException | None = None
        self.start()

    def run(self) -> None:
        """The thread's own."""
        try:
            self._work()
        except BaseException as failure:
            self._failure = failure
        finally:
            self._work = None

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
        trees, tensors = {}, {}
        for name, item in objects.items():
            assert name not in _RESERVED and name.isidentifier(), f"{name!r} cannot name an object of a checkpoint"
            trees[name], parts = state_tree.take_apart(_state_of(item))
            tensors |= {f"{name}/{key}": tensor for key, tensor in parts.items()}
        meta_tree, meta_tensors = state_tree.take_apart(dict(meta or {}))
        assert not meta_tensors, "meta holds plain values; tensors belong into an object"
        state = state_text(step, meta_tree, trees)
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        distributed.run_on_main(lambda: self._make_room(num_bytes + len(state)))
        self.share = RankShare(tensors, self.rank, self.world_size)
        self.writer = SafetensorsWriter(self.final, self.rank, state, keep_last, keep_every)

    def _make_room(self, num_bytes: int) -> None:
        if self.final.parent.is_dir():
            remove_partial_directories(self.final.parent, STEP_PREFIX)
        check_free_space(self.final, num_bytes)

    def write(self, group: Any = None) -> Path:
        """Write it, on all ranks; `group` is what the engine talks over."""
        try:
            _quiet_without_group()
            dcp.save(
                {}, storage_writer=self.writer, planner=self.share, process_group=group, no_dist=self.world_size == 1
            )
        except dcp.CheckpointException as failure:
            raise _explained(failure, f"cannot write {self.final}") from None
        except RuntimeError as error:  # the process group: another rank is gone
            raise UserError(f"cannot write {self.final}: {one_line(error)}") from error
        finally:
            if self.rank == 0:
                shutil.rmtree(partial_of(self.final), ignore_errors=True)
        return self.final


def _open(path: str | Path, verify: bool) -> Contents:
    found = find_latest_checkpoint(path)
    if found is None:
        raise FileNotFoundError(f"no complete checkpoint in {path}")
    damage = find_damage(found) if verify else None
    if damage is not None:
        raise UserError(damage)
    return read_contents(found)


def _state_of(item: Any) -> Any:
    return item.state_dict() if hasattr(item, "state_dict") else item


def _live_tensors(name: str, item: Any, contents: Contents) -> dict[str, Tensor]:
    """The tensors of an object that the checkpoint is for, under their full names."""
    tensors = state_tree.take_apart(_state_of(item))[1]
    missing = any(full.partition("/")[2] not in tensors for full in contents.names_of(name))
    if missing and hasattr(item, "allocate_state"):
        item.allocate_state()
        tensors = state_tree.take_apart(_state_of(item))[1]
    return tensors


def _targets(contents: Contents, live: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Memory for every tensor of a checkpoint: the live one where this process holds a shard of it, else a new one."""
    targets = {}
    for full, saved in contents.metadata.state_dict_metadata.items():
        name, _, key = full.partition("/")
        tensor = live.get(name, {}).get(key)
        if tensor is None or not state_tree.is_sharded(tensor):
            targets[full] = torch.empty(saved.size, dtype=saved.properties.dtype)
            continue
        if tensor.shape != saved.size:
            raise UserError(
                f"{contents.directory}: {name} does not fit this run: {key} has shape {list(saved.size)} "
                f"in the checkpoint, {list(tensor.shape)} here"
            )
        same = tensor.dtype == saved.properties.dtype
        targets[full] = tensor if same else torch.empty_like(tensor, dtype=saved.properties.dtype)
    return targets


def _fill(contents: Contents, targets: dict[str, Tensor], alone: bool = False) -> None:
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    try:
        _quiet_without_group()
        dcp.load(
            targets,
            storage_reader=SafetensorsReader(contents),
            planner=planner,
            no_dist=alone or distributed.get_world_size() == 1,
        )
    except dcp.CheckpointException as failure:
        raise _explained(failure, f"cannot read {contents.directory}") from None


def _decoded(contents: Contents, name: str, targets: Mapping[str, Tensor]) -> Any:
    tensors = {full.partition("/")[2]: targets[full] for full in contents.names_of(name)}
    try:
        return state_tree.decode(contents.trees[name], tensors)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{contents.directory}: the state of {name} cannot be read: {one_line(error)}") from error


def _meta(contents: Contents) -> dict[str, Any]:
    try:
        return dict(state_tree.decode(contents.meta, {}))
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{contents.directory}: its meta cannot be read: {one_line(error)}") from error


def _explained(failure: dcp.CheckpointException, what: str) -> Exception:
    """The first rank's failure in one line; a failure that no user can cause keeps every rank's traceback."""
    rank, (error, _) = min(failure.failures.items())
    if not isinstance(error, (OSError, UserError)):
        return RuntimeError(str(failure))
    where = f"rank {rank}: " if distributed.get_world_size() > 1 else ""
    return UserError(f"{what}: {where}{one_line(error)}")


def _quiet_without_group() -> None:
    """The engine finds it worth a warning that a single process has no process group."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
