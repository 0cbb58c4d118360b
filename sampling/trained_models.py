"""Trained models by the path a user gives: a run, a snapshot or a published checkpoint, and the config beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.tokenizers.tokenizer_loading import tokenizer_beside
from rqstack.archive import newest_snapshot, read_archive
from rqstack.arguments import height_width
from rqstack.finite import non_finite_names
from rqstack.snapshots import CONFIG_FILE, METADATA_FILE, weights_digest
from rqtransformer import RQTransformer, RQTransformerConfig, load_rqtransformer
from rqvae import RQVAE, load_rqvae
from runtime.atomic import is_complete
from runtime.config import load_config
from runtime.errors import UserError
from runtime.step_directories import SNAPSHOTS, read_json
from sampling.recorded_paths import TYPED, with_paths_that_exist

IMAGES_PER_CLASS = "images_per_class"  # in a snapshot's metadata: of the classes of a model
CLASS_NAMES = "class_names"  # there too: what they are called


def resolve_checkpoint(path: str | Path) -> Path:
    """A run directory stands for its newest snapshot; a snapshot or a published checkpoint is what it is.

    Raises:
        UserError: nothing is there, or a directory that is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no checkpoint at {path}")
    snapshot = newest_snapshot(path)
    if snapshot is None and path.is_dir() and not any(path.glob("*.pt")):
        raise UserError(f"{path} is neither a run with a snapshot, nor a snapshot, nor a folder with a .pt file")
    return snapshot or path


def read_metadata(path: str | Path) -> dict[str, Any]:
    """A snapshot's `metadata.json`; its `sha256` entry identifies the weights in result lines.

    Raises:
        FileNotFoundError: no complete snapshot.
        UserError: the file is damaged.
    """
    if not is_complete(Path(path)):
        raise FileNotFoundError(f"{path} is not a complete snapshot")
    return read_json(Path(path) / METADATA_FILE)


def trained_classes(checkpoint: Path) -> list[int] | None:
    """How many images every class of a snapshot was trained on; None where that is not recorded.

    Raises:
        UserError: the record is damaged.
    """
    if not (checkpoint / METADATA_FILE).is_file():
        return None
    counts = read_metadata(checkpoint).get(IMAGES_PER_CLASS)
    if counts is None:
        return None
    if (
        not isinstance(counts, list)
        or not all(type(count) is int and count >= 0 for count in counts)
        or not any(counts)
    ):
        raise UserError(
            f"{checkpoint / METADATA_FILE}: {IMAGES_PER_CLASS} must list numbers of images, one of them above 0"
        )
    return counts


def class_names_of(checkpoint: Path) -> list[str]:
    """What a snapshot's metadata call its classes; empty where they do not."""
    names = read_metadata(checkpoint).get(CLASS_NAMES) if (checkpoint / METADATA_FILE).is_file() else None
    return [str(name) for name in names] if isinstance(names, list) else []


def stage1_is_averaged(stage2: Path) -> bool:
    """Whether a stage-2 checkpoint was trained on the averaged weights of stage 1, as its config says."""
    return bool(((read_archive(stage2, wanted=()).config or {}).get("vqvae") or {}).get("ema"))


def resolution_of(stage1: str | Path) -> tuple[int, int] | None:
    """(H, W) of the images of a stage-1 checkpoint, without its weights; None where its config does not say it."""
    arch = (read_archive(resolve_checkpoint(stage1), wanted=()).config or {}).get("arch") or {}
    resolution = (arch.get("ddconfig") or {}).get("resolution")
    try:
        return height_width("resolution", resolution)
    except ValueError:
        return None


def channels_of(stage1: str | Path) -> int | None:
    """The channels of the images of a stage-1 checkpoint, likewise."""
    arch = (read_archive(resolve_checkpoint(stage1), wanted=()).config or {}).get("arch") or {}
    channels = (arch.get("ddconfig") or {}).get("in_channels")
    return channels if isinstance(channels, int) else None


def directory_beside(checkpoint: Path) -> Path:
    """The folder of a published file; the run of a snapshot, because snapshots come and go."""
    if not checkpoint.is_dir():
        return checkpoint.parent
    return checkpoint.parent.parent if checkpoint.parent.name == SNAPSHOTS else checkpoint


