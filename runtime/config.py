"""Experiment configs: dataclass defaults < YAML (with Hydra's defaults lists) < `key=value` overrides, merged strictly.

The dataclass is the schema: a key it does not have, a value of another type or a missing value is a `UserError` that
names the file, the full key and the nearest valid one. A YAML file may share settings through a defaults list, whose
entries are looked up beside the file and then in the nearest directory above it that is called `configs`. Shared files
start with `# @package _global_` so that their keys land at the top.
"""

from __future__ import annotations

import difflib
import math
import textwrap
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Optional, TypeVar, cast, get_args, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, InterpolationKeyError, OmegaConfBaseException

from rqstack.config_limits import check_interpolations, check_text, check_yaml, defaults_of
from rqstack.printable import first_line, printable
from runtime.atomic import write_text_atomically
from runtime.errors import UserError, one_line

T = TypeVar("T")
COMMAND_LINE = "command line"
VALID_KEYS = 120  # characters of the names in a message
LARGEST = 2**63 - 1
TEXT_OR_LIST = "text or list"  # in the metadata of a field: overrides of it are taken as text, or as a list of texts
SHARED_DIRECTORY = "configs"


def load_config(schema: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Merge defaults, a YAML file and overrides into an instance of the dataclass `schema`.

    Args:
        schema: dataclass type; its nested dataclasses become typed objects as well.
        path: YAML file; None takes the defaults and the overrides alone.
        overrides: `key.sub=value` in Hydra's override grammar; `+key=value` adds to a section without fixed keys.
            An override whose key is a directory of configs named in the defaults list picks another file of it.

    Raises:
        UserError: anything wrong with the file or the overrides, in one line.
    """
    config = OmegaConf.structured(schema)
    parsed = [_parse_override(text, config) for text in overrides]
    source = COMMAND_LINE
    if path is not None:
        path = Path(path)
        source = str(path)
        groups = [override for override in parsed if _is_group(override, path)]
        parsed = [override for override in parsed if override not in groups]
        config = _merge(config, _compose(path, groups), source)
    for override in parsed:
        config = _apply(config, override)
    try:
        check_interpolations(config)
    except ValueError as error:
        raise UserError(f"{source}: {one_line(error)}") from None
    return _to_object(config, source)


def composed_values(path: str | Path) -> dict[str, Any]:
    """What a YAML file and those of its defaults list say, neither checked nor resolved.

    Raises:
        UserError: the file cannot be read.
    """
    values = OmegaConf.to_container(_compose(Path(path), []), resolve=False)
    assert isinstance(values, dict), "a composed file is a mapping"
    return {str(name): value for name, value in values.items()}


def config_to_yaml(config: Any) -> str:
    """The resolved YAML text of a config: a dataclass instance, a DictConfig or a mapping."""
    node = config if OmegaConf.is_config(config) else OmegaConf.create(OmegaConf.structured(config))
    return OmegaConf.to_yaml(node, resolve=True)


def save_config(config: Any, path: str | Path) -> None:
    """Write the resolved config as YAML; an interrupted write leaves no half file."""
    write_text_atomically(Path(path), config_to_yaml(config))


def _compose(path: Path, groups: list[Override]) -> DictConfig:
    """Read a YAML file and everything its defaults list names."""
    if not path.is_file():
        raise UserError(f"no config file {path}{_nearest_file(path)}")
    if path.suffix != ".yaml":
        raise UserError(f"{path}: a config file name ends in .yaml")
    directory = path.resolve().parent
    root = _shared_root(directory)
    _check_files(path, [f"{override.key_or_group}/{override.value()}" for override in groups])
    search = [] if root == directory else [f"hydra.searchpath=['file://{_quoted(str(root))}']"]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(directory)):
            return compose(path.stem, overrides=[*search, *(override.input_line or "" for override in groups)])
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"{path}: {one_line(_deepest(error)).split(' Config search path:')[0]}") from error
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from error
    except AssertionError as error:  # of Hydra itself, which says nothing
        raise UserError(f"{path}: its defaults list has an entry that is none") from error
    except (ValueError, TypeError) as error:  # of Hydra, about a defaults list of another form
        raise UserError(f"{path}: {first_line(error)}") from error


def _yaml_problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the name of the file, which PyYAML repeats."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem is None or error.problem_mark is None:
        return one_line(error)
    mark = error.problem_mark
    return f"{printable(_shortened(error.problem))}, line {mark.line + 1}, column {mark.column + 1}"


def _check_files(path: Path, chosen: list[str]) -> None:
    """UserError where the file, or one that its defaults lists or `chosen` name, costs more than a config may."""
    folders = (path.resolve().parent, _shared_root(path.resolve().parent))
    waiting, seen = [path], {path}
    while waiting:
        file = waiting.pop()
        try:
            text = file.read_text(encoding="utf-8")
            check_yaml(text)
            named = defaults_of(text) + chosen
        except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError):
            continue  # Hydra says what is wrong
        except ValueError as error:
            raise UserError(f"{file}: {one_line(error)}") from error
        for name in named:
            for folder in (*folders, file.parent):
                place = folder / f"{name.lstrip('/').removesuffix('.yaml')}.yaml"
                if place not in seen and place.is_file():
                    seen.add(place)
                    waiting.append(place)


def _shared_root(directory: Path) -> Path:
    """The nearest directory called `configs` at or above `directory`; `directory` itself where there is none."""
    for candidate in (directory, *directory.parents):
        if candidate.name == SHARED_DIRECTORY:
            return candidate
    return directory


def _is_group(override: Override, path: Path) -> bool:
    directory = path.resolve().parent
    key = override.key_or_group
    return bool(key) and any((base / key).is_dir() for base in (directory, _shared_root(directory)))


def _parse_override(text: str, config: DictConfig) -> Override:
    """An override in Hydra's grammar; where its key holds text, what the grammar takes for anything else is that text.

    `null`, quoted text and `${...}` mean in a text what they mean in YAML.
    """
    key, equals, given = text.partition("=")
    if not key or (not equals and not key.startswith("~")):
        raise UserError(f"override {_shortened(text)!r}: overrides are written key=value")
    if "${" in given:
        try:
            check_text(key[:80], given)
        except ValueError as error:
            raise UserError(f"{COMMAND_LINE}: {one_line(error)}") from None
    is_text, may_be_list = _holds_text(config, key.lstrip("+"))
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        if not is_text:
            raise UserError(f"override {_shortened(text)!r} cannot be read: quote text: '{key}=\"...\"'") from error
        return _text_override(key, given, text)
    if override.type == OverrideType.DEL:
        raise UserError(f"override {text!r}: a key cannot be deleted; write {override.key_or_group}=null")
    if is_text and (override.is_sweep_override() or not _is_meant(override, given, may_be_list)):
        return _text_override(key, given, text)
    if override.is_sweep_override():
        raise UserError(
            f"override {_shortened(text)!r} lists several values; write {key}=[...] for a list, "
            f"'{key}=\"...\"' for a text"
        )
    return override


def _text_override(key: str, given: str, text: str) -> Override:
    """What sets a key to the very characters that were given."""
    override = OverridesParser.create().parse_override(f"{key}=text")
    return replace(override, _value=given, input_line=text)


def _is_meant(override: Override, given: str, may_be_list: bool) -> bool:
    """Whether the grammar's value of a text is what was written: not a number, not shortened."""
    value = override.value()
    return value is None or (isinstance(value, str) and given == given.strip()) or (may_be_list and type(value) is list)


def _holds_text(config: DictConfig, key: str) -> tuple[bool, bool]:
    """Whether a key's values are texts, and whether they may be lists of texts, as `TEXT_OR_LIST` of its field says."""
    section, _, name = key.rpartition(".")
    kind: Any = config._metadata.object_type
    for part in section.split(".") if section else []:
        kind = _section_type(kind, part)
    if not is_dataclass(kind) or name not in get_type_hints(cast("type", kind)):
        return False, False
    declared = next(field for field in fields(kind) if field.name == name)
    either = bool(declared.metadata.get(TEXT_OR_LIST))
    return either or get_type_hints(cast("type", kind))[name] in (str, Optional[str]), either


def _section_type(kind: Any, name: str) -> Any:
    """The dataclass of a section of a dataclass, None where it is none."""
    hint = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return next((each for each in (hint, *get_args(hint)) if is_dataclass(each)), None)


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def _apply(config: DictConfig, override: Override) -> DictConfig:
    """Set one key. The part of its path that exists is walked, the rest is merged in as nested mappings."""
    key = override.key_or_group
    names = key.split(".")
    node, depth = config, 0
    while depth < len(names) - 1 and _is_filled(child := _filled_section(node, names[depth])):
        node, depth = child, depth + 1
    may_add = override.type in (OverrideType.ADD, OverrideType.FORCE_ADD)
    if not may_add and _child(node, names[depth]) is None:
        hint = "" if _is_typed(node) or isinstance(node, ListConfig) else f"; write +{override.input_line} to add it"
        raise UserError(f"{COMMAND_LINE}: {_unknown_key(config, node, key)}{hint}")
    value = override.value()
    for name in reversed(names[depth + 1 :]):
        value = {name: value}
    _set(config, node, names[depth], value, COMMAND_LINE, key)
    return config


def _merge(config: DictConfig, loaded: DictConfig, source: str) -> DictConfig:
    """Merge a composed file into the schema, section by section, so that every error knows its full key."""
    _merge_section(config, config, loaded, source, "")
    return config


def _merge_section(root: DictConfig, node: DictConfig, loaded: DictConfig, source: str, prefix: str) -> None:
    for name in loaded:
        key = prefix + str(name)
        target = _child(node, str(name))
        if target is None and _is_typed(node):
            raise UserError(f"{source}: {_unknown_key(root, node, key)}")
        value: Any = loaded._get_node(name)
        if _is_typed(target) and isinstance(value, DictConfig) and _is_filled(value):
            _merge_section(root, _filled_section(node, str(name)), value, source, f"{key}.")
        else:
            # `_value()` keeps an interpolation as it is written: it is resolved in the merged config.
            _set(root, node, name, value if _is_filled(value) else value._value(), source, key)


def _set(root: DictConfig, node: Container, name: Any, value: Any, source: str, key: str) -> None:
    try:
        OmegaConf.update(node, str(name), value, merge=True)
    except OverflowError as error:  # of whole numbers in the place of floats
        raise UserError(f"{source}: {_shortened(key)!r}: the number is too large") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_explain(root, error, key)}") from error
    _check_numbers(_child(node, str(name)), source, key)


