"""`dataset.type: huggingface`: what the `datasets` library has saved to disk, or parquet files, with encoded images.

Read by pyarrow alone (the extra `hf`); nothing of a folder is executed, and no path that stands in a cell is opened. A
cell is the bytes of an image file or, as `datasets` keeps it, {bytes, path}. Classes are named by the `ClassLabel`
feature of the file, by numbers, or by texts. Shards are quicker to train from: `python -m data.prepare` makes them.

Axes: N images of the split.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.captions.captioned_dataset import CaptionedDataset, CaptionTable
from data.config import SPLIT_WORDS, TEST, TRAIN, VAL
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import Chosen, checked
from data.images.file_dataset import FileDataset
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name
from data.tokenizers.tokenizer_loading import tokenizer_named_or_none
from runtime.errors import UserError, first_few, one_line

LAYOUT = "a folder that `datasets` saved (dataset_dict.json, or data-*.arrow), or parquet files (train-*.parquet, ...)"
INSTALL = "pip install pyarrow (the extra hf)"
_CAPTIONS = ("caption", "captions", "text", "texts", "sentences")
_MOST_GROUP_BYTES = 1 << 32  # of a row group of a parquet file, unpacked
_MOST_CLASSES = 1_000_000
_reading = threading.Lock()


def build_huggingface(request: DatasetRequest) -> ImageDataset:
    """A split with its labels and captions; without a validation split val_fraction of the rows is held out."""
    root = find_root(request.config, LAYOUT)
    files = files_of_splits(root)
    if not files:
        raise missing(request.config, root, LAYOUT)
    held_out = next((kind for kind in (VAL, TEST) if kind in files), None)
    if held_out is None or TRAIN not in files:
        return _of_files(request, [file for group in files.values() for file in group], cut=True)
    return _of_files(request, files[TRAIN if request.split == TRAIN else held_out], cut=False)


def files_of_splits(root: Path) -> dict[str, list[Path]]:
    """The tables of each split, in order, by the names that `datasets` and the hub give to files and folders."""
    paths = sorted([*root.rglob("*.parquet"), *root.rglob("data-*.arrow"), *root.rglob("dataset.arrow")])
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = (path.name.split("-")[0].split(".")[0], path.parent.name if path.parent != root else "")
        kinds = [SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS]
        found.setdefault(kinds[0] if kinds else TRAIN, []).append(path)
    return found


def _of_files(request: DatasetRequest, paths: Sequence[Path], cut: bool) -> ImageDataset:
    config = request.config
    tables = [_Table(path) for path in paths]
    image = _column(tables[0], config.image_column, "image", tables[0].image_columns())
    labels_N, class_names = _labels(tables, config.label_column, request.name)
    captions = _captions(tables, config.caption_column)
    rows: Any = ArrowImages(tables, image)
    if cut:
        sides = split_by_name(rows.names(), config.val_fraction or VAL_FRACTION, config.split_seed)
        chosen_N = sides[0] if request.split == TRAIN else sides[1]
        rows, labels_N = Chosen(rows, chosen_N), labels_N[chosen_N]
        captions = captions and [captions[index] for index in chosen_N.tolist()]
    dataset: FileDataset
    if captions:
        tokenizer = tokenizer_named_or_none(config, request.split)
        dataset = CaptionedDataset(request, rows, CaptionTable(captions), tokenizer, labels_N, class_names)
    else:
        dataset = FileDataset(request, rows, labels_N, class_names)
    dataset.held_out, dataset.prefix = cut, "" if cut else f"{request.split}/"
    return dataset


class _Table:
    """One file of rows, opened by the process that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, Any] = (0, None)
        self._group: tuple[int, str, Any] = (-1, "", None)
        self.is_parquet = path.suffix == ".parquet"
        with self._named_errors():
            self.schema = self._open().schema_arrow if self.is_parquet else self._open().schema
            self.ends = self._ends()

    def _named_errors(self) -> _NamedErrors:
        return _NamedErrors(self.path)

    def _open(self) -> Any:
        if self._opened[0] != os.getpid():
            arrow = import_arrow()
            if self.is_parquet:
                self._opened = os.getpid(), arrow.parquet.ParquetFile(str(self.path), memory_map=True)
            else:
                table = arrow.ipc.open_stream(arrow.memory_map(str(self.path))).read_all()
                table.validate(full=True)
                self._opened = os.getpid(), table
        return self._opened[1]

    def _ends(self) -> list[int]:
        """The number of rows up to the end of every row group."""
        if not self.is_parquet:
            return [self._open().num_rows]
        meta = self._open().metadata
        groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        for group in groups:
            if group.total_byte_size > _MOST_GROUP_BYTES:
                raise ValueError(f"a row group has {group.total_byte_size} bytes, more than {_MOST_GROUP_BYTES}")
        return np.cumsum([group.num_rows for group in groups], dtype=np.int64).tolist() or [0]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def whole(self, column: str) -> list[Any]:
        """All values of a column, as Python's."""
        with self._named_errors():
            table = self._open()
            chosen = table.read(columns=[column]) if self.is_parquet else table
            return chosen.column(column).to_pylist()

    def cell(self, column: str, row: int) -> Any:
        """One value. Of a parquet file the row group around it is kept for the next ones."""
        table = self._open()
        if not self.is_parquet:
            return table.column(column)[row].as_py()
        group = int(np.searchsorted(self.ends, row, side="right"))
        with _reading:  # several threads pack shards
            if self._group[:2] != (group, column):
                self._group = group, column, table.read_row_group(group, columns=[column]).column(column)
            return self._group[2][row - (self.ends[group - 1] if group else 0)].as_py()

    def features(self) -> dict[str, Any]:
        """What `datasets` wrote of its columns; empty where nothing sound is there."""
        try:
            said = json.loads((self.schema.metadata or {})[b"huggingface"])["info"]["features"]
            return said if isinstance(said, dict) else {}
        except (KeyError, ValueError, TypeError, RecursionError):
            return {}

    def image_columns(self) -> list[str]:
        """Columns of bytes, or of {bytes, path}."""
        types = import_arrow().types
        found = []
        for field in self.schema:
            parts = {part.name for part in field.type} if types.is_struct(field.type) else set()
            if types.is_binary(field.type) or types.is_large_binary(field.type) or "bytes" in parts:
                found.append(field.name)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (0, None), "_group": (-1, "", None)}


