"""Where the weights of feature networks come from: a given file, an environment variable, torch hub's cache.

Nothing is ever downloaded; a missing file is an error that says where it may be put.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch


class WeightSource(NamedTuple):
    """A published weight file: its well-known name, the start of its SHA-256, its environment variable and URL."""

    file_name: str
    sha256_prefix: str
    environment: str
    url: str


FID_INCEPTION = WeightSource(
    file_name="pt_inception-2015-12-05-6726825d.pth",
    sha256_prefix="6726825d",
    environment="FID_INCEPTION_WEIGHTS",
    url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file as 64 hex digits, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_weights(source: WeightSource, path: str | os.PathLike[str] | None = None) -> tuple[Path, str]:
    """The weight file and its SHA-256: `path` if given, else the environment variable, else torch hub's cache.

    A file with the well-known name must have the well-known hash; under another name any file is taken (and its hash
    becomes part of the metric names).

    Raises:
        FileNotFoundError: no such file; the message lists the places.
        ValueError: the well-known file is damaged.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / source.file_name
    found = Path(path or os.environ.get(source.environment) or cached).expanduser()
    if not found.is_file():
        raise FileNotFoundError(
            f"no weights at {found}: download {source.url} and give its path by flag, by the environment variable "
            f"{source.environment}, or put it at {cached}; `--features classifier` needs none"
        )
    sha256 = file_sha256(found)
    if found.name == source.file_name and not sha256.startswith(source.sha256_prefix):
        raise ValueError(f"{found} is damaged: its SHA-256 starts with {sha256[:8]}, not {source.sha256_prefix}")
    return found, sha256
