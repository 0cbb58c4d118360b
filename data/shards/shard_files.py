"""Bytes of shards: local ones read in place, remote ones (any URL that fsspec knows) through whole local copies.

A remote shard is fetched once for all data workers and ranks of a machine into a cache folder that holds the shards
used last; together with the windowed order (`data.order.Groups`) each is fetched once per epoch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.errors import DataUnavailable
from data.shards.shard_index import (
    INDEX_SUFFIX,
    ShardIndex,
    head_of,
    index_from_bytes,
    largest_index,
    scan_shard,
    write_bytes_atomically,
)
from runtime.atomic import PARTIAL_PREFIX
from runtime.errors import UserError, one_line
from runtime.processes.system import READ_ONLY, has_owners, is_own, read_at, touch, user_mark

_MOST_OPEN = 64
_ATTEMPTS, _PAUSE_SECONDS = 4, 1.0
_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)", re.IGNORECASE)


def is_remote(place: str) -> bool:
    """Whether a place is a URL other than file://."""
    return bool(_URL.match(place)) and not place.startswith("file://")


def local_path(place: str) -> Path:
    """The path of a place that is not remote."""
    return Path(place.removeprefix("file://")).expanduser()


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path in it; ValueError names the package that is missing."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url} cannot be opened: {one_line(error)}") from error


def default_cache() -> Path:
    """Where remote shards are kept unless dataset.shard_cache says so."""
    return Path(tempfile.gettempdir()) / f"rq-shards-{user_mark()}"


