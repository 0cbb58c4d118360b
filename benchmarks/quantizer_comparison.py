"""Error, code usage and time of every quantizer as the bottleneck of the same small autoencoder, at the same bits.

Each method trains the RQ-VAE of `comparison_methods` (16x16 images, 512 bits each) on the same batches from the same
encoder and decoder weights, with squared error plus the quantizer's own loss, and is measured on held-out images.
`python -m benchmarks.quantizer_comparison [--dataset fashion_mnist|digits] [--output-dir DIR]`: a table, with
--output-dir also `quantizer_comparison.{json,md,png}`, then one JSON line. The committed results:
`--output benchmarks/results/quantizer_comparison.json --document docs/quantizers.md`.

Legend: N images of a split, B batch.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.comparison_methods import METHODS, NUM_CODES, RESOLUTION, Method, config_of
from benchmarks.outputs.document_section import write_section
from data import DatasetConfig, ImageDataset, build_dataset
from data.dataset import to_float_batch
from rqstack.quantizers.usage import CodeUsage
from rqvae import RQVAE
from runtime.cli import ArgumentParser
from runtime.errors import exit_on_user_error
from runtime.pages.picture_note import COMMAND, sign_picture
from runtime.pages.plots import BarPanel, save_bars

DATASETS = {"digits": "digits", "fashion_mnist": "fashion-mnist"}
BITS_PER_CODE = NUM_CODES.bit_length() - 1
NAME = "quantizer_comparison"


def images_of(dataset: ImageDataset, index_B: np.ndarray) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1]."""
    return to_float_batch(dataset.fetch(index_B, None))["image"]


