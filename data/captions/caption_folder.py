"""Folders of images with classes, captions, or both: `folder` and `caption-folder`.

Captions are those of a `.txt` file beside every image, or of one `metadata.jsonl` or `metadata.csv`, or the names of
the files. Which images there are, and which are held out, does not depend on them.

cat.jpg  cat.txt            one caption a line
metadata.jsonl              {"file_name": "cat.jpg", "text": "a cat on a mat"}, `text` may also be a list
metadata.csv                file_name,text (or caption), one caption a line
a_cat-on-a_mat.jpg          dataset.captions=names: "a cat on a mat"
"""

from __future__ import annotations

import csv
import json
import logging
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.captions.captioned_dataset import CaptionedDataset, CaptionTable
from data.config import CAPTION_FILES, CAPTION_NAMES, NO_CAPTIONS
from data.dataset import ImageDataset
from data.images.encoded_images import PackedPaths
from data.images.image_folders import FolderSplit, folder_split
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_name
from data.text_files import REPLACEMENT, decoded, lines_of, read_lines
from data.tokenizers.tokenizer_loading import tokenizer_named_or_none

FOLDER_LAYOUT = "images, or one folder of images per class, directly or in train/ and val/"
LAYOUT = "images with a .txt file beside each, or with metadata.jsonl or metadata.csv, directly or in train/ and val/"
_METADATA = ("metadata.jsonl", "metadata.csv")
_TEXT_KEYS = ("text", "caption")
_log = logging.getLogger(__name__)


def build_folder(request: DatasetRequest) -> ImageDataset:
    """Any images with their classes, and with captions where dataset.captions says where they are.

    Nothing is known about them, so they are cropped as ImageNet's (the short side to R, a random or centre R x R crop,
    mirrored in training) unless dataset.transforms and dataset.hflip say otherwise.
    """
    kind = request.config.captions or NO_CAPTIONS
    return _build(request, kind, classes=True, layout=FOLDER_LAYOUT if kind == NO_CAPTIONS else LAYOUT)


def build_caption_folder(request: DatasetRequest) -> ImageDataset:
    """The same images without classes, with captions."""
    return _build(request, request.config.captions or CAPTION_FILES, classes=False, layout=LAYOUT)


def _build(request: DatasetRequest, kind: str, classes: bool, layout: str) -> ImageDataset:
    if kind == NO_CAPTIONS:
        return folder_split(request, layout, classes=classes).images(request)
    if kind == CAPTION_NAMES:
        split = folder_split(request, layout, classes=classes)
        return _captioned(request, split, _captions_in_names(request, split), layout)
    metadata = Metadata(find_root(request.config, layout))
    split = folder_split(request, layout, classes=classes, also=metadata.captions)
    captions = metadata.captions(split.root) or _captions_of_files(split)
    return _captioned(request, split, captions, layout)


def _captioned(
    request: DatasetRequest, split: FolderSplit, captions: dict[str, list[str]], layout: str
) -> CaptionedDataset:
    """Images without a caption are left out and counted."""
    kept_N = np.array([index for index, path in enumerate(split.paths) if path in captions], dtype=np.int64)
    if not len(kept_N):
        raise missing(request.config, split.root, layout)
    if without := len(split.paths) - len(kept_N):
        total = len(split.paths)
        left_out = f"{without} of {total} {request.split} images have no caption and are left out"
        _log.warning("%s: %s", split.root, left_out)
    split = split.chosen(kept_N)
    table = CaptionTable(captions[path] for path in split.paths)
    source, tokenizer = PackedPaths(split.root, split.paths), tokenizer_named_or_none(request.config, request.split)
    return split.marked(CaptionedDataset(request, source, table, tokenizer, split.labels_N, split.class_names))


def _captions_in_names(request: DatasetRequest, split: FolderSplit) -> dict[str, list[str]]:
    """The words of the names of the files: `a_red-car.png` is "a red car"."""
    names = {path: posixpath.basename(split_name(path)) for path in split.paths}
    captions = {path: [" ".join(re.split(r"[\W_]+", name)).strip()] for path, name in names.items()}
    if not any(re.search(r"[^\W\d_]", text) for (text,) in captions.values()):
        first = next(iter(names.values()))
        raise ValueError(f"{request.name}: dataset.captions=names, but names in {split.root} hold no words ({first!r})")
    return captions


