"""A mapping as a dataclass, strictly: unknown keys, wrong types and missing values are errors in one line."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rqstack.printable import first_line

Schema = TypeVar("Schema")


def typed(schema: type[Schema], mapping: Mapping[str, Any], name: str) -> Schema:
    """The dataclass with the values of a mapping, which OmegaConf converts to its types.

    name: of the mapping, in errors. Raises ValueError for an unknown key (naming the nearest known one), a value of a
    wrong type, a missing one, or one that the dataclass itself refuses.
    """
    plain = _plain(mapping)
    _check_keys(schema, plain, name)
    frozen: dict[str, Any] = {
        key: typed(kind, plain.pop(key), f"{name}.{key}")
        for key, kind in _parts(schema).items()
        if isinstance(plain.get(key), Mapping) and _is_frozen(kind)
    }
    merged, key = OmegaConf.structured(schema), ""
    try:
        for key, value in plain.items():
            merged = OmegaConf.merge(merged, {key: value})
        whole: Any = OmegaConf.to_object(merged)
    except OverflowError:  # of whole numbers in the place of floats
        raise ValueError(f"{name}.{key}: the number is too large") from None
    except OmegaConfBaseException as error:
        raise ValueError(f"{name}.{error.full_key or key}: {first_line(error)}") from None
    return dataclasses.replace(whole, **frozen) if frozen else whole


def check_present(config: Any, prefix: str = "") -> None:
    """ValueError with the first value of a dataclass, or of one inside it, that is missing."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if value == MISSING:
            raise ValueError(f"missing value: {prefix}{f.name}")
        if dataclasses.is_dataclass(value):
            check_present(value, f"{prefix}{f.name}.")


def _plain(mapping: Mapping[str, Any]) -> dict[str, Any]:
    whole: Any = OmegaConf.to_container(mapping, resolve=True) if isinstance(mapping, DictConfig) else mapping
    return {key: dataclasses.asdict(item) if _is_instance(item) else item for key, item in whole.items()}


def _is_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_frozen(kind: type) -> bool:
    """OmegaConf holds frozen dataclasses as read-only sections, into which nothing can be merged."""
    return OmegaConf.is_readonly(OmegaConf.structured(kind)) or False


def _parts(schema: type) -> dict[str, type]:
    """The fields of a dataclass that are dataclasses themselves, perhaps optional ones."""
    found = {}
    for name, annotation in get_type_hints(schema).items():
        for kind in (annotation, *get_args(annotation)):
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                found[name] = kind
    return found


def _check_keys(schema: Any, mapping: Mapping[str, Any], path: str) -> None:
    known, parts = [f.name for f in dataclasses.fields(schema)], _parts(schema)
    for key, value in mapping.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ValueError(f"unknown key {path}.{key}; {hint}")
        if key in parts and isinstance(value, Mapping):
            _check_keys(parts[key], value, f"{path}.{key}")