def batches(dataset: ImageDataset, batch_size: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """`steps` batches, drawn epoch by epoch without replacement; the same for every method."""
    generator, order = np.random.default_rng(seed), np.empty(0, dtype=np.int64)
    for _ in range(steps):
        if len(order) < batch_size:
            order = generator.permutation(len(dataset))
        yield images_of(dataset, order[:batch_size])
        order = order[batch_size:]


def build_model(method: Method, seed: int) -> RQVAE:
    """The model of a method; everything outside the quantizer starts from the same weights."""
    torch.manual_seed(seed)
    start = RQVAE(config_of(METHODS["none"])).state_dict()
    model = RQVAE(config_of(method))
    model.load_state_dict({**model.state_dict(), **start})
    return model


def train(model: RQVAE, method: Method, dataset: ImageDataset, args: argparse.Namespace) -> float:
    """Train in place; median milliseconds of a step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps, eta_min=args.lr / 20)
    times = []
    model.train()
    for image_BCHW in batches(dataset, args.batch_size, args.steps, args.seed):
        start = time.perf_counter()
        out = model(image_BCHW)
        loss = F.mse_loss(out.recon, image_BCHW) + method.weight * out.quantizer_output.loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.update_codebook()
        times.append(1e3 * (time.perf_counter() - start))
        schedule.step()
    return statistics.median(times)


@torch.no_grad()
def evaluate(model: RQVAE, dataset: ImageDataset, count: int, batch_size: int) -> dict[str, float | None]:
    """Mean squared error of the first `count` images on the [-1, 1] scale, and code usage as means over the depths
    (None without codes)."""
    model.eval()
    sizes, squared, entries = model.quantizer.num_codes, 0.0, 0
    usage = CodeUsage(len(sizes), sizes) if sizes else None
    for index_B in np.array_split(np.arange(count), -(-count // batch_size)):
        image_BCHW = images_of(dataset, index_B)
        out = model(image_BCHW)
        squared += (out.recon - image_BCHW).square().sum().item()
        entries += image_BCHW.numel()
        if usage is not None:
            usage.update(out.quantizer_output.codes)
    means = {name: value.float().mean().item() for name, value in usage.summary().items()} if usage else {}
    return {"mse": squared / entries, **{name: means.get(name) for name in ("used_fraction", "perplexity")}}


def bits_of(method: Method) -> int | None:
    """Bits of the codes of one image; None without codes."""
    return math.prod(method.code_shape) * BITS_PER_CODE if method.kind != "none" else None


def measure(name: str, splits: dict[str, ImageDataset], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    method = METHODS[name]
    model = build_model(method, args.seed)
    step_ms = train(model, method, splits["train"], args)
    result = evaluate(model, splits["val"], args.held_out_images, args.batch_size)
    return {
        "method": name,
        "bottleneck_type": method.kind,
        "bits": bits_of(method),
        **{key: None if value is None else round(value, 5) for key, value in result.items()},
        "step_ms": round(step_ms, 2),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| method | error (MSE) | codes used | perplexity of 256 | ms per step | bits per image |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        used = "-" if row["used_fraction"] is None else f"{row['used_fraction']:.0%}"
        perplexity, step_ms, bits = (
            "-" if row[name] is None else f"{row[name]:.0f}" for name in ("perplexity", "step_ms", "bits")
        )
        lines.append(f"| {row['method']} | {row['mse']:.4f} | {used} | {perplexity} | {step_ms} | {bits} |")
    return "\n".join(lines)


def write_document(path: Path, result: dict[str, Any]) -> None:
    """Replace what stands between the two marks of a Markdown file by command, table and picture; draw the picture
    beside the file."""
    command = (
        f"python -m benchmarks.{NAME} --dataset {result['dataset']} --steps {result['steps']} "
        f"--batch-size {result['batch_size']} --lr {result['lr']} --seed {result['seed']}"
    )
    where = (
        f"torch {result['torch']}, {result['threads']} thread(s) of an {result['machine']} CPU, "
        f"{result['held_out_images']} held-out images; error on the [-1, 1] scale, usage averaged over depths."
    )
    body = f"`{command}`\n\n{where}\n\n{table(result['rows'])}\n\n![The table as bars]({NAME}.png)"
    write_section(path, NAME, body)
    draw(path.parent / f"{NAME}.png", result)
    kept = f"benchmarks/results/{NAME}.json"
    sign_picture(
        path.parent / f"{NAME}.png",
        {COMMAND: f"python -m benchmarks.{NAME} --result {kept} --document {path.parent.name}/{path.name}"},
    )


def draw(path: Path, result: dict[str, Any]) -> None:
    """The table as bars."""
    rows = result["rows"]
    title = f"{result['dataset']}, {result['steps']} steps of {result['batch_size']} images, 512 bits per image"
    panels = [
        BarPanel("error on held-out images (MSE)", [row["mse"] for row in rows], "{:.4f}"),
        BarPanel("codes used", [row["used_fraction"] for row in rows], "{:.0%}"),
        BarPanel("milliseconds per training step", [row["step_ms"] for row in rows], "{:.0f}"),
    ]
    save_bars(path, title, [row["method"] for row in rows], panels)


def write_results(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Everything that was asked for."""
    line = json.dumps(result) + "\n"
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(line, encoding="utf-8")
    if args.output_dir is not None:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        (args.output_dir / f"{NAME}.json").write_text(line, encoding="utf-8")
        (args.output_dir / f"{NAME}.md").write_text(table(result["rows"]) + "\n", encoding="utf-8")
        draw(args.output_dir / f"{NAME}.png", result)
    if args.document is not None:
        write_document(args.document, result)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.quantizer_comparison",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.quantizer_comparison --dataset digits --steps 100",
        takes_words=False,
    )
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="digits")
    parser.add_argument("--data-root", help="folder of the data set's files (see data/README.md)")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        default=list(METHODS),
        metavar="METHOD",
        help=f"default: all of {', '.join(METHODS)}",
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out-images", type=int, help="default: all of the validation split")
    parser.add_argument("--output-dir", type=Path, help="also write the JSON line, the table and the picture there")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--result", type=Path, help="measure nothing, write what this file of an earlier run says")
    parser.add_argument("--document", type=Path, help="also put the table into this file and the picture beside it")
    args = parser.parse_args(argv)
    for name in ("steps", "batch_size", "held_out_images"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.result is not None:
        with exit_on_user_error(ValueError, OSError):
            write_results(args, json.loads(args.result.read_text(encoding="utf-8")))
        return
    config = DatasetConfig(type=DATASETS[args.dataset], root=args.data_root, resolution=RESOLUTION)
    with exit_on_user_error(ValueError, FileNotFoundError):
        splits = {split: build_dataset(config, split) for split in ("train", "val")}
        if args.batch_size > len(splits["train"]):
            raise ValueError(f"--batch-size {args.batch_size} is more than the {len(splits['train'])} training images")
    args.held_out_images = min(args.held_out_images or len(splits["val"]), len(splits["val"]))
    rows = []
    for name in args.methods:
        rows.append(measure(name, splits, args))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(table(rows))
    result = {
        "benchmark": NAME,
        "dataset": args.dataset,
        "resolution": RESOLUTION,
        "steps": args.steps,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "seed": args.seed,
        "held_out_images": args.held_out_images,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    with exit_on_user_error(ValueError, OSError):
        write_results(args, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
