"""Where the files of a data set lie."""

from __future__ import annotations

import os
from pathlib import Path

from data.config import DatasetConfig

ENVIRONMENT = "RQ_DATA_ROOT"


def find_root(config: DatasetConfig, layout: str) -> Path:
    """The folder of a data set: dataset.root, else $RQ_DATA_ROOT/<name>, else data/<name> where the command runs.

    FileNotFoundError, one line, says where it looked, what `layout` it expects and how to set it.
    """
    if config.root:
        places = [Path(config.root).expanduser()]
    else:
        places = [Path("data") / config.name]
        if base := os.environ.get(ENVIRONMENT):
            places.insert(0, Path(base).expanduser() / config.name)
    for place in places:
        if place.is_dir():
            return place
    raise missing(config, " or ".join(str(place) for place in places), layout)


def missing(config: DatasetConfig, place: str | Path, layout: str) -> FileNotFoundError:
    """The error for files that are not there."""
    return FileNotFoundError(
        f"{config.name}: no images found in {place}; expected {layout}. "
        f"Set dataset.root=<folder> or the environment variable {ENVIRONMENT} (see data/README.md)"
    )