def _check_numbers(node: Any, source: str, key: str) -> None:
    """UserError for what no setting can be: nan, which every comparison lets pass, inf, and more than 64 bits."""
    if isinstance(node, Container):
        names = range(len(node)) if isinstance(node, ListConfig) else list(node)
        for name in names if _is_filled(node) else ():
            _check_numbers(node._get_node(name), source, f"{key}.{name}")
        return
    value = None if node is None else node._value()
    if isinstance(value, int) and abs(value) > LARGEST:
        shown = _shortened(str(value)) if value.bit_length() < 1000 else f"a number of {value.bit_length()} bits"
        raise UserError(f"{source}: {_shortened(key)!r}: {shown} does not fit into 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{source}: {_shortened(key)!r}: {value} is not a finite number")


def _child(node: Container, name: str) -> Any:
    """The node under a name or a list index, None where there is none. A present node is never None."""
    if isinstance(node, ListConfig):
        return node._get_node(int(name)) if name.isdecimal() and int(name) < len(node) else None
    return node._get_node(name, validate_access=False)


def _filled_section(node: Container, name: str) -> Any:
    """The node under a name; a typed section that is null there is first filled with its defaults."""
    child = _child(node, name)
    if _is_typed(child) and not _is_filled(child):
        node[name] = child._metadata.ref_type
    return _child(node, name)


