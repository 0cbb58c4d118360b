"""Training runs small enough to repeat in every test: 8x8 shapes, codes 2x2x3, a two-layer transformer.

`stage1(...)` and `stage2(...)` give config mappings; `Runs` writes them to files and starts sessions, in this process
or through the entry scripts.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from runtime.records.metrics_file import read_metrics
from tests.training.checkpoint_files import load_checkpoint
from training.checkpoints.state_tree import encode
from training.launch import LaunchSettings, Session, launch, training_parser
from training.loop.loop import validate
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

STAGES = {"stage1": (Stage1Config, Stage1), "stage2": (Stage2Config, Stage2)}

EXPERIMENT = {
    "batch_size": 4,
    "max_steps": 4,
    "save_steps": 1000,
    "test_steps": 1000,
    "log_steps": 1,
    "num_workers": 0,
    "test_images": 4,
    "grid_images": 2,
    "sample": {"num_images": 2},
}
DATASET = {"type": "synthetic", "resolution": 8, "num_samples": 40}
OPTIMIZER = {"type": "adam", "init_lr": 1e-3, "betas": [0.5, 0.9], "max_gn": 1.0, "warmup": {"epoch": 0.1}}
STAGE1: dict[str, Any] = {
    "dataset": DATASET,
    "arch": {
        "hparams": {
            "embed_dim": 8,
            "n_embed": 16,
            "decay": 0.9,
            "latent_shape": [4, 4, 8],
            "code_shape": [2, 2, 3],
            "shared_codebook": True,
            "restart_unused_codes": True,
            "codebook_update": "deferred",
            "loss_type": "mse",
        },
        "ddconfig": {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
    },
    "optimizer": OPTIMIZER,
    "experiment": EXPERIMENT,
}
GAN = {
    "disc": {"arch": {"num_layers": 1, "ndf": 8}},
    "loss": {"perceptual_weight": 0.0, "disc_weight": 0.75, "disc_start_step": 0},
}
BLOCK = {"n_head": 2, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
STAGE2: dict[str, Any] = {
    "dataset": DATASET,
    "arch": {
        "block_size": [2, 2, 3],
        "embed_dim": 16,
        "input_embed_dim": 32,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 8,
        "body": {"n_layer": 1, "block": {**BLOCK}},
        "head": {"n_layer": 1, "block": {**BLOCK}},
    },
    "loss": {"type": "soft_target_cross_entropy", "stochastic_codes": False, "temp": 0.5},
    "optimizer": OPTIMIZER | {"type": "adamW", "weight_decay": 0.01},
    "experiment": EXPERIMENT,
}


def stage1(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The stage-1 config with `{"arch.ema": 0.9, ...}` changed."""
    return changed(STAGE1, changes or {})


def stage2(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The stage-2 config with dotted keys changed."""
    return changed(STAGE2, changes or {})


def changed(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(dict(config))
    for key, value in changes.items():
        *parents, last = key.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = copy.deepcopy(value)
    return config


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    return path


def parse(stage: str, *flags: Any) -> LaunchSettings:
    """What the entry scripts make of their flags."""
    parser = training_parser("test")
    if stage == "stage2":
        parser.add_argument("-v", "--vqvae", default="")
    args = parser.parse_args([str(flag) for flag in flags])
    vqvae = getattr(args, "vqvae", "")
    return LaunchSettings.from_flags(args, {"vqvae.ckpt": vqvae} if vqvae else None)


def session(stage: str, *flags: Any) -> Session:
    """What the entry script builds from these flags, not started."""
    return Session(*STAGES[stage], parse(stage, *flags))


def train(stage: str, *flags: Any, on_step: Callable[[int], None] | None = None) -> Session:
    """Trains to the end and closes the log; `on_step(step)` runs before every step and may raise to stop the run."""
    run = session(stage, *flags)
    if on_step is not None:
        original = run.stage.train_step

        def train_step(micro_batches, step, *args):
            on_step(step)
            return original(micro_batches, step, *args)

        run.stage.train_step = train_step
    with run:
        run.train()
    return run


def launch_in_process(stage: str, *flags: Any) -> None:
    """The whole entry script after parsing: errors end in SystemExit."""
    launch(*STAGES[stage], parse(stage, *flags))


def validated(run: Session) -> dict[str, Any]:
    """What the loop would measure now of the validation split."""
    return validate(run.stage, lambda: run.batches(run.val_set))[0]


def pictured(run: Session) -> dict[str, torch.Tensor]:
    """What the loop would show now of the validation split."""
    return validate(run.stage, lambda: run.batches(run.val_set))[1]


class Stopped(Exception):
    """Stands for a kill."""


def train_until(stop_step: int, stage: str, *flags: Any) -> None:
    """Trains and dies before optimizer step `stop_step`."""

    def on_step(step: int) -> None:
        if step == stop_step:
            raise Stopped

    with suppress(Stopped):
        train(stage, *flags, on_step=on_step)
        raise AssertionError(f"the run ended before step {stop_step}")


def only_run(result_path: Path) -> Path:
    """The single run directory under a result path."""
    (run_dir,) = [path.parent for path in result_path.glob("*/*/config.yaml")]
    return run_dir


def checkpoint_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint under `object/name`, or of a snapshot under `file/name`."""
    if (directory / "state.json").is_file():
        loaded = load_checkpoint(directory)
        states = {name: encode(state)[1] for name, state in loaded.items() if name not in ("step", "meta")}
        return {f"{name}/{key}": tensor for name, tensors in states.items() for key, tensor in tensors.items()}
    return {
        f"{file.stem}/{name}": tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def differing(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not equal bit for bit."""
    assert left.keys() == right.keys()
    return [name for name in left if not _same_bits(left[name], right[name])]


def _same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.flatten().view(torch.uint8), right.flatten().view(torch.uint8))


def metrics_without_time(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without what a clock decides."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k != "timing" and not k.startswith("time/")} for line in lines]


def state_json(directory: Path) -> Any:
    return json.loads((directory / "state.json").read_text())
