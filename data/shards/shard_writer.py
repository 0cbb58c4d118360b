"""Writes shards: WebDataset tar files whose bytes depend on nothing but their samples, each complete or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from data.shards.shard_index import INDEX_SUFFIX, index_from_bytes, write_index
from data.shards.shard_manifest import ShardEntry, entry_of
from runtime.atomic import PARTIAL_PREFIX
from runtime.errors import UserError, one_line
from runtime.processes.system import flush_to_disk

Sample = Mapping[str, bytes]


def sample_key(index: int) -> str:
    """The key of a sample: its number in the split."""
    return f"{index:09d}"


def write_shard(path: Path, samples: Iterable[tuple[str, Sample]]) -> ShardEntry | None:
    """Writes a tar file of (key, {kind: bytes}) and its index; None, and no file, where there are no samples.

    The index comes last: a shard with one is complete.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    from webdataset import TarWriter  # here, because importing it takes a while

    partial = path.parent / f"{PARTIAL_PREFIX}{path.name}"
    count = 0
    try:
        with open(partial, "wb") as file:
            # no times and no user names: the same samples give the same bytes, on every machine
            with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
                for key, sample in samples:
                    tar.write({"__key__": key, **sample})
                    count += 1
        if not count:
            return None
        flush_to_disk(partial)
        os.replace(partial, path)
        write_index(path)
        flush_to_disk(Path(f"{path}{INDEX_SUFFIX}"))
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        partial.unlink(missing_ok=True)
    return entry_of(path, count)


def finished_shard(path: Path) -> ShardEntry | None:
    """The entry of a shard that an earlier run completed; None where it is to be written."""
    stored = Path(f"{path}{INDEX_SUFFIX}")
    if not path.is_file() or not stored.is_file():
        return None
    index = index_from_bytes(stored.read_bytes())
    return None if index is None else entry_of(path, len(index))