class _NamedErrors:
    """UserError that names the file, for whatever pyarrow makes of a damaged one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            return
        if isinstance(error, (ValueError, OSError, KeyError, TypeError, MemoryError)):
            raise UserError(f"{self.path} cannot be read as a table: {one_line(error)[:200]}") from error


class ArrowImages:
    """The encoded images of a column over several files."""

    def __init__(self, tables: Sequence[_Table], column: str) -> None:
        self.tables, self.column = tables, column
        self.end_F = np.cumsum([len(table) for table in tables], dtype=np.int64)

    def _place(self, index: int) -> tuple[_Table, int]:
        number = int(np.searchsorted(self.end_F, index, side="right"))
        return self.tables[number], index - (int(self.end_F[number - 1]) if number else 0)

    def name(self, index: int) -> str:
        """The file and the row."""
        table, row = self._place(index)
        return f"{table.path}:{row}"

    def names(self) -> Iterator[str]:
        """The names of files without their folders, and rows."""
        return (f"{table.path.stem}:{row}" for table in self.tables for row in range(len(table)))

    def size(self, index: int) -> int:
        """Not known without reading it."""
        return 0

    def read(self, index: int) -> bytes:
        """The encoded image; OSError where the cell holds none: a path in it is not followed."""
        table, row = self._place(index)
        try:
            cell = table.cell(self.column, row)
        except (ValueError, KeyError, TypeError) as error:
            raise OSError(one_line(error)) from error
        found = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(found, bytes):
            raise OSError("the row holds no bytes of an image (a path alone is not followed)")
        return checked(found)

    def __len__(self) -> int:
        return int(self.end_F[-1])


def import_arrow() -> Any:
    """The package with what is used of it; ValueError, one line, where it is not installed."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"dataset.type huggingface needs a package that is not installed: {INSTALL}") from None
    return pyarrow


def _column(table: _Table, asked: str | None, what: str, found: Sequence[str]) -> str:
    names = list(table.schema.names)
    if asked is not None and asked not in names:
        raise ValueError(f"dataset.{what}_column {asked!r} is not in {table.path}: it has {first_few(names, 10)}")
    if asked is None and len(found) != 1:
        raise ValueError(
            f"{table.path} has {len(found)} columns that may hold the {what} ({first_few(found, 10)}): choose one with "
            f"dataset.{what}_column, of {first_few(names, 10)}"
        )
    return asked or found[0]


def _labels(tables: Sequence[_Table], asked: str | None, name: str) -> tuple[np.ndarray, list[str]]:
    """(classes (N,), their names); one class where no column has them."""
    features, names = tables[0].features(), tables[0].schema.names
    of_classes = [
        each for each, said in features.items() if isinstance(said, dict) and said.get("_type") == "ClassLabel"
    ]
    found = [each for each in of_classes if each in names] or [each for each in ("label",) if each in names]
    if asked is None and not found:
        return np.zeros(sum(map(len, tables)), dtype=np.int64), [name]
    column = _column(tables[0], asked, "label", found)
    values = [value for table in tables for value in table.whole(column)]
    if all(isinstance(value, str) for value in values):
        class_names = sorted(set(values))
        number = {text: index for index, text in enumerate(class_names)}
        return np.array([number[value] for value in values], dtype=np.int64), class_names
    said = features.get(column)
    given = said.get("names") if isinstance(said, dict) else None
    known = [str(each) for each in given] if isinstance(given, list) else []
    for row, value in enumerate(values):
        if type(value) is not int or not 0 <= value < (len(known) or _MOST_CLASSES):
            raise ValueError(f"{tables[0].path.parent}: row {row} has label {str(value)[:40]!r}, which is no class")
    return np.array(values, dtype=np.int64), known or [str(number) for number in range(max(values, default=0) + 1)]


def _captions(tables: Sequence[_Table], asked: str | None) -> list[list[str]]:
    found = [each for each in _CAPTIONS if each in tables[0].schema.names][:1]
    if asked is None and not found:
        return []
    column = _column(tables[0], asked, "caption", found)
    texts = []
    for value in (value for table in tables for value in table.whole(column)):
        lines = value if isinstance(value, list) else [value]
        texts.append([line for line in lines if isinstance(line, str)] or [""])
    return texts
