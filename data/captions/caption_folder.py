"""Folders of images with captions: a `.txt` file beside every image, or one `metadata.jsonl`.

cat.jpg  cat.txt            one caption a line
metadata.jsonl              {"file_name": "cat.jpg", "text": "a cat on a mat"}, `text` may also be a list
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from data.captions.captioned_dataset import build_captioned
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.listing import list_images
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.splits import split_by_name
from data.text_files import REPLACEMENT, decoded, lines_of, read_lines

LAYOUT = "images with a .txt file beside each, or with metadata.jsonl, directly or in train/ and val/"
METADATA = "metadata.jsonl"
_TEXT_KEYS = ("text", "caption")
_log = logging.getLogger(__name__)


def build_caption_folder(request: DatasetRequest) -> ImageDataset:
    """Folders train/ and val/ are the splits; without them val_fraction of all images is held out."""
    config, root = request.config, find_root(request.config, LAYOUT)
    presplit = (root / "train").is_dir() and (root / "val").is_dir()
    folder = root / request.split if presplit else root
    pairs = read_folder(folder)
    if not pairs:
        raise missing(config, folder, LAYOUT)
    if not presplit:
        names = (name for name, _ in pairs)
        train_N, val_N = split_by_name(names, config.val_fraction or VAL_FRACTION, config.split_seed)
        pairs = [pairs[number] for number in (train_N if request.split == "train" else val_N)]
    return build_captioned(request, folder, pairs)


def read_folder(root: Path) -> list[tuple[str, list[str]]]:
    """(relative path, captions) of every captioned image, sorted; images without a caption are left out and counted."""
    if (root / METADATA).is_file():
        return read_metadata(root / METADATA)
    images = list_images(root)
    pairs = [(name, captions) for name in images if (captions := _captions_beside(root / name))]
    if len(pairs) < len(images):
        without = len(images) - len(pairs)
        _log.warning("%s: %d of %d images have no caption and are left out", root, without, len(images))
    if damaged := sum(any(REPLACEMENT in text for text in captions) for _, captions in pairs):
        _log.warning("%s: %d captions have bytes that are not utf-8 text", root, damaged)
    return pairs


def _captions_beside(image: Path) -> list[str]:
    """The lines of the text file with the image's name; an empty file is one empty caption."""
    try:
        text = decoded(image.with_suffix(".txt").read_bytes())
    except FileNotFoundError:
        return []
    return [line.strip() for line in lines_of(text) if line.strip()] or [""]


def read_metadata(path: Path) -> list[tuple[str, list[str]]]:
    """(file name, captions) of every line, sorted by name; several lines for one image are several captions.

    Raises:
        ValueError: a line that is not JSON with `file_name` and `text` (or `caption`); names the line.
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(read_lines(path, replace=True), start=1):
        if line.strip():
            name, texts = _metadata_line(f"{path}, line {number}", line)
            captions.setdefault(name, []).extend(texts)
    return sorted(captions.items())


def _metadata_line(place: str, line: str) -> tuple[str, list[str]]:
    try:
        entry = json.loads(line)
        name = entry["file_name"]
        texts = next(entry[key] for key in _TEXT_KEYS if key in entry)
    except (ValueError, KeyError, TypeError, StopIteration, RecursionError) as error:
        shown = repr(line.strip()[:80])
        raise ValueError(f'{place} is not of the form {{"file_name": ..., "text": ...}}: {shown}') from error
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(name, str) or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: file_name must be a string and text a string or a list of strings")
    return name, [text.strip() for text in texts] or [""]
