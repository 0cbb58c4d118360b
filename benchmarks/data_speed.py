"""Is data ready when a step wants it? JPEG decoding, and the share of real training runs that waits for data.

- decode: JPEG and PNG files to 256x256 training crops, on one core: Pillow as training does it, Pillow's draft mode
  (which decodes at half size where that is enough, and so gives other pixels), torchvision's decoder with its resize
  (other pixels too), and torchvision's decoder between the limits and the crop of training, which gives the same ones.
- fashion-mnist: stage 1 of `configs/fashion-mnist` on the data set, which is held in memory; random images of the same
  number and size where its files are not found.
- shards: stage 1 of `configs/imagenet256` with GAN, without LPIPS, on 256x256 JPEG shards made here, 2 data workers.

The runs are those of main_stage1.py; `data_wait_share` is what every log line of them says. The steps of the first log
line, in which workers start, are reported apart. A table, then one JSON line.
`python -m benchmarks.data_speed [--only decode,fashion-mnist,shards] [--steps N] [--threads N] [--output FILE]`
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import platform
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

from benchmarks.latent_training import write_images
from benchmarks.outputs.result_line import end_with_line
from data import DatasetConfig, build_dataset
from data.images.decode_limits import TimedBytes, check_costs
from data.images.decoding import FORMATS, decode_rgb
from data.images.transforms import Pipeline
from data.roots import find_root
from data.shards.packing import pack
from data.shards.shard_manifest import dataset_settings
from runtime.cli import ArgumentParser
from runtime.records.metrics_file import read_metrics
from training.launch import LaunchSettings, Session, training_parser
from training.stages.stage1 import Stage1, Stage1Config

CASES = ("decode", "fashion-mnist", "shards")
SAME_PIXELS = "torchvision, crop of training"
LIMIT = 0.05  # of the time of a run
NUM_WORKERS = 2
RESOLUTION, PHOTOS = 256, ((500, 375), (1024, 768))
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION = "configs/fashion-mnist/stage1/fashion-mnist-rqvae-4x4x4.yaml"
IMAGENET = "configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml"
Decoder = Callable[[bytes], torch.Tensor]


def photographs(count: int, size: tuple[int, int], kind: str = "JPEG") -> list[bytes]:
    """Files with about the bytes per pixel of photographs."""
    generator, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 255, (size[1] // 5, size[0] // 5, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(file, kind, quality=90)
        files.append(file.getvalue())
    return files


def decoders() -> dict[str, Decoder]:
    """File -> uint8 (3, 256, 256): short side to 256, a crop from the middle."""
    pipeline, middle = Pipeline("imagenet", RESOLUTION, hflip=False), np.array([0.5, 0.5, 1.0, 0.0])

    def pillow(encoded: bytes) -> torch.Tensor:
        return pipeline(decode_rgb(encoded, 10**8), middle)

    def draft(encoded: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(encoded)) as image:
            image.draft("RGB", (RESOLUTION, RESOLUTION))
            return pipeline(image.convert("RGB"), middle)

    def decoded(encoded: bytes) -> torch.Tensor:
        return decode_image(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB)

    def torchvision(encoded: bytes) -> torch.Tensor:
        image = decoded(encoded)
        image = F.resize(image, [RESOLUTION], antialias=True)
        top, left = ((side - RESOLUTION + 1) // 2 for side in image.shape[1:])
        return F.crop(image, top, left, RESOLUTION, RESOLUTION)

    def same_pixels(encoded: bytes) -> torch.Tensor:
        with Image.open(TimedBytes(encoded), formats=FORMATS) as image:
            check_costs(image, encoded, 10**8)
        return pipeline(Image.fromarray(decoded(encoded).permute(1, 2, 0).numpy()), middle)

    return {"pillow": pillow, "pillow draft": draft, "torchvision": torchvision, SAME_PIXELS: same_pixels}


def measure_decoding(
    count: int, size: tuple[int, int], kind: str = "JPEG", rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Images per second of processor time on one core, and how far the pixels are from those of training."""
    files, ways = photographs(count, size, kind), decoders()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, decode in ways.items():
            start = time.process_time()
            for encoded in files:
                decode(encoded)
            if number:
                times[name].append(time.process_time() - start)
    pixels = {name: torch.stack(list(map(decode, files))).float() for name, decode in ways.items()}
    off = {name: (found - pixels["pillow"]).abs().mean().item() for name, found in pixels.items()}
    return {
        name: {
            "images_per_second": round(count / statistics.median(times[name]), 1),
            "mean_pixel_difference": round(off[name], 3),
        }
        for name in ways
    }