def config_beside(checkpoint: Path, schema: type, overrides: Sequence[str] = ()) -> Any:
    """The typed experiment config of a snapshot, or the one beside a published file, with overrides.

    Captions are read by the tokenizer inside a snapshot, wherever the one it was trained with lay, or by the published
    one beside a published file.

    Raises:
        UserError: the config is none of this schema; that of the other stage is named as that.
    """
    directory = checkpoint if checkpoint.is_dir() else checkpoint.parent
    try:
        config: Any = load_config(schema, directory / CONFIG_FILE, list(overrides))
    except UserError:
        _check_stage(checkpoint, schema().arch.type)
        raise
    if not any("dataset.tokenizer=" in word for word in overrides):
        config.dataset.tokenizer = tokenizer_beside(config.dataset, directory) or config.dataset.tokenizer
    if (directory / METADATA_FILE).is_file():
        config = with_paths_that_exist(config, read_json(directory / METADATA_FILE).get(TYPED) or {})
    return config


def _check_stage(checkpoint: Path, wanted: str) -> None:
    kind = ((read_archive(checkpoint, wanted=()).config or {}).get("arch") or {}).get("type") or wanted
    if kind != wanted:
        raise UserError(f"{checkpoint} is an {kind} (arch.type), not an {wanted}: stage 1 belongs to -v, stage 2 to -a")


def check_stages_fit(arch: RQTransformerConfig, tokenizer: RQVAE) -> None:
    """Raises ValueError, naming the two values, when stage 2 cannot write what stage 1 reads."""
    for name, ours, theirs in (
        ("arch.block_size", list(arch.block_size), list(tokenizer.config.code_shape)),
        ("arch.vocab_size", list(arch.vocab_sizes), list(tokenizer.quantizer.num_codes)),
    ):
        if ours != theirs:
            raise ValueError(f"{name}={ours} does not fit the stage-1 checkpoint, whose codes are {theirs}")
    if not (arch.input_emb_vqvae or arch.head_emb_vqvae):
        return
    if not tokenizer.quantizer.fixed_code_vectors:
        raise ValueError(
            f"the code vectors of bottleneck {tokenizer.config.bottleneck_type!r} depend on earlier codes: set "
            "arch.input_emb_vqvae and arch.head_emb_vqvae to false"
        )
    code_dim = tokenizer.codebook(0).shape[1]
    if arch.code_dim != code_dim:
        raise ValueError(
            f"arch.input_embed_dim={arch.input_embed_dim} does not fit the stage-1 checkpoint, "
            f"whose code vectors have {code_dim} entries"
        )


def check_weights(model: nn.Module, path: str | Path) -> None:
    """UserError naming the weights of a loaded model that are not finite."""
    names = non_finite_names(model.state_dict().items())
    if names:
        raise UserError(f"the weights of {path} are not finite: {names}")


def load_models(
    stage1_path: str | Path,
    stage2_path: str | Path,
    device: torch.device,
    stage1_ema: bool = False,
    stage2_ema: bool = False,
) -> tuple[RQVAE, RQTransformer]:
    """Both models, on the device.

    Args:
        stage1_path, stage2_path: runs, snapshots or published checkpoints.
        stage1_ema, stage2_ema: the averaged weights instead of the raw ones.

    Raises:
        ValueError: the two do not belong together, or have weights that are not finite.
    """
    stage1 = load_rqvae(resolve_checkpoint(stage1_path), ema=stage1_ema, device=device)
    checkpoint = resolve_checkpoint(stage2_path)
    stage2 = load_rqtransformer(checkpoint, ema=stage2_ema, device=device)
    check_stages_fit(stage2.config, stage1)
    for path, model in ((stage1_path, stage1), (stage2_path, stage2)):
        check_weights(model, path)
    if (checkpoint / METADATA_FILE).is_file():
        trained_on = read_metadata(checkpoint).get("tokenizer")
        if trained_on not in (None, weights_digest(stage1)):
            raise UserError(f"{stage2_path} was trained on the codes of other stage-1 weights than {stage1_path}")
    return stage1, stage2
