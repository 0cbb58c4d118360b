"""`.npz` and `.npy` files read and written row by row: memory does not grow with the number of rows.

Nothing is unpickled: arrays of Python objects are refused. A header may promise no more than the file holds, and
what is read at once may have no more bytes than 128 times those of its archive and 64 MiB: a small file cannot ask for
a large amount of memory. Errors are one line and name the file.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from runtime.atomic import new_mark, partial_of, sweep
from runtime.errors import UserError, one_line
from runtime.processes.system import flush_to_disk

_MOST_UNPACKED, _SOME_BYTES = 128, 1 << 26  # labels of one class shrink a thousand times; they are small
_MOST_MEMBERS = 1000
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_KINDS = "biufcSU"  # of numbers and texts
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal arrays make equal files


class Header(NamedTuple):
    """Shape and type of a stored array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Size of the array in memory."""
        return math.prod(self.shape) * self.dtype.itemsize


class _RowStream:
    """The rows (first axis) of one `.npy` stream, from the first to the last.

    Raises:
        ValueError: not an array, or one of Python objects.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.header, self.column_major = _read_header(stream)
        self.left = self.header.shape[0] if self.header.shape else 1

    def read(self, count: int) -> np.ndarray:
        """The next `count` rows, fewer at the end; ValueError when the stream ends before the rows do."""
        count = min(count, self.left)
        shape = (count, *self.header.shape[1:])
        wanted = math.prod(shape) * self.header.dtype.itemsize
        content = bytearray()
        while len(content) < wanted:
            block = self.stream.read(min(wanted - len(content), 1 << 24))
            if not block:
                raise ValueError(f"it ends {self.left} rows too early")
            content += block
        self.left -= count
        return np.frombuffer(content, dtype=self.header.dtype).reshape(shape)

    def blocks(self, rows: int, most: int) -> Iterator[np.ndarray]:
        """All rows that are left, `rows` at a time; ValueError when the array is not stored by rows, or has more than
        `most` bytes in so many of them.
        """
        if self.column_major:
            raise ValueError("it is stored column by column; save a C-ordered array")
        if (size := min(rows, self.left) * math.prod(self.header.shape[1:]) * self.header.dtype.itemsize) > most:
            raise ValueError(f"{min(rows, self.left)} of its rows have {size} bytes, more than {most}")
        while self.left:
            yield self.read(rows)
        self.stream.read(1)  # a zip archive compares its checksum when a member is read to its end

    def whole(self) -> np.ndarray:
        """The array itself, however it is stored."""
        flat = self.read(max(self.left, 1)).reshape(-1)
        self.stream.read(1)
        return flat.reshape(self.header.shape, order="F" if self.column_major else "C")


def _read_header(stream: IO[bytes]) -> tuple[Header, bool]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its array format {version[0]}.{version[1]} is not known")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise ValueError(f"its numbers are of the type {str(dtype)[:40]}, which is not read")
    if min(shape, default=0) < 0 or max(shape, default=0) >= 1 << 63 or any(type(length) is bool for length in shape):
        raise ValueError(f"its header says the shape {str(shape)[:60]}")
    return Header(shape, dtype), column_major and len(shape) > 1


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file causes into one line with its name."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except Exception as error:  # zipfile, zlib and numpy's parser of headers fail in any way
        raise UserError(f"{path} is not a readable {path.suffix or 'array'} file: {one_line(error)[:120]}") from error


