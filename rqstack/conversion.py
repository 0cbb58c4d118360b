"""A published checkpoint -> a snapshot of safetensors, and back; of either stage, tensor by tensor.

Going back and forth changes nothing: a conversion to a snapshot is undone in memory and compared before anything is
written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from rqstack.archive import WEIGHT_FILES, Archive, read_archive
from rqstack.published_file import PUBLISHED_FILE, Parts, write_published_file
from rqstack.published_layout import (
    WEIGHT_PARTS,
    is_ours,
    ours_from_published,
    published_config,
    published_from_ours,
    without_wrapper,
    without_wrappers,
)
from rqstack.snapshots import COMPLETE, CONFIG_FILE, appearing_folder, write_snapshot
from rqstack.weight_files import INDEX, SAFETENSORS

FORMATS = ("snapshot", "published")


def convert(path: str | Path, to: str = "snapshot", out: str | Path | None = None) -> Path:
    """Writes the checkpoint in the other format and returns the new folder; the old one stays as it is.

    Args:
        path: a published file or its folder, or a snapshot.
        to: `snapshot` (safetensors), or `published`: a torch.save'd dictionary, which is a pickle of plain tensors.
        out: the new folder, which must not exist; None: beside the old one, its name followed by the format.

    Raises:
        FileNotFoundError, ValueError: what is missing, damaged, of the wanted format already, or has no published form.
    """
    if to not in FORMATS:
        raise ValueError(f"format {to!r} is unknown; choose one of {', '.join(FORMATS)}")
    archive = read_archive(path)
    if archive.is_snapshot == (to == "snapshot"):
        raise ValueError(
            f"{path} is a {to} checkpoint already"
            + ("; --to published writes the published format" if archive.is_snapshot else "")
        )
    default = archive.folder.resolve()
    out = default.with_name(f"{default.name}-{to}") if out is None else Path(out).expanduser()
    if out.exists():
        raise ValueError(f"{out} exists: nothing is overwritten; choose another folder with --out")
    write = _prepare_snapshot(archive) if to == "snapshot" else _prepare_published(archive)
    with appearing_folder(out) as partial:
        write(partial)
    return out


def _prepare_snapshot(archive: Archive) -> Callable[[Path], None]:
    if archive.left_out:
        raise ValueError(f"{archive.path} also holds {', '.join(archive.left_out)}, which a snapshot has no place for")
    ours, prefixes, renamed = {}, {}, {}
    for name, tensors in archive.parts.items():
        if name in WEIGHT_PARTS:
            wrapped, prefixes[name] = without_wrapper(tensors)
            bare = without_wrappers(tensors)
            renamed[name] = {new: old for new, old in zip(bare, wrapped, strict=True) if new != old}
            tensors = ours_from_published(bare, archive.config)
        ours[name] = tensors
    again = _published_parts(ours, archive.config, prefixes, renamed)
    for name, tensors in archive.parts.items():
        if not is_ours(without_wrappers(tensors)):  # saved by our model: in our layout already
            _check_same(tensors, again[name], f"{archive.path}, {name}")
    known = {"file": archive.path.name, "prefixes": prefixes, "parts": list(archive.parts)}
    inside = {name: names for name, names in renamed.items() if names}
    metadata = {"published": {**known, "renamed": inside} if inside else known}

    def write(folder: Path) -> None:
        weights = {WEIGHT_FILES.get(name, f"{name}.safetensors"): tensors for name, tensors in ours.items()}
        write_snapshot(folder, dict(sorted(weights.items())), archive.config_text, metadata)
        _copy_tokenizer(archive, folder)
        (folder / COMPLETE).touch()

    return write


def _prepare_published(archive: Archive) -> Callable[[Path], None]:
    record: dict[str, Any] = archive.metadata.get("published") or {}
    text = archive.config_text
    if not record and archive.config is not None:  # trained here: the published code knows fewer keys
        text = OmegaConf.to_yaml(OmegaConf.create(published_config(archive.config)))
    parts = _published_parts(archive.parts, archive.config, record.get("prefixes", {}), record.get("renamed", {}))
    parts = {name: parts[name] for name in record.get("parts", parts) if name in parts}

    def write(folder: Path) -> None:
        name = record.get("file", PUBLISHED_FILE)
        write_published_file(folder / (PUBLISHED_FILE if name.endswith((SAFETENSORS, INDEX)) else name), parts)
        _write_text(folder / CONFIG_FILE, text)
        _copy_tokenizer(archive, folder)

    return write


def _published_parts(
    ours: Parts, config: dict[str, Any] | None, prefixes: dict[str, str], renamed: dict[str, dict[str, str]]
) -> Parts:
    parts = {}
    for name, tensors in ours.items():
        if name in WEIGHT_PARTS:
            tensors = published_from_ours(tensors, config)
        prefix, names = prefixes.get(name, ""), renamed.get(name, {})
        parts[name] = {prefix + names.get(key, key): tensor for key, tensor in tensors.items()}
    return parts


def _check_same(before: dict[str, Tensor], after: dict[str, Tensor], where: str) -> None:
    wrong = sorted(before.keys() ^ after.keys())
    wrong += [name for name in before.keys() & after.keys() if not _same(before[name], after[name])]
    if wrong:
        raise ValueError(f"{where} is not in the published layout: {', '.join(wrong[:5])} would not come back the same")


def _same(left: Tensor, right: Tensor) -> bool:
    if left is right:
        return True
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def _copy_tokenizer(archive: Archive, folder: Path) -> None:
    for file in archive.tokenizer_files():
        shutil.copy(file, folder)


def _write_text(path: Path, text: str) -> None:
    if text:
        path.write_text(text, encoding="utf-8")
