"""Paths in what a run writes down: absolute, so that they mean the same from another directory, and as typed beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

PATH_KEYS = (
    "dataset.root",
    "dataset.tokenizer",
    "experiment.score.features_weights",
    "experiment.score.features_cache",
    "vqvae.ckpt",
)
TYPED = "typed_paths"  # under this name launch.json and the metadata of snapshots keep what was typed


def with_absolute_paths(config: Any) -> Any:
    """A config whose relative paths are absolute; what names no file here (a data set on the web) stays."""
    for key in PATH_KEYS:
        value = _value(config, key)
        absolute = [_absolute(item) for item in value] if isinstance(value, list) else _absolute(value)
        if absolute != value:
            config = _replaced(config, key.split("."), absolute)
    return config


def typed_paths(config: Any) -> dict[str, Any]:
    """Key -> what was typed, of the paths that `with_absolute_paths` changes."""
    absolute = with_absolute_paths(config)
    return {key: _value(config, key) for key in PATH_KEYS if _value(config, key) != _value(absolute, key)}


def with_paths_that_exist(config: Any, typed: Mapping[str, Any]) -> Any:
    """A config that takes a path as it was typed where the absolute one has gone: the files were moved together."""
    for key, value in typed.items():
        known = _value(config, key) if key in PATH_KEYS else None
        if known is not None and not _exists(known) and _exists(value):
            config = _replaced(config, key.split("."), value)
    return config


def _exists(value: Any) -> bool:
    return all(isinstance(item, str) and _is_here(item) for item in (value if isinstance(value, list) else [value]))


def _absolute(value: Any) -> Any:
    return str(Path(value).absolute()) if isinstance(value, str) and value and _is_here(value) else value


def _is_here(path: str) -> bool:
    """Whether it is a file or folder; a pattern, or the first part of several names, lies in a folder."""
    return "://" not in path and (Path(path).exists() or ("/" in path and Path(path).parent.is_dir()))


def _value(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name, None)
    return config


def _replaced(config: Any, names: list[str], value: Any) -> Any:
    name, *rest = names
    return replace(config, **{name: _replaced(getattr(config, name), rest, value) if rest else value})