def _is_filled(node: Any) -> bool:
    """Whether a node is a section or list with content of its own: not null, not missing, not `${...}`."""
    return isinstance(node, Container) and not (node._is_none() or node._is_missing() or node._is_interpolation())


def _is_typed(node: Any) -> bool:
    """Whether a node is a section whose keys are a dataclass's fields."""
    if not isinstance(node, DictConfig):
        return False
    return any(is_dataclass(kind) for kind in (node._metadata.object_type, node._metadata.ref_type))


def _to_object(config: DictConfig, source: str) -> Any:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise UserError(f"{source}: no value for {', '.join(repr(key) for key in missing)}")
        # once more, with what other keys and environment variables have filled in
        for name, value in OmegaConf.to_container(config, resolve=True).items():  # type: ignore[union-attr]  # a mapping
            _check_numbers(OmegaConf.create({"value": value})._get_node("value"), source, str(name))
        made = OmegaConf.to_object(config)
        OmegaConf.structured(made)  # merging takes sections for the numbers of a list, which nobody can save
        return made
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {_explain(config, error)}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{source}: {one_line(error)}") from error


def _explain(config: DictConfig, error: OmegaConfBaseException, key: str = "") -> str:
    """What OmegaConf found wrong, with the full key and, for an unknown one, the nearest known key."""
    key = key or error.full_key or ""
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)) and not isinstance(error, InterpolationKeyError):
        inner = str(error.key)
        full = key if key.endswith(inner) else f"{key}.{inner}"
        return _unknown_key(config, error.parent_node, full)
    # The first line says what is wrong, the others repeat the key and internal types.
    return f"{_shortened(key)!r}: {first_line(error)}"


def _unknown_key(config: DictConfig, node: Container | None, key: str) -> str:
    """`unknown key 'a.b'`, with the nearest name at that place, else the nearest name anywhere in the config."""
    parent, _, name = key.rpartition(".")
    siblings = [str(sibling) for sibling in node] if isinstance(node, DictConfig) and _is_filled(node) else []
    nearest = difflib.get_close_matches(name, siblings, n=1)
    if nearest:
        meant = f"{parent}.{nearest[0]}" if parent else nearest[0]
        return f"unknown key {_shortened(key)!r}; did you mean {meant!r}?"
    everywhere = {full.rpartition(".")[2]: full for full in reversed(_all_keys(config))}
    nearest = difflib.get_close_matches(name, everywhere, n=1)
    if nearest:
        return f"unknown key {_shortened(key)!r}; did you mean {everywhere[nearest[0]]!r}?"
    valid = textwrap.shorten(", ".join(siblings), VALID_KEYS, placeholder=" ...")
    return f"unknown key {_shortened(key)!r}" + (f"; valid here: {valid}" if siblings else "")


def _all_keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name in node:
        key = prefix + str(name)
        keys.append(key)
        child = node._get_node(name)
        if isinstance(child, DictConfig) and _is_filled(child):
            keys.extend(_all_keys(child, f"{key}."))
    return keys


def _nearest_file(path: Path) -> str:
    names = [file.name for file in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / nearest[0]}?" if nearest else ""


def _deepest(error: BaseException) -> BaseException:
    """The first cause; chains that lead back into themselves (hydra makes some) end before they do."""
    seen = [error]
    while error.__cause__ is not None and error.__cause__ not in seen:
        error = error.__cause__
        seen.append(error)
    return error


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