def waiting_share(config: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Trains and gives the share of time that waited for data: of the first log line, and of all others."""
    args = training_parser("data_speed").parse_args(
        [
            "-m",
            config,
            "-r",
            str(folder),
            "gan.loss.perceptual_weight=0",
            "experiment.test_images=2",
            "experiment.grid_images=2",
            f"experiment.num_workers={NUM_WORKERS}",
            *overrides,
        ]
    )
    session = Session(Stage1Config, Stage1, LaunchSettings.from_flags(args))
    with session.log:
        session.train()
    lines = [
        line["timing"]
        for line in read_metrics(session.run_dir / "metrics.jsonl")
        if "data_wait_share" in line.get("timing", {})
    ]
    first, *others = lines
    # every line but the last stands for the same number of images: seconds are proportional to 1 / speed
    weights = [1 / line["images_per_second"] for line in others]
    share = sum(weight * line["data_wait_share"] for weight, line in zip(weights, others)) / sum(weights)
    return {
        "data_wait_share": round(share, 5),
        "first_line": round(first["data_wait_share"], 5),
        "images_per_second": round(len(weights) / sum(weights), 3),
        "batch_size": session.plan.micro_batch,
        "steps": session.plan.total_steps,
        "holds": share < LIMIT,
    }


def steps_of(steps: int, batch_size: int) -> list[str]:
    """Overrides: a run of `steps` steps with five log lines, and one validation at its end."""
    return [
        f"experiment.batch_size={batch_size}",
        "experiment.epochs=null",
        f"experiment.max_steps={steps}",
        f"experiment.test_steps={steps}",
        f"experiment.save_steps={steps}",
        f"experiment.log_steps={max(1, steps // 5)}",
        "experiment.precision=fp32",
    ]


def fashion_mnist(folder: Path, given: Path | None, steps: int, batch_size: int) -> dict[str, Any]:
    """The run on Fashion-MNIST; `made` says whether the images are random ones of its shape."""
    root = given or (DEBIAN_FOLDER if DEBIAN_FOLDER.is_dir() else None)
    made = False
    if root is None:
        try:
            root = find_root(DatasetConfig(type="fashion-mnist"), "")
        except FileNotFoundError:
            root, made = write_idx(folder / "idx"), True
    found = waiting_share(FASHION, folder, f"dataset.root={root}", *steps_of(steps, batch_size))
    return {**found, "made": made}


def write_idx(folder: Path, counts: tuple[int, int] = (60_000, 10_000)) -> Path:
    """Random images under Fashion-MNIST's names, as large and (unless `counts` says otherwise) as many."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, count in zip(("train", "t10k"), counts):
        for name, shape, top in (("images-idx3", (count, 28, 28), 256), ("labels-idx1", (count,), 10)):
            header = bytes((0, 0, 8, len(shape))) + struct.pack(f">{len(shape)}I", *shape)
            content = header + generator.integers(0, top, shape, dtype=np.uint8).tobytes()
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    return folder


def jpeg_shards(folder: Path, config: str, steps: int, batch_size: int, num_images: int) -> dict[str, Any]:
    """The run on shards of 256-pixel JPEG files."""
    for split, count in (("train", num_images), ("val", 4)):
        write_images(folder / "images" / split, count)
    source = DatasetConfig(type="folder", root=str(folder / "images"), resolution=RESOLUTION)
    for split in ("train", "val"):
        pack(build_dataset(source, split), dataset_settings(source), folder / "packed", 100)
    return waiting_share(
        config, folder, "dataset.type=shards", f"dataset.root={folder / 'packed'}", *steps_of(steps, batch_size)
    )


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.data_speed",
        description="Decoding, and waiting for data in training runs.",
        example="python -m benchmarks.data_speed --only decode",
        takes_words=False,
    )
    parser.add_argument("--only", default=",".join(CASES), help=f"some of {','.join(CASES)}")
    parser.add_argument("--steps", type=int, default=25, help="of each run (default: 25)")
    parser.add_argument("--fashion-mnist", type=Path, help="folder of its files")
    parser.add_argument("--fashion-batch", type=int, default=32)
    parser.add_argument("--shards-config", default=IMAGENET, help=f"stage-1 YAML file (default: {IMAGENET})")
    parser.add_argument("--shards-batch", type=int, default=2)
    parser.add_argument("--num-images", type=int, default=400, help="in the shards (default: 400)")
    parser.add_argument("--num-photographs", type=int, default=40, help="decoded per round (default: 40)")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--output", type=Path, help="also write the JSON line here")
    args = parser.parse_args(words)
    args.only = args.only.split(",")
    if unknown := [name for name in args.only if name not in CASES]:
        parser.error(f"--only {unknown[0]!r} is none of {', '.join(CASES)}")
    return args


def main(args: argparse.Namespace) -> dict[str, Any]:
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    line: dict[str, Any] = {
        "benchmark": "data_speed",
        "threads": torch.get_num_threads(),
        "limit": LIMIT,
        "num_workers": NUM_WORKERS,
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "decode" in args.only:
            line["decode"] = {
                f"{kind} {width}x{height}": measure_decoding(args.num_photographs, (width, height), kind)
                for kind in ("JPEG", "PNG")
                for width, height in PHOTOS
            }
        if "fashion-mnist" in args.only:
            line["fashion-mnist"] = fashion_mnist(folder, args.fashion_mnist, args.steps, args.fashion_batch)
        if "shards" in args.only:
            line["shards"] = jpeg_shards(folder, args.shards_config, args.steps, args.shards_batch, args.num_images)
    for case in args.only:
        print(f"{case}: {json.dumps(line[case])}")
    end_with_line(line, args.output)
    return line


if __name__ == "__main__":
    main(parse())
