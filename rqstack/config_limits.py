"""What a YAML file from elsewhere may cost, and what its interpolations may say.

A config has some hundred values and refers to itself in a few places. A file of some hundred bytes may stand for
gigabytes: by aliases of aliases, or by interpolations that name each other twice. And `${oc.env:NAME}` would write a
secret of whoever reads the file into every config that is saved, and into messages.

It imports nothing of ours, so that the runtime may use it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

MOST_BYTES = 1 << 20
MOST_NODES = 20_000  # with every alias as often as it stands there
MOST_DEPTH = 50
MOST_REFERENCES = 2000  # that the interpolations of a config follow, with those that they lead to
LONGEST_REFERENCE = 1000  # characters of a value with an interpolation in it
ENVIRONMENT = ("RQ_DATA_ROOT", "HOME", "USER", "HOSTNAME", "TMPDIR", "SCRATCH", "WORK", "SLURM_JOB_ID", "SLURM_TMPDIR")
"""The variables that `${oc.env:...}` may name: none holds a secret, and what it says may stand in a saved config."""
COPIES = ("oc.select", "oc.dict.keys", "oc.dict.values", "oc.create", "oc.deprecated")
"""Resolvers that copy other parts of a config: `${a.b}` does what configs need of them."""
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER = re.compile(r"\$\{([\w.]+):")
_VARIABLE = re.compile(r"\$\{oc\.env:['\"]?([A-Za-z_]\w*)['\"]?(?:,[^{}]*)?\}")
_KEY = re.compile(r"\$\{([^${}:]*)\}")


def check_yaml(text: str) -> None:
    """ValueError, in one line, for a file that is too large, too deep, or that aliases make too large."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"it has {len(text)} characters, more than {MOST_BYTES}")
    sizes: dict[str, int] = {}  # nodes of what an anchor names
    open_nodes: list[list[Any]] = []  # anchor, nodes so far
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append([event.anchor, 1])
            if len(open_nodes) > MOST_DEPTH:
                raise ValueError(f"it is nested more than {MOST_DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ValueError("an alias stands inside of what it names")
            anchor, size = None, sizes.get(str(event.anchor), 1)
        else:
            continue
        if anchor:
            sizes[anchor] = size
        if open_nodes:
            open_nodes[-1][1] += size
            size = open_nodes[-1][1]
        if size > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES} values, aliases counted as often as they stand there")


def defaults_of(text: str) -> list[str]:
    """The files that the defaults list of a YAML file names, as they are written: `name` or `group/name`.

    Raises:
        ValueError: one of them is an interpolation, of which nobody knows what it will name.
    """
    content = yaml.load(text, Loader=_LOADER)
    listed = content.get("defaults") if isinstance(content, dict) else None
    named = []
    for entry in listed if isinstance(listed, list) else ():
        pairs = entry.items() if isinstance(entry, dict) else [("", entry)]
        for group, options in pairs:
            for option in options if isinstance(options, list) else [options]:
                name = f"{group}/{option}" if group else str(option)
                if "${" in name:
                    raise ValueError("a defaults list names files, not interpolations")
                words = [word for word in name.split() if word not in ("optional", "override")]
                named.append("".join(words).split("@")[0] if not group else "".join(words))
    return named


def check_interpolations(config: Any) -> None:
    """ValueError, in one line with the key, for interpolations that cost too much or read what they may not.

    Args:
        config: of OmegaConf, or what `OmegaConf.create` takes; nothing in it is resolved.
    """
    node = config if OmegaConf.is_config(config) else OmegaConf.create(config)
    texts = {key: text for key, text in _scalars(node) if isinstance(text, str) and "${" in text}
    if not texts:
        return
    for key, text in texts.items():
        check_text(key, text)
    costs: dict[str, int] = {}
    for key in texts:
        if _cost(key, texts, costs, ()) > MOST_REFERENCES:
            raise ValueError(f"{key!r}: its interpolations lead to more than {MOST_REFERENCES} others")


def check_text(key: str, text: str) -> None:
    if len(text) > LONGEST_REFERENCE:
        raise ValueError(f"{key!r}: a value with an interpolation has {len(text)} characters, over {LONGEST_REFERENCE}")
    depth = 0
    for mark in re.findall(r"\$\{|\}", text):
        depth = depth + 1 if mark == "${" else max(0, depth - 1)
        if depth > 1:
            raise ValueError(f"{key!r}: an interpolation stands inside another one")
    compact = "".join(text.split())
    for name in _RESOLVER.findall(compact):
        if name in COPIES:
            raise ValueError(f"{key!r}: ${{{name}:...}} is not for configs; write ${{key}}")
    names = _VARIABLE.findall(compact)
    if len(names) < compact.count("oc.env") or any(name not in ENVIRONMENT for name in names):
        raise ValueError(
            f"{key!r}: ${{oc.env:...}} may name {', '.join(ENVIRONMENT)}; others may hold what no saved config should"
        )


def _scalars(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(full key, value as written) of everything below a node."""
    if not isinstance(node, (DictConfig, ListConfig)):
        return
    if node._is_none() or node._is_missing() or node._is_interpolation():
        yield prefix, node._value()
        return
    names: list[Any] = list(range(len(node))) if isinstance(node, ListConfig) else list(node.keys())
    for name in names:
        child: Any = node._get_node(name)
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(child, (DictConfig, ListConfig)):
            yield from _scalars(child, key)
        elif child is not None:
            yield key, child._value()


def _cost(key: str, texts: dict[str, str], costs: dict[str, int], above: tuple[str, ...]) -> int:
    """How many references resolving a key follows."""
    if key in costs:
        return costs[key]
    if key in above or len(above) > MOST_DEPTH:
        raise ValueError(f"{key!r}: its interpolations lead back to it, or through more than {MOST_DEPTH} others")
    total = 0
    for target in map(str.strip, _KEY.findall(texts[key])):
        place = _absolute(target, key)
        below = [name for name in texts if name == place or name.startswith(f"{place}.")]
        total += 1 + sum(_cost(name, texts, costs, (*above, key)) for name in below)
        if total > MOST_REFERENCES:
            break
    costs[key] = total
    return total


def _absolute(target: str, key: str) -> str:
    """The full key that a reference names: `a.b`, `a[0]`, or relative with leading dots."""
    plain = target.replace("[", ".").replace("]", "")
    dots = len(plain) - len(plain.lstrip("."))
    if not dots:
        return plain
    parents = key.split(".")[:-dots]
    return ".".join([*parents, plain.lstrip(".")]) if plain.lstrip(".") else ".".join(parents)
