"""Which shards a name stands for: the dataset.root of a config, or the name of images to score."""

from __future__ import annotations

import glob
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
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def shards_of_root(root: str | Sequence[str]) -> list[str]:
    """The shards of a dataset.root: all that a folder, a brace pattern, a URL or a list of these stands for, in order.

    Raises:
        FileNotFoundError: there are none, or not all of a pattern.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in [root] if isinstance(root, str) else root:
        try:
            places = list(braceexpand(pattern))
        except ValueError as error:
            raise ValueError(f"dataset.root {pattern!r} is no brace pattern: {error}") from error
        for place in places:
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
        return shards
    if path.suffix != ".tar":
        return []
    shards = []
    for name in _braces_expanded(str(path)):
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if missing := [place for place in found if not os.path.isfile(place)] or ([] if found else [name]):
            raise UserError(f"no shard {missing[0]}")
        shards += map(Path, found)
    return shards


def _braces_expanded(name: str) -> list[str]:
    match = _BRACES.search(name)
    if not match:
        return [name]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise UserError(f"{name}: {match[0]} must count upwards, over at most {MAX_SHARDS} shards")
    before, after = name[: match.start()], name[match.end() :]
    numbers = [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return [before + number + rest for number in numbers for rest in _braces_expanded(after)]


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
