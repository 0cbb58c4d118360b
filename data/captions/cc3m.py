"""Conceptual Captions (CC-3M), and everything listed like it: `train_list.txt` and `val_list.txt`.

A line is `path<TAB>caption`, the path relative to the folder of the list (`./train/246f2439...`), as
`python -m data.download_cc3m` and the published download script write it.
"""

from __future__ import annotations

from pathlib import Path

from data.captions.captioned_dataset import build_captioned
from data.dataset import ImageDataset
from data.request import DatasetRequest
from data.roots import find_root, missing
from data.text_files import read_lines

LAYOUT = "train_list.txt and val_list.txt with lines path<TAB>caption, and the images they name"


def build_cc3m(request: DatasetRequest) -> ImageDataset:
    """The images of `<split>_list.txt`; one that is listed but not there counts as unreadable."""
    root = find_root(request.config, LAYOUT)
    path = root / f"{request.split}_list.txt"
    if not path.is_file():
        raise missing(request.config, path, LAYOUT)
    pairs = read_list(path)
    if not pairs:
        raise ValueError(f"{path} is empty; expected lines path<TAB>caption")
    return build_captioned(request, root, [(name, [text]) for name, text in pairs])


def read_list(path: Path) -> list[tuple[str, str]]:
    """(image path, caption) of every line; ValueError names the line that has another number of columns."""
    pairs = []
    for number, line in enumerate(read_lines(path, replace=True), start=1):
        columns = line.split("\t")
        if len(columns) != 2:
            raise ValueError(f"{path}, line {number} has {len(columns)} columns; expected path<TAB>caption")
        pairs.append((columns[0].removeprefix("./"), columns[1].strip()))
    return pairs
