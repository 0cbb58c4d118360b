"""Which shards a name stands for: the dataset.root of a config, or the name of images to score."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.images.listing import holds_image
from data.roots import ENVIRONMENT
from data.shards.shard_files import filesystem, is_remote, local_path
from runtime.errors import UserError

LAYOUT = "tar files of images (<key>.jpg, <key>.cls, <key>.txt), with train or val in their names for given splits"
MAX_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")


def shards_of_root(root: str | Sequence[str]) -> list[str]:
    """The shards of a dataset.root: all that a folder, a brace pattern, a URL or a list of these stands for, in order.

    Raises:
        FileNotFoundError: there are none, or not all of a pattern.
    """
    found: list[str] = []
    for pattern in [root] if isinstance(root, str) else root:
        for place in expanded(pattern):
            found += [place] if re.search(r"\.(tar|tgz|tar\.\w+)$", place) else _list_folder(place)
    if not found:
        raise missing_shards(root)
    if missing := [place for place in found if not is_remote(place) and not local_path(place).is_file()]:
        raise FileNotFoundError(f"shards: there is no {missing[0]} ({len(missing)} of {len(found)} are missing)")
    return found


def shards_named(spec: str) -> list[Path]:
    """The local shards that the name of images to score stands for: one `.tar`, `{000..009}` and `*` patterns, or a
    folder of `.tar` files.

    Empty when it does not stand for shards. UserError when shards are missing, or lie among images.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        if shards and holds_image(path):
            raise UserError(f"{spec} holds both images and .tar files; name the one you mean")
        return shards or ([] if holds_image(path) else [Path(place) for place in _list_folder(str(path))])
    if path.suffix.lower() != ".tar":
        return []
    places = expanded(str(path))
    if missing := [place for place in places if not os.path.isfile(place)]:
        raise UserError(f"no shard {missing[0]}")
    return [Path(place) for place in places]


def expanded(pattern: str) -> list[str]:
    """What a pattern of names stands for, in order: `{000..009}`, `{a,b}` and, for files, `*`. A name that is there is
    taken as it is, whatever signs are in it.

    Raises:
        UserError: braces that do not fit, or more than a million names.
    """
    if not is_remote(pattern) and local_path(pattern).exists() or not re.search(r"[{}*?\[]", pattern):
        return [pattern]
    from braceexpand import braceexpand

    # counted before they are made: the package makes all numbers of a range at once
    count = math.prod(map(_size, _BRACES.findall(pattern)))
    try:
        names = list(itertools.islice(braceexpand(pattern), MAX_SHARDS + 1)) if count <= MAX_SHARDS else []
    except ValueError as error:
        raise UserError(f"{pattern!r} is no brace pattern: {error}") from error
    if not 0 < len(names) <= MAX_SHARDS:
        raise UserError(f"{pattern} stands for more than {MAX_SHARDS} shards")
    return [place for name in names for place in _globbed(name)]


def _size(inside: str) -> int:
    """How many names one pair of braces stands for."""
    numbers = re.match(r"(-?\d+)\.\.(-?\d+)", inside)
    return 1 + abs(int(numbers[2]) - int(numbers[1])) if numbers else 1 + inside.count(",")


def _globbed(name: str) -> list[str]:
    if is_remote(name) or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(str(local_path(name)))) or [name]


def missing_shards(root: str | Sequence[str]) -> FileNotFoundError:
    """The error for shards that are not there."""
    return FileNotFoundError(
        f"shards: no shards found in {root}; expected {LAYOUT}. Set dataset.root=<folder, URL, brace pattern or list> "
        f"or the environment variable {ENVIRONMENT} (see docs/data_at_scale.md)"
    )


def _list_folder(place: str) -> list[str]:
    if is_remote(place):
        system, path = filesystem(place)
        return sorted(system.unstrip_protocol(found) for found in system.find(path) if found.endswith(".tar"))
    folder = local_path(place)
    return sorted(str(path) for path in folder.rglob("*.tar") if not path.name.startswith("."))
