"""Manifests of shards: which shards a split consists of, with SHA-256, and what is in them.

A split of a folder is `<split>-000000.tar ...`, each with its index, and `<split>.manifest.json`. While it is being
written there is a `<split>.plan.json` instead, with everything but the shards: whoever goes on must want the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.config import SPLITS, DatasetConfig
from data.shards.shard_files import filesystem, is_remote, local_path
from data.shards.shard_index import INDEX_SUFFIX, describes
from data.shards.tar_members import MAX_CLASSES
from runtime.atomic import sha256_of_file, sweep, write_text_atomically
from runtime.errors import UserError, one_line

FORMAT = "rq-shards-1"
IMAGES, LATENTS = "images", "latents"


@dataclass(frozen=True)
class ShardEntry:
    """One shard of a manifest: sizes in bytes, hashes hexadecimal SHA-256."""

    name: str
    samples: int
    size: int
    sha256: str
    index_sha256: str


def manifest_name(split: str) -> str:
    return f"{split}.manifest.json"


def plan_name(split: str) -> str:
    return f"{split}.plan.json"


def shard_name(split: str, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def dataset_settings(config: DatasetConfig) -> dict[str, Any]:
    """The settings of a config that are not their defaults, with `type`; a folder as its full path."""
    given = {field.name: getattr(config, field.name) for field in fields(DatasetConfig)}
    settings = {name: value for name, value in given.items() if value != getattr(DatasetConfig(), name)}
    settings["type"] = config.name
    if isinstance(config.root, str) and not is_remote(config.root):
        settings["root"] = str(local_path(config.root).resolve())
    return settings


def begin(folder: Path, header: Mapping[str, Any]) -> None:
    """Starts to write a split, or goes on; `header` is the manifest without its shards.

    Raises:
        UserError: the split is there already, was begun with other settings, or shards of unknown origin lie there.
    """
    header, split = {"format": FORMAT, **header}, header["split"]
    sweep(folder)
    if (folder / manifest_name(split)).exists():
        raise UserError(f"{folder} already holds the {split} split; nothing is overwritten (--verify checks it)")
    plan = folder / plan_name(split)
    if plan.exists():
        begun = _parse(plan.read_text(encoding="utf-8"), str(plan))
        if differing := [name for name in {*begun, *header} if begun.get(name) != _plain(header).get(name)]:
            raise UserError(
                f"{folder}: the {split} split was begun with other settings ({', '.join(sorted(differing))}); "
                "go on with the same, or write to another folder"
            )
    elif found := next(folder.glob(f"{split}-*.tar"), None):
        raise UserError(f"{found} is in the way; nothing is overwritten")
    else:
        write_text_atomically(plan, json.dumps(header, indent=1) + "\n")


def finish(folder: Path, header: Mapping[str, Any], shards: Iterable[ShardEntry]) -> None:
    """Writes the manifest, which makes the split complete."""
    entries, split = list(shards), header["split"]
    counted = {"num_samples": sum(entry.samples for entry in entries), "shards": [asdict(entry) for entry in entries]}
    manifest = {"format": FORMAT, **header, **counted}
    write_text_atomically(folder / manifest_name(split), json.dumps(manifest, indent=1) + "\n")
    (folder / plan_name(split)).unlink(missing_ok=True)


def entry_of(shard: Path, samples: int) -> ShardEntry:
    """The entry of a shard that has been written and indexed."""
    index_hash = sha256_of_file(Path(f"{shard}{INDEX_SUFFIX}"))
    return ShardEntry(shard.name, samples, shard.stat().st_size, sha256_of_file(shard), index_hash)


def read_manifest(root: str, split: str) -> dict[str, Any] | None:
    """The manifest of a split in a folder or below a URL; None where there is none.

    Raises:
        UserError: it cannot be read, or the split has been begun but not finished.
    """
    found = _read_text(root, manifest_name(split))
    if found is None:
        if _read_text(root, plan_name(split)) is not None:
            raise UserError(f"{root}: the {split} split is not complete; run the command that writes it again")
        return None
    manifest = _parse(found, f"{root}/{manifest_name(split)}")
    if manifest.get("format") != FORMAT:
        raise UserError(f"{root}/{manifest_name(split)} has format {manifest.get('format')!r:.40}, not {FORMAT!r}")
    if problem := _wrong_entry(manifest):
        raise UserError(f"{root}/{manifest_name(split)} is damaged: {problem}")
    return manifest


def _wrong_entry(manifest: Mapping[str, Any]) -> str:
    """The first entry of a manifest that is missing or cannot be; empty where all are sound."""
    entries = _ENTRIES | (_LATENT_ENTRIES if manifest.get("kind") == LATENTS else {})
    for name, is_sound in entries.items():
        if not is_sound(manifest.get(name)):
            return f"{name!r} is {repr(manifest.get(name))[:60]}" if name in manifest else f"no {name!r}"
    for contents in manifest["contents"] if manifest["kind"] == LATENTS else ():
        if not _is_shape(manifest.get(f"{contents}_shape")):
            return f"'{contents}_shape' is {repr(manifest.get(f'{contents}_shape'))[:60]}"
    return ""


def _is_shard(entry: Any) -> bool:
    if not isinstance(entry, Mapping) or entry.keys() != {field.name for field in fields(ShardEntry)}:
        return False
    name, texts = entry["name"], ("name", "sha256", "index_sha256")
    is_plain = all(isinstance(entry[key], str) for key in texts) and Path(name).name == name and "\\" not in name
    return is_plain and all(_is_count(entry[key]) for key in ("samples", "size"))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_list(value: Any, of: Callable[[Any], bool], most: int = 1 << 24) -> bool:
    return isinstance(value, list) and len(value) <= most and all(map(of, value))


def _is_shape(value: Any) -> bool:
    return _is_list(value, lambda length: _is_count(length) and length > 0, 8) and 0 < math.prod(value) < 1 << 28


def _one_of(*valid: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in valid


# What every manifest says, and what it says of latents; the shape of the arrays beside it.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "kind": _one_of(IMAGES, LATENTS),
    "dataset": lambda value: isinstance(value, Mapping),
    "class_names": lambda value: _is_list(value, lambda name: isinstance(name, str), MAX_CLASSES),
    "shards": lambda value: _is_list(value, _is_shard),
}
_LATENT_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "tokenizer": lambda value: isinstance(value, str),
    "resolution": lambda value: _is_shape([value]) or (_is_shape(value) and len(value) == 2),
    "contents": lambda value: _is_list(value, _one_of("latent", "codes"), 2) and len(value) > 0,
    "crops": lambda value: _is_count(value) and value > 0,
    "dtype": _one_of("float16", "float32"),
    "codes_dtype": _one_of("uint16", "int32"),
    "cond_length": lambda value: value is None or _is_count(value),
}


def verify(folder: Path) -> tuple[int, list[str]]:
    """Reads every file that the manifests of a folder name: (number of shards, one line for each that is wrong).

    Raises:
        UserError: there is no manifest.
    """
    manifests = [manifest for split in SPLITS if (manifest := read_manifest(str(folder), split)) is not None]
    if not manifests:
        raise UserError(f"{folder} has no manifest (train.manifest.json, val.manifest.json)")
    shards = [ShardEntry(**shard) for manifest in manifests for shard in manifest["shards"]]
    return len(shards), [line for shard in shards if (line := _problem(folder, shard))]


def _problem(folder: Path, shard: ShardEntry) -> str:
    path, index = folder / shard.name, folder / f"{shard.name}{INDEX_SUFFIX}"
    try:
        if path.stat().st_size != shard.size:
            return f"{path} has {path.stat().st_size} bytes, not {shard.size}"
        if sha256_of_file(path) != shard.sha256:
            return f"{path} has other content than when it was written"
        if sha256_of_file(index) != shard.index_sha256 and not describes(index, path):
            return f"{index} has other content than when it was written"
    except OSError as error:
        return f"{path}: {one_line(error)}"
    return ""


def _read_text(root: str, name: str) -> str | None:
    try:
        if is_remote(root):
            system, path = filesystem(f"{root.rstrip('/')}/{name}")
            return system.cat_file(path).decode("utf-8")
        return (local_path(root) / name).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{root}/{name} cannot be read: {one_line(error)}") from error


def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{name} is no manifest")
    return content


def _plain(header: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: lists for tuples."""
    return json.loads(json.dumps(header))
