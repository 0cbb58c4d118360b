"""The two layouts of a stage's tensors, by their names alone, and the sections of a config that go with them.

Stage 1 differs: the published file ends every codebook with a padding row of zeros, repeats a shared codebook for every
depth, and has no update counters. Stage 2 is the same in both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
STAGES = {"rq-vae": "stage 1", "rq-transformer": "stage 2"}
# What data parallelism, compilation, sharding and the usual trainers put before the names of a model, in any order.
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "model.")
# What compilation, sharding and checkpointing of a part leave in the middle of a name.
INNER_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
CODEBOOKS = "quantizer.codebooks."
COUNTER = "num_updates"
WEIGHT_PARTS = ("state_dict", "state_dict_ema")

# Keys of ours that the published code does not know, with the values under which it does not need them.
ANYTHING = object()
STAGE1_KEYS = {"codebook_update": ANYTHING, "bottleneck": {}}
STAGE2_KEYS = {"cond_drop_prob": 0.0}
BLOCK_KEYS = {"norm": "layer", "head_dim": None, "n_kv_head": None, "mlp_ratio": 4, "alibi": False}


def stage_of(config: Mapping[str, Any] | None) -> str:
    """`stage 1`, `stage 2` or `unknown`."""
    arch = (config or {}).get("arch") or {}
    return STAGES.get(arch.get("type", ""), "unknown")


def hparams(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The bottleneck's settings of a stage-1 config."""
    arch: dict[str, Any] = (config or {})["arch"]
    return arch.get("hparams") or arch


def without_wrapper(tensors: Tensors) -> tuple[Tensors, str]:
    """Names without what wrappers have put before all of them, in any nesting, and that prefix."""
    prefix = ""
    while tensors:
        names = [name.removeprefix(prefix) for name in tensors]
        found = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in names)), None)
        if found is None:
            break
        prefix += found
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, prefix


def without_wrappers(tensors: Tensors) -> Tensors:
    """Names of the bare model: without what wrappers of the whole or of parts of it have put into them.

    ValueError where two tensors would get one name.
    """
    bare: Tensors = {}
    for name, tensor in without_wrapper(tensors)[0].items():
        for wrapper in INNER_WRAPPERS:
            name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
        if name in bare:
            raise ValueError(f"two tensors are {name!r} without the names of wrappers")
        bare[name] = tensor
    return bare


def is_ours(tensors: Tensors) -> bool:
    """Whether tensors of stage 1 are laid out as ours are: their codebooks count updates."""
    return any(name.startswith(CODEBOOKS) and name.endswith(f".{COUNTER}") for name in tensors)


def ours_from_published(tensors: Tensors, config: Mapping[str, Any] | None) -> Tensors:
    """Tensors of a snapshot. Raises ValueError when the copies of a shared codebook differ."""
    if stage_of(config) != "stage 1" or is_ours(tensors):
        return dict(tensors)
    shared, ours = bool(hparams(config).get("shared_codebook")), {}
    for name, tensor in tensors.items():
        if not name.startswith(CODEBOOKS):
            ours[name] = tensor
            continue
        depth, _, part = name.removeprefix(CODEBOOKS).partition(".")
        own = f"{CODEBOOKS}{0 if shared else depth}."
        tensor = tensor[:-1] if part == "weight" else tensor
        if own + part in ours and not torch.equal(ours[own + part], tensor):
            raise ValueError(f"shared_codebook is true, but {name} differs between depths")
        ours[own + part] = tensor
        ours[own + COUNTER] = torch.zeros((), dtype=torch.int64)
    return ours


def published_from_ours(tensors: Tensors, config: Mapping[str, Any] | None) -> Tensors:
    """The inverse of `ours_from_published`."""
    if stage_of(config) != "stage 1":
        return dict(tensors)
    settings, published = hparams(config), {}
    copies = range(settings["code_shape"][2]) if settings.get("shared_codebook") else None
    for name, tensor in tensors.items():
        if not name.startswith(CODEBOOKS):
            published[name] = tensor
            continue
        depth, _, part = name.removeprefix(CODEBOOKS).partition(".")
        if part == COUNTER:
            continue
        if part == "weight":
            tensor = torch.cat([tensor, torch.zeros_like(tensor[:1])])
        for number in copies if copies is not None else [depth]:
            published[f"{CODEBOOKS}{number}.{part}"] = tensor
    return published


def published_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys that are ours alone.

    Raises:
        ValueError: one of them has a value that the published format cannot express.
    """
    plain, stage = copy.deepcopy(dict(config)), stage_of(config)
    if stage == "unknown":
        raise ValueError(f"the config is of neither stage: arch.type must be one of {', '.join(STAGES)}")
    arch = plain["arch"]
    if stage == "stage 1":
        settings = hparams(plain)
        if settings.get("bottleneck_type", "rq") != "rq":
            raise ValueError(f"bottleneck_type {settings['bottleneck_type']!r} has no published form, only 'rq' has")
        _take_out(settings, STAGE1_KEYS, "arch.hparams.")
    else:
        _take_out(arch, STAGE2_KEYS, "arch.")
        for stack in ("body", "head"):
            _take_out((arch.get(stack) or {}).get("block") or {}, BLOCK_KEYS, f"arch.{stack}.block.")
    return plain


def _take_out(section: dict[str, Any], keys: Mapping[str, Any], prefix: str) -> None:
    for key, plain in keys.items():
        value = section.pop(key, plain)
        if plain is not ANYTHING and value != plain:
            raise ValueError(f"{prefix}{key}={value} has no published form, only {plain} has")


def count_parameters(tensors: Tensors, config: Mapping[str, Any] | None, is_snapshot: bool) -> int:
    """The published count: no averages, counters and offsets; a shared codebook once, with its padding row."""
    if is_snapshot:
        tensors = published_from_ours(tensors, config)
    shared = stage_of(config) == "stage 1" and bool(hparams(config).get("shared_codebook"))
    total = 0
    for name, tensor in tensors.items():
        depth, _, part = name.removeprefix(CODEBOOKS).partition(".")
        is_state = name.endswith(("cluster_size_ema", "embed_ema", COUNTER)) or name == "tok_emb.offsets"
        is_copy = shared and name.startswith(CODEBOOKS) and depth != "0"
        total += 0 if is_state or is_copy else tensor.numel()
    return total