@contextmanager
def _archive(path: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(path) as archive:
        if len(archive.infolist()) > _MOST_MEMBERS:
            raise ValueError(f"it has {len(archive.infolist())} members, more than {_MOST_MEMBERS}")
        yield archive


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[_RowStream]:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in _METHODS:
        raise ValueError(f"{name} is packed as numpy packs nothing")
    with archive.open(info) as file:
        rows = _RowStream(file)
        if info.file_size != file.tell() + rows.header.nbytes:
            raise ValueError(f"{name} has {info.file_size} bytes, its header promises {rows.header.nbytes}")
        yield rows


def unpacked_arrays(content: bytes) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file that is in memory and is not compressed, as `write_npz` and `numpy.savez` make them.

    Raises:
        UserError: anything else, or damaged.
    """
    path, arrays = Path("archive.npz"), {}
    with _naming(path), _archive(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or not entry.filename.endswith(".npy"):
                raise ValueError(f"{entry.filename[:40]} is no array as it is in memory")
            if entry.file_size > len(content):
                raise ValueError(f"{entry.filename[:40]} is longer than the file")
            name = entry.filename.removesuffix(".npy")
            with _member(archive, name) as rows:
                arrays[name] = rows.whole()
    return arrays


def most_unpacked(path: Path) -> int:
    """The bytes that are taken into memory at once of an archive of this size."""
    return _MOST_UNPACKED * path.stat().st_size + _SOME_BYTES


def read_headers(path: str | os.PathLike[str]) -> dict[str, Header]:
    """Name, shape and type of every array of an `.npz` file.

    Raises:
        UserError: no such file, or a damaged one.
    """
    path, headers = Path(path), {}
    with _naming(path), _archive(path) as archive:
        for entry in archive.namelist():
            if entry.endswith(".npy"):
                name = entry.removesuffix(".npy")
                with _member(archive, name) as rows:
                    headers[name] = rows.header
    return headers


def read_arrays(path: str | os.PathLike[str], names: Iterable[str], max_bytes: int = 1 << 34) -> dict[str, np.ndarray]:
    """Whole arrays of an `.npz` file; those of `names` that it does not have are left out.

    Raises:
        UserError: no such file, a damaged one, or more in one array than `max_bytes` or than such a file may unpack to.
    """
    path, arrays = Path(path), {}
    with _naming(path), _archive(path) as archive:
        most = min(max_bytes, most_unpacked(path))
        for name in names:
            if f"{name}.npy" not in archive.namelist():
                continue
            with _member(archive, name) as rows:
                if rows.header.nbytes > most:
                    raise ValueError(f"{name} has {rows.header.nbytes} bytes, more than {most}")
                arrays[name] = rows.whole()
    return arrays


def stream_array(path: str | os.PathLike[str], name: str, rows: int) -> Iterator[np.ndarray]:
    """The array `name` of an `.npz` file (a `.npy` file has one), `rows` rows at a time.

    Raises:
        UserError: no such file or array, or a damaged one.
    """
    path = Path(path)
    with _naming(path):
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                yield from _RowStream(file).blocks(rows, path.stat().st_size)
            return
        with _archive(path) as archive:
            if f"{name}.npy" not in archive.namelist():
                raise UserError(f"{path} has no array {name!r}")
            with _member(archive, name) as stream:
                yield from stream.blocks(rows, most_unpacked(path))


def npy_header(path: str | os.PathLike[str]) -> Header:
    """Shape and type of the array in a `.npy` file; UserError when it is damaged or shorter than it says."""
    path = Path(path)
    with _naming(path), open(path, "rb") as file:
        header = _RowStream(file).header
        if path.stat().st_size != file.tell() + header.nbytes:
            raise ValueError(f"it has {path.stat().st_size} bytes, its header promises {header.nbytes}")
    return header


def write_npz(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray | tuple[Header, Iterable[np.ndarray]]]
) -> None:
    """Writes an uncompressed `.npz` file under a temporary name and renames it when it is complete.

    Args:
        arrays: whole arrays, or a header and the blocks of rows, which are asked for one after another; the arrays are
            written in the order given.

    Raises:
        UserError: the disk is full or read-only, or there is no such folder.
    """
    path = Path(path)
    sweep(path.parent, suffix=f"-{path.name}")
    partial = partial_of(path, new_mark())
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, given in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as target:
                    _write_rows(target, *(given if isinstance(given, tuple) else _as_block(given)))
        flush_to_disk(partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {one_line(error)}") from error
    finally:
        with suppress(OSError):
            partial.unlink()


def _write_rows(target: IO[bytes], header: Header, blocks: Iterable[np.ndarray]) -> None:
    """One array in the `.npy` format to an open stream, block after block."""
    description = np.lib.format.dtype_to_descr(header.dtype)
    np.lib.format.write_array_header_1_0(target, {"descr": description, "fortran_order": False, "shape": header.shape})
    written = 0
    for block in blocks:
        assert block.shape[1:] == header.shape[1:], f"rows of shape {block.shape[1:]}, announced {header.shape[1:]}"
        target.write(np.ascontiguousarray(block, dtype=header.dtype).tobytes())
        written += block.nbytes if block.dtype == header.dtype else block.size * header.dtype.itemsize
    assert written == header.nbytes, f"{written} bytes written, {header.nbytes} announced"


def _as_block(array: np.ndarray) -> tuple[Header, Iterable[np.ndarray]]:
    return Header(array.shape, array.dtype), [array]
