"""Directories and files that are either complete or, for every reader, not there.

A directory is written under a temporary name beside its final one, flushed to disk, given an empty `COMPLETE` file and
renamed. Whatever interrupts the writer (a kill, a full disk) leaves the previous state intact.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from runtime.errors import UserError, one_line
from runtime.processes.system import flush_to_disk

COMPLETION_MARK = "COMPLETE"
PARTIAL_PREFIX = ".partial-"
LEFTOVER_SECONDS = 3600.0
"""A temporary file that was not touched for so long has no writer any more."""
_HASH_CHUNK_BYTES = 1 << 22


def is_complete(directory: Path) -> bool:
    """Whether `directory` was written to its end. One that was not must be treated as absent."""
    return (Path(directory) / COMPLETION_MARK).is_file()


def new_mark() -> str:
    """What tells the temporary name of one writer from that of every other, on this host or another."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def partial_of(final: Path, mark: str) -> Path:
    """The temporary name that `final` is written under by the writer of this mark."""
    return final.parent / f"{PARTIAL_PREFIX}{mark}-{final.name}"


def begin_directory(final: Path, mark: str | None = None) -> Path:
    """An empty temporary directory beside `final`, to be filled and then handed to `commit_directory`."""
    partial = partial_of(final, mark or new_mark())
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    return partial


def commit_directory(partial: Path, final: Path) -> None:
    """Flush `partial`, mark it complete and rename it to `final`; an existing `final` is replaced."""
    for file in sorted(partial.rglob("*")):
        flush_to_disk(file)
    (partial / COMPLETION_MARK).touch()
    flush_to_disk(partial / COMPLETION_MARK)
    flush_to_disk(partial)
    replaced = partial_of(final, f"replaced-{new_mark()}")
    if final.exists():
        os.rename(final, replaced)
    os.rename(partial, final)
    flush_to_disk(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def atomic_directory(final: Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `final` when the block ends, and vanishes when it fails.

    Raises:
        UserError: the disk is full, read-only, or otherwise cannot be written.
    """
    final = Path(final)
    partial = None
    try:
        partial = begin_directory(final)
        yield partial
        commit_directory(partial, final)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {final}: {one_line(error)}") from error
    finally:
        if partial is not None and partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def remove_directory(directory: Path) -> None:
    """Delete a complete directory so that an interruption leaves an incomplete one, never a damaged complete one."""
    (directory / COMPLETION_MARK).unlink(missing_ok=True)
    shutil.rmtree(directory)


def remove_partial_directories(parent: Path, prefix: str) -> None:
    """Delete what interrupted writers and removals of directories called `prefix...` left in `parent`.

    Only the one writer of these directories may call this.
    """
    for entry in parent.iterdir():
        unfinished = entry.name.startswith(PARTIAL_PREFIX) and prefix in entry.name
        unmarked = entry.name.startswith(prefix) and not is_complete(entry)
        if entry.is_dir() and (unfinished or unmarked):
            shutil.rmtree(entry, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file by renaming a complete temporary one over it."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """The same for any content.

    Raises:
        UserError: the disk is full, read-only, or otherwise cannot be written.
    """
    partial = partial_of(path, new_mark())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {one_line(error)}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file in place, one of many: a torn one that a full disk leaves is taken away again.

    Raises:
        UserError: naming the file.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise UserError(f"cannot write {path}: {one_line(error)}") from error


def sweep(folder: Path, min_age_seconds: float = LEFTOVER_SECONDS, *, suffix: str = "") -> None:
    """Removes what writers that were killed left in a folder: temporary files and directories, with this end of their
    names, that nobody has touched for so long.
    """
    now = time.time()
    with suppress(OSError):
        for entry in os.scandir(folder):
            with suppress(OSError):  # another process may be doing the same
                if not (entry.name.startswith(PARTIAL_PREFIX) and entry.name.endswith(suffix)):
                    continue
                if now - entry.stat().st_mtime < min_age_seconds:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)


def check_free_space(final: Path, num_bytes: int) -> None:
    """Before `num_bytes` are written to `final`.

    Raises:
        UserError: the disk has less left.
    """
    existing = next(parent for parent in final.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"cannot write {final}: it needs {num_bytes / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free on its disk; "
            "what was written before is kept"
        )


def sha256_of_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