def _captions_of_files(split: FolderSplit) -> dict[str, list[str]]:
    found = {path: captions for path in split.paths if (captions := _captions_beside(split.root / path))}
    if damaged := sum(any(REPLACEMENT in text for text in captions) for captions in found.values()):
        _log.warning("%s: %d captions have bytes that are not utf-8 text", split.root, damaged)
    return found


class Metadata:
    """The captions that a file beside the images lists, in the folder of a split or in that of the data set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.read: dict[Path, dict[str, list[str]]] = {}

    def captions(self, folder: Path) -> dict[str, list[str]]:
        """Path below `folder` -> captions; empty where no file lists them.

        Raises:
            ValueError: a line of another form, or two files.
        """
        if folder not in self.read:
            self.read[folder] = self._of(folder) or self._above(folder)
        return self.read[folder]

    def _above(self, folder: Path) -> dict[str, list[str]]:
        if folder == self.root or not folder.is_relative_to(self.root):
            return {}
        prefix = folder.relative_to(self.root).as_posix() + "/"
        listed = self._of(self.root)
        return {path.removeprefix(prefix): texts for path, texts in listed.items() if path.startswith(prefix)}

    def _of(self, folder: Path) -> dict[str, list[str]]:
        found = [folder / name for name in _METADATA if (folder / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{folder} has both {' and '.join(_METADATA)}; keep one")
        if not found:
            return {}
        pairs = read_metadata(found[0]) if found[0].suffix == ".jsonl" else read_csv(found[0])
        captions: dict[str, list[str]] = {}
        for name, texts in pairs:
            captions.setdefault(_below(found[0], name), []).extend(texts)
        return captions


def _below(file: Path, name: str) -> str:
    path = posixpath.normpath(name.replace("\\", "/"))
    if path.startswith(("/", "../")) or path == "..":
        raise ValueError(f"{file}: file_name {name!r} leads out of the folder")
    return path


def read_csv(path: Path) -> list[tuple[str, list[str]]]:
    """(file name, captions) of every image of a table with columns `file_name` and `text` (or `caption`), sorted.

    Raises:
        ValueError: a column is missing, or a line has too few; names the line.
    """
    captions: dict[str, list[str]] = {}
    try:
        reader = csv.DictReader(line + "\n" for line in read_lines(path, replace=True))
        columns: Sequence[str] = reader.fieldnames or ()
        key = next((key for key in _TEXT_KEYS if key in columns), None)
        if key is None or "file_name" not in columns:
            shown = ", ".join(columns)[:80]
            raise ValueError(f"{path} has columns {shown}; expected file_name and text (or caption)")
        for row in reader:
            name, text = row["file_name"], row[key]
            if not name or text is None:
                raise ValueError(f"{path}, line {reader.line_num} has no file_name or no {key}")
            captions.setdefault(name, []).append(" ".join(text.split()))
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}") from error
    return sorted(captions.items())


def _captions_beside(image: Path) -> list[str]:
    """The lines of the text file with the image's name; an empty file is one empty caption."""
    try:
        text = decoded(image.with_suffix(".txt").read_bytes())
    except FileNotFoundError:
        return []
    return [line.strip() for line in lines_of(text) if line.strip()] or [""]


def read_metadata(path: Path) -> list[tuple[str, list[str]]]:
    """(file name, captions) of every line, sorted by name; several lines for one image are several captions. Captions
    that are null are left out and counted.

    Raises:
        ValueError: a line that is not JSON with `file_name` and `text` (or `caption`); names the line.
    """
    captions: dict[str, list[str]] = {}
    total = 0
    for number, line in enumerate(read_lines(path, replace=True), start=1):
        if line.strip():
            name, texts = _metadata_line(f"{path}, line {number}", line)
            total += len(texts)
            if given := [text.strip() for text in texts if text is not None]:
                captions.setdefault(name, []).extend(given)
    if null := total - sum(map(len, captions.values())):
        _log.warning("%s: %d of %d captions are null and are left out", path, null, total)
    return sorted(captions.items())


def _metadata_line(place: str, line: str) -> tuple[str, list[str | None]]:
    try:
        entry = json.loads(line)
        name = entry["file_name"]
        texts = next(entry[key] for key in _TEXT_KEYS if key in entry)
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        shown = repr(line.strip()[:80])
        raise ValueError(f'{place} is not of the form {{"file_name": ..., "text": ...}}: {shown}') from error
    texts = texts if isinstance(texts, list) else [texts]
    if not isinstance(name, str) or not all(isinstance(text, (str, type(None))) for text in texts):
        raise ValueError(f"{place}: file_name must be a string and text a string or a list of strings")
    return name, texts or [""]
