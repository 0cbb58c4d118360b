"""A stage-2 step from images against the same step from cached latents, for the published ImageNet RQ-VAE at 256x256.

The tokenizer has the architecture of `configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml` (random weights: time does
not depend on them), stage 2 is small (body 4, head 2 layers, width 256, classes, stochastic soft targets over 16,384
codes). Random images are packed into shards, `extract_codes.py`'s extractor keeps fp16 and fp32 latents of them, and
`Stage2.train_step` is timed on batches from the training loader without data workers: decoding and reading are part of
a step. The variants take turns in the same run; times are medians. A table, then one JSON line.
`python -m benchmarks.latent_training [--batch-size B] [--rounds N] [--threads N] [--cpu-time] [--output FILE]`
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.outputs.result_line import end_with_line
from data import DatasetConfig, TrainLoader, build_dataset
from data.shards.packing import pack
from data.shards.shard_manifest import dataset_settings
from rqstack.snapshots import weights_digest
from rqvae import RQVAE
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.distributed import DistEnv
from sampling.code_extraction import ExtractionSettings, Extractor
from training.checkpoints.snapshots import save_snapshot
from training.experiment import plan_batches
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

STAGE1 = Path("configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml")
STAGE2: dict[str, Any] = {
    "arch": {
        "block_size": [8, 8, 4],
        "embed_dim": 256,
        "input_embed_dim": 256,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 1000,
        "body": {"n_layer": 4, "block": {"n_head": 8}},
        "head": {"n_layer": 2, "block": {"n_head": 8}},
    },
    "loss": {"type": "soft_target_cross_entropy", "stochastic_codes": True, "temp": 0.5},
    "optimizer": {"type": "adamW", "init_lr": 5e-4, "betas": [0.9, 0.95], "max_gn": 1.0},
    "experiment": {"max_steps": 1000, "precision": "fp32"},
}
SEED, RESOLUTION = 0, 256
SOURCE_SIZE = (RESOLUTION + 64, RESOLUTION)  # of the JPEG files


def write_images(folder: Path, count: int) -> None:
    """JPEG files of smooth noise, about as large as photographs of their size."""
    generator = np.random.default_rng(SEED)
    folder.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (48, 60, 3), dtype=np.uint8))
        coarse.resize(SOURCE_SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:05d}.jpg", quality=90)


def prepare(folder: Path, stage1: Path, count: int, batch_size: int) -> tuple[Path, dict[str, DatasetConfig]]:
    """A snapshot of the tokenizer, and the data sets: shards of images, fp16 and fp32 latents of them."""
    env = DistEnv(0, 1, 0, torch.device("cpu"), "none")
    config = load_config(Stage1Config, stage1)
    torch.manual_seed(SEED)
    tokenizer = RQVAE(config.arch.model_config()).eval()
    snapshot = save_snapshot(folder / "tokenizer", tokenizer.state_dict(), config, {"step": 0})
    write_images(folder / "images" / "train", count)
    write_images(folder / "images" / "val", 1)
    source = DatasetConfig(type="folder", root=str(folder / "images"), transforms="imagenet256x256")
    pack(build_dataset(source, "train"), dataset_settings(source), folder / "shards", 5000)
    sets = {"images": DatasetConfig(type="shards", root=str(folder / "shards"), transforms="imagenet256x256")}
    for dtype in ("fp16", "fp32"):
        settings = ExtractionSettings(dtype=dtype, keep="latents", seed=SEED, batch_size=batch_size, num_workers=0)
        shards = build_dataset(sets["images"], "train", SEED)
        Extractor(tokenizer, weights_digest(tokenizer), shards, dataset_settings(sets["images"]), settings, env).run(
            folder / dtype
        )
        sets[f"latents {dtype}"] = DatasetConfig(type="latents", root=str(folder / dtype))
    return snapshot, sets


def stage_of(snapshot: Path, dataset: DatasetConfig, batch_size: int, num_images: int) -> Stage2:
    """Stage 2 as main_stage2.py builds it."""
    merged = OmegaConf.merge(
        OmegaConf.structured(Stage2Config),
        STAGE2,
        {"experiment": {"batch_size": batch_size}, "vqvae": {"ckpt": str(snapshot)}},
    )
    config = OmegaConf.to_object(merged)
    assert isinstance(config, Stage2Config)
    config.dataset = dataset
    torch.manual_seed(SEED)
    env = DistEnv(0, 1, 0, torch.device("cpu"), "none")
    return Stage2(config, plan_batches(config.experiment, num_images, 1), env)


def measure(folder: Path, stage1: Path, batch_size: int, rounds: int, cpu_time: bool) -> dict[str, dict[str, Any]]:
    """Median seconds per step of each variant and the losses of its steps."""
    clock = time.process_time if cpu_time else time.perf_counter
    # one epoch, so that the single crop that is kept is the one that training from images takes
    snapshot, sets = prepare(folder, stage1, batch_size * (rounds + 1), batch_size)
    running: dict[str, tuple[Stage2, Iterator[dict[str, torch.Tensor]]]] = {}
    for name, config in sets.items():
        dataset = build_dataset(config, "train", SEED)
        stage = stage_of(snapshot, config, batch_size, len(dataset))
        stage.check_data(dataset)
        running[name] = stage, iter(TrainLoader(dataset, batch_size, seed=SEED))
    times: dict[str, list[float]] = {name: [] for name in running}
    losses: dict[str, list[float]] = {name: [] for name in running}
    for step in range(rounds + 1):
        for name, (stage, batches) in running.items():
            torch.manual_seed(step)  # as the loop does: the draws of a step are its own
            start = clock()
            loss = stage.train_step([next(batches)], step)["loss"].item()
            if step:  # the first one warms up
                times[name].append(clock() - start)
            losses[name].append(loss)
    return {name: {"seconds_per_step": statistics.median(times[name]), "losses": losses[name]} for name in running}


def report(results: dict[str, dict[str, Any]], batch_size: int, clock: str) -> dict[str, Any]:
    """Prints the table; gives the JSON line."""
    images = results["images"]
    print(f"stage-2 step at batch {batch_size}, {RESOLUTION}x{RESOLUTION} images, {clock}")
    line: dict[str, Any] = {
        "benchmark": "latent_training",
        "batch_size": batch_size,
        "clock": clock,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "torch": torch.__version__,
        "variants": {},
    }
    for name, found in results.items():
        speedup = images["seconds_per_step"] / found["seconds_per_step"]
        off = max(abs(ours / theirs - 1) for ours, theirs in zip(found["losses"], images["losses"], strict=True))
        print(f"  {name:<14} {found['seconds_per_step']:8.3f} s  {speedup:5.2f}x  losses off by {off:.1e} at most")
        line["variants"][name] = {
            "seconds_per_step": round(found["seconds_per_step"], 4),
            "speedup": round(speedup, 3),
            "largest_relative_loss_difference": off,
        }
    line["target"], line["holds"] = 2.0, line["variants"]["latents fp16"]["speedup"] >= 2.0
    return line


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.latent_training",
        description="Stage-2 steps from images and from cached latents.",
        example="python -m benchmarks.latent_training --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--stage1", type=Path, default=STAGE1, help=f"YAML file of the tokenizer (default: {STAGE1})")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant that count (default: 5)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of time on the wall")
    parser.add_argument("--output", type=Path, help="also write the JSON line here")
    return parser.parse_args(words)


def main(args: argparse.Namespace) -> dict[str, Any]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), args.stage1, args.batch_size, args.rounds, args.cpu_time)
    line = report(results, args.batch_size, "cpu" if args.cpu_time else "wall")
    end_with_line(line, args.output)
    return line


if __name__ == "__main__":
    main(parse())