class ShardFiles:
    """Ranges of bytes of numbered shards.

    Args:
        places: paths or URLs.
        sizes: their sizes in bytes.
        cache: folder for copies of remote shards.
        cache_size: copies kept there.
    """

    def __init__(self, places: Sequence[str], sizes: Sequence[int], cache: Path, cache_size: int) -> None:
        self.places, self.sizes = tuple(places), tuple(sizes)
        self.cache, self.cache_size = cache, cache_size
        self._open: OrderedDict[int, int] = OrderedDict()  # shard -> file descriptor; reading does not move it

    def read(self, shard: int, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; OSError when they are not there."""
        content = read_at(self._descriptor(shard), size, start)
        if len(content) < size:
            raise OSError(f"{self.places[shard]} ends before byte {start + size}")
        return content

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        place = self.places[shard]
        if is_remote(place):
            descriptor = self._open_copy(place, self.sizes[shard])
        else:
            descriptor = os.open(local_path(place), READ_ONLY)
        self._open[shard] = descriptor
        while len(self._open) > min(_MOST_OPEN, self.cache_size if is_remote(place) else _MOST_OPEN):
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _open_copy(self, url: str, size: int) -> int:
        path = self.cache / f"{_short_hash(url)}-{size}.tar"  # as `_is_copy` knows them
        try:
            _own_folder(self.cache)
            with _lock(path):
                descriptor = _open_whole(path, size)
                if descriptor is None:
                    descriptor = _fetch(url, path, size)
                    self._drop_oldest(keep=path)
                touch(descriptor, path)
                return descriptor
        except OSError as error:
            raise DataUnavailable(f"{url} cannot be kept in {self.cache}: {one_line(error)}") from error

    def _drop_oldest(self, keep: Path) -> None:
        """Removes the copies not used for longest; whoever still reads one keeps it until it is closed."""
        copies = []
        for path in filter(_is_copy, self.cache.glob("[!.]*.tar")):  # not those that are being fetched
            with contextlib.suppress(FileNotFoundError):  # another process may be doing the same
                copies.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(copies)[: max(0, len(copies) - self.cache_size)]:
            if path != keep:
                path.unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __del__(self) -> None:
        for descriptor in self._open.values():
            with contextlib.suppress(OSError):
                os.close(descriptor)


def load_index(place: str, cache: Path) -> ShardIndex:
    """The index of a shard: the one beside it, else one from the cache folder, else made now and kept.

    It is kept beside a local shard where that can be written, else in the cache folder. ValueError for a shard that
    cannot be read as a tar file, FileNotFoundError for one that is not there.
    """
    if is_remote(place):
        return _load_remote_index(place, cache)
    path = local_path(place)
    beside = Path(f"{path}{INDEX_SUFFIX}")
    with open(path, "rb") as file:
        size, head = os.fstat(file.fileno()).st_size, head_of(file)
        spare = cache / f"{_short_hash(f'{path.resolve()} {head}')}-{size}{INDEX_SUFFIX}"
        for candidate in (beside, spare):
            index = index_from_bytes(_beginning(candidate, largest_index(size)))
            if index is not None and (index.shard_size, index.head) == (size, head):
                return index
        index = scan_shard(file, place)
    _keep(index, (beside, spare))
    return index


def _load_remote_index(url: str, cache: Path) -> ShardIndex:
    system, path = filesystem(url)
    try:
        size = system.size(path)
        spare = cache / f"{_short_hash(url)}-{size}{INDEX_SUFFIX}"
        stored = [_beginning(spare, largest_index(size))]
        with contextlib.suppress(FileNotFoundError):
            stored.append(system.cat_file(f"{path}{INDEX_SUFFIX}", start=0, end=largest_index(size)))
        for index in map(index_from_bytes, stored):
            if index is not None and index.shard_size == size:
                return index
        with system.open(path, "rb") as file:
            index = scan_shard(file, url)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no shard {url}") from error
    _keep(index, (spare,))
    return index


def _beginning(file: Path, most: int) -> bytes:
    """The content of a file, as far as it may be long; nothing where there is none."""
    if not file.is_file():  # a pipe would be waited for
        return b""
    with open(file, "rb") as stream:
        return stream.read(most)


def _keep(index: ShardIndex, places: Sequence[Path]) -> None:
    """Writes the index to the first place that can be written; without any it is made again next time."""
    for path in places:
        with contextlib.suppress(OSError):
            _own_folder(path.parent)
            write_bytes_atomically(path, index.to_bytes())
            return


def _is_copy(path: Path) -> bool:
    """Whether a file is a copy of ours by its name: whatever else lies in the folder is not ours to remove."""
    return re.fullmatch(r"[0-9a-f]{24}-[0-9]+\.tar", path.name) is not None


def _own_folder(folder: Path) -> None:
    """Makes the folder, readable by its owner alone. OSError where one below /tmp may be somebody else's doing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder != default_cache() or not has_owners():
        return
    found = folder.lstat()  # anybody can put a link there
    if not stat.S_ISDIR(found.st_mode) or not is_own(found):
        raise PermissionError(f"{folder} belongs to another user, or is a link; set dataset.shard_cache")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write {folder}; chmod go-w, or set dataset.shard_cache")


def _open_whole(path: Path, size: int) -> int | None:
    """A descriptor of a copy; None when it is not there, or not all of it."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, READ_ONLY)
        if os.fstat(descriptor).st_size == size:
            return descriptor
        os.close(descriptor)
    return None


def _fetch(url: str, path: Path, size: int) -> int:
    """Fetches a shard and gives a descriptor of it, which stays good when another process drops the copy."""
    partial = path.parent / f"{PARTIAL_PREFIX}{os.getpid()}-{path.name}"
    system, remote = filesystem(url)
    try:
        for attempt in range(_ATTEMPTS):
            try:
                system.get_file(remote, str(partial))
                break
            except OSError as error:
                if attempt + 1 == _ATTEMPTS:
                    raise DataUnavailable(f"{url} cannot be fetched: {one_line(error)}") from error
                time.sleep(_PAUSE_SECONDS * 2**attempt)
        if partial.stat().st_size != size:
            raise DataUnavailable(f"{url} has {partial.stat().st_size} bytes now, its index says {size}")
        descriptor = os.open(partial, READ_ONLY)
        os.replace(partial, path)
        return descriptor
    finally:
        partial.unlink(missing_ok=True)


def sweep_copies(cache: Path) -> None:
    """Removes what killed processes left of copies: their locks are free."""
    for partial in cache.glob(f"{PARTIAL_PREFIX}*.tar"):
        whole = partial.name.removeprefix(PARTIAL_PREFIX).partition("-")[2]
        with contextlib.suppress(OSError, Timeout), _lock(cache / whole, timeout=0):
            partial.unlink(missing_ok=True)


def _lock(copy: Path, timeout: float = -1) -> FileLock:
    """For one process at a time to make, or take away, a copy."""
    return FileLock(copy.with_name(f"{copy.name}.lock"), timeout=timeout)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:24]
