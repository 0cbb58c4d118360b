"""What a checkpoint holds, as facts and as lines to read."""

from __future__ import annotations

from typing import Any

from rqstack.archive import Archive
from rqstack.published_layout import WEIGHT_PARTS, count_parameters, hparams, without_wrapper

MOST_CHARACTERS = 160  # of a value in a line
SHOWN = 20  # classes in the lines for a console; the facts have all
KINDS = {"stage 1": "stage 1 (RQ-VAE)", "stage 2": "stage 2 (RQ-Transformer)", "unknown": "an unknown model"}


def facts_of(archive: Archive) -> dict[str, Any]:
    """Format, stage, size, every part with its parameters by prefix, the config in short, and the metadata."""
    parts = {}
    for name, tensors in archive.parts.items():
        tensors, prefix = without_wrapper(tensors)
        is_model = name in WEIGHT_PARTS
        parts[name] = {
            "tensors": len(tensors),
            "parameters": count_parameters(tensors, archive.config, archive.is_snapshot)
            if is_model
            else sum(tensor.numel() for tensor in tensors.values()),
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}),
            "wrapper": prefix,
            "prefixes": _by_prefix(tensors),
        }
    return {
        "path": str(archive.path),
        "format": "snapshot" if archive.is_snapshot else "published",
        "stage": archive.stage,
        "bytes": archive.num_bytes,
        "averaged_weights": "state_dict_ema" in archive.parts,
        "parts": parts,
        "left_out": archive.left_out,
        "config": _summary(archive),
        "tokenizer": [file.name for file in archive.tokenizer_files()],
        "metadata": archive.metadata,
    }


def _by_prefix(tensors: dict[str, Any]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        entry = found.setdefault(name.split(".")[0], {"tensors": 0, "numbers": 0})
        entry["tensors"] += 1
        entry["numbers"] += tensor.numel()
    return found


def _summary(archive: Archive) -> dict[str, Any]:
    """What one wants to know of a config."""
    config = archive.config or {}
    arch, dataset = config.get("arch") or {}, config.get("dataset") or {}
    chosen: dict[str, Any] = {}
    if archive.stage == "stage 1":
        settings = hparams(config)
        chosen = {
            "resolution": (arch.get("ddconfig") or {}).get("resolution"),
            **{
                key: settings.get(key)
                for key in ("bottleneck_type", "code_shape", "n_embed", "shared_codebook", "embed_dim")
            },
        }
    elif archive.stage == "stage 2":
        chosen = {
            key: arch.get(key)
            for key in ("block_size", "vocab_size", "embed_dim", "vocab_size_cond", "block_size_cond")
        }
        chosen["vocab_size"] = chosen["vocab_size"] or dataset.get("vocab_size")
        for stack in ("body", "head"):
            section = arch.get(stack) or {}
            chosen[stack] = f"{section.get('n_layer')} layers, {(section.get('block') or {}).get('n_head')} heads"
        chosen["sampling"] = config.get("sampling")
    chosen["dataset"] = dataset.get("type") or dataset.get("dataset")
    return {key: value for key, value in chosen.items() if value is not None}


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The facts for a console."""
    lines = [f"{facts['path']}: {facts['format']} checkpoint of {KINDS[facts['stage']]}, {facts['bytes'] / 1e6:.1f} MB"]
    for name, part in facts["parts"].items():
        wrapper = f", names start with {part['wrapper']}" if part["wrapper"] else ""
        lines.append(
            f"{name}: {part['parameters']:,} parameters in {part['tensors']} tensors "
            f"({', '.join(part['dtypes'])}){wrapper}"
        )
    first = next(iter(facts["parts"].values()))
    width = max(len(prefix) for prefix in first["prefixes"])
    lines += [
        f"  {prefix:<{width}}  {entry['tensors']:>5} tensors  {entry['numbers']:>15,} numbers"
        for prefix, entry in first["prefixes"].items()
    ]
    lines.append(f"averaged weights: {'yes' if facts['averaged_weights'] else 'no'}")
    lines += [f"{key}: {value}" for key, value in facts["config"].items()]
    for key, name in (("tokenizer", "tokenizer files"), ("left_out", "entries that are no tensors")):
        if facts[key]:
            lines.append(f"{name}: {', '.join(facts[key])}")
    metadata = dict(facts["metadata"])
    names, counts = metadata.pop("class_names", None), metadata.pop("images_per_class", None)
    if isinstance(names, list):
        lines.append(f"classes: {len(names)} ({_first(names)})")
    if isinstance(counts, list):
        lines.append(f"training images of each class: {_first(counts)}")
    return lines + [f"metadata: {key} = {_shortened(str(value))}" for key, value in metadata.items()]


def _first(values: list[Any]) -> str:
    return ", ".join([*map(str, values[:SHOWN]), *(["..."] if len(values) > SHOWN else [])])


def _shortened(text: str) -> str:
    """For a line to read; the facts have all of it."""
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ... ({len(text):,} characters)"
