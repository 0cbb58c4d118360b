"""`torch.distributed.checkpoint` on safetensors and JSON instead of pickle.

PyTorch's engine plans (who writes which part, which parts fill a shard that is read), moves failures to all ranks and
reshards; this file says what a rank contributes and how bytes reach the disk. Every rank writes its part into
`rank_XXXXX.safetensors`; when all are done rank 0 adds `state.json`, `index.json` and `manifest.json` and renames the
directory. PyTorch's own `HuggingFaceStorageWriter` keeps no metadata beside sharded files, hashes nothing and renames
nothing; its `FileSystemWriter` pickles the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_local_save_plan
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.checkpoint.utils import find_state_dict_object
from torch.futures import Future

from rqstack.snapshots import plain_copy
from runtime.atomic import begin_directory, commit_directory, partial_of, sha256_of_file
from runtime.errors import UserError, one_line
from runtime.processes.system import flush_to_disk
from runtime.step_directories import prune_steps
from training.checkpoints.checkpoint_directories import INDEX, MANIFEST, STATE, manifest_text
from training.checkpoints.checkpoint_index import Contents, Place, index_text


class RankShare(DefaultSavePlanner):
    """What this rank writes, as copies on the CPU: training may change the originals at once.

    A sharded tensor is written by the ranks that hold its shards. A tensor that all ranks hold is written by one of
    them, the one with the least to write so far; all ranks work this out alike without asking each other. Vectors and
    scalars come from rank 0: batch statistics are such, may differ between ranks, and rank 0's are the run's.

    Args:
        tensors: full name -> live tensor, the same names in the same order on every rank.
    """

    def __init__(self, tensors: Mapping[str, Tensor], rank: int, world_size: int) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.items: list[WriteItem] = []
        load = [0] * world_size
        for item in create_default_local_save_plan(dict(tensors), rank == 0).items:
            about, num_bytes = item.tensor_data, item.tensor_storage_size()
            assert about is not None and num_bytes is not None, "every item is a tensor"
            if item.type is WriteItemType.SHARD:
                mine = 0 not in about.chunk.sizes or 0 in about.size and rank == 0
            else:
                owner = 0 if len(about.size) < 2 else load.index(min(load))
                load[owner] += num_bytes
                mine = owner == rank
            if mine:
                self.items.append(item)
        self.copies = {item.index: plain_copy(find_state_dict_object(dict(tensors), item.index)) for item in self.items}

    def create_local_plan(self) -> SavePlan:
        """Called by the engine on every rank."""
        self.plan = SavePlan(self.items)
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """Called by the engine for everything that stayed in this rank's plan."""
        return self.copies[index]


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint directory; see the module's text.

    Args:
        final: the name the directory gets when it is complete.
        mark: of the temporary name, the same on every rank and on no other run's.
        state: the text of `state.json`.
        keep_last, keep_every: which older checkpoints stay, see `prune_steps`.
    """

    def __init__(
        self, final: Path, mark: str, rank: int, state: str, keep_last: int | None, keep_every: int | None
    ) -> None:
        self.final, self.mark, self.rank, self.state = final, mark, rank, state
        self.keep_last, self.keep_every = keep_last, keep_every

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Rank 0 makes the temporary directory; the engine lets no rank write before that."""
        if is_coordinator:
            begin_directory(self.final, self.mark)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """This rank's file, flushed to disk and hashed."""
        written: Future[list[WriteResult]] = Future()
        written.set_result(self._write(plan, planner) if plan.items else [])
        return written

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        file = partial_of(self.final, self.mark) / f"rank_{self.rank:05d}.safetensors"
        try:
            save_file({item.index.fqn: _tensor(planner, item) for item in plan.items}, file)
        except SafetensorError as error:  # the others get to know of it; this class cannot be sent
            raise OSError(one_line(error)) from None
        flush_to_disk(file)
        about = {"file": file.name, "sha256": sha256_of_file(file), "bytes": file.stat().st_size}
        return [WriteResult(item.index, item.tensor_storage_size() or 0, about) for item in plan.items]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0, when every rank has written: the descriptions, the completion mark, the final name."""
        partial = partial_of(self.final, self.mark)
        file_of, files = {}, {}
        for result in (result for of_rank in results for result in of_rank):
            about = result.storage_data
            file_of[result.index] = about["file"]
            files[about["file"]] = {"sha256": about["sha256"], "bytes": about["bytes"]}
        for name, text in ((STATE, self.state), (INDEX, index_text(metadata, file_of))):
            (partial / name).write_text(text, encoding="utf-8")
            files[name] = {"sha256": sha256_of_file(partial / name), "bytes": (partial / name).stat().st_size}
        (partial / MANIFEST).write_text(manifest_text(files), encoding="utf-8")
        commit_directory(partial, self.final)
        prune_steps(self.final, self.keep_last, self.keep_every)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a writer serves one checkpoint."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """As they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """The engine asks this only of writers that it chooses itself."""
        return True


def _tensor(planner: SavePlanner, item: WriteItem) -> Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, Tensor), "`RankShare` plans nothing else"
    return tensor


class SafetensorsReader(StorageReader):
    """Reads what a plan asks for from a checkpoint of either format."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What `read_contents` has checked."""
        return self.contents.metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copies the asked-for parts of chunks into the tensors of the planner, file by file."""
        by_file: dict[str, list[tuple[Place, ReadItem]]] = {}
        for item in plan.items:
            place = self.contents.metadata.storage_data[item.storage_index]
            by_file.setdefault(place.file, []).append((place, item))
        for name, wanted in by_file.items():
            file = self.contents.directory / name
            try:
                with safe_open(file, framework="pt") as opened:
                    for place, item in wanted:
                        target = planner.resolve_tensor(item)
                        target.copy_(_read_part(opened, place, item))
                        planner.commit_tensor(item, target)
            except (OSError, SafetensorError, RuntimeError, IndexError) as error:
                raise UserError(f"{file} cannot be read: {one_line(error)}") from None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing: a reader serves one checkpoint."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """The engine asks this only of readers that it chooses itself."""
        return True


def _read_part(opened: Any, place: Place, item: ReadItem) -> Tensor:
    part = opened.get_slice(place.key)
    if tuple(part.get_shape()) != place.sizes:
        raise SafetensorError(f"{place.key} has shape {part.get_shape()}, the index says {list(place.sizes)}")
    if not item.lengths:  # a slice of a scalar is not a thing to safetensors
        return opened.get_tensor(place.key)
    ranges = zip(item.storage_offsets, item.lengths)
    return part[tuple(slice(offset, offset + length) for offset, length in ranges)]
