"""Compute, communication and memory of a stage-2 step on 8 to 1,024 devices, from a stated cost model.

The models are the published ImageNet configurations (480M to 3.8B parameters). What a device can do is stated on the
command line; nothing here is measured on such devices. What can be counted on one CPU is counted in the same run and
put beside the model: FLOPs, bytes of parameters, gradients, moments, averages and activations, and the bytes that two
gloo ranks exchange. Formulas: docs/scaling.md. A table, the checks, then one JSON line.
`python -m benchmarks.scaling_model [--devices 8 64] [--peak-tflops 989] [--no-checks] ...`
"""

import argparse
import dataclasses
import math
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks import scaling_checks as checks
from benchmarks.outputs.result_line import end_with_line
from benchmarks.scaling_costs import Device, Step, describe, step_cost
from rqtransformer import RQTransformerConfig
from rqvae import RQVAE
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import exit_on_user_error
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "imagenet256"
MODELS = ("480M", "800M", "1400M", "3800M")
DEVICES = (8, 64, 256, 1024)
GB = 1e9


def published(name: str) -> tuple[RQTransformerConfig, int, int]:
    """(Architecture, global batch, images per device and micro-step) of a published configuration."""
    config = load_config(Stage2Config, CONFIGS / "stage2" / f"in256-rqtransformer-8x8x4-{name}.yaml")
    config.arch.vocab_size = config.dataset.vocab_size
    assert config.experiment.total_batch_size is not None
    return config.arch, config.experiment.total_batch_size, config.experiment.batch_size


def encoder_flops() -> float:
    """FLOPs of the frozen ImageNet encoder on one image, counted on the meta device."""
    (path,) = (CONFIGS / "stage1").glob("*8x8x4*.yaml")
    config = load_config(Stage1Config, path)
    with torch.device("meta"):
        model = RQVAE(config.arch.model_config())
    return checks.count_encoder(model.encoder, config.arch.ddconfig.resolution)


def step_rows(args: argparse.Namespace, device: Device, encoder: float) -> list[dict[str, Any]]:
    """One row per model, number of devices, parallelism and recomputation."""
    rows = []
    for name in args.models:
        arch, batch, micro = published(name)
        model, batch = describe(arch), args.batch or batch
        for devices in args.devices:
            # the largest micro-batch that divides a device's share
            per_device = math.gcd(batch // devices, args.micro_batch or micro)
            for parallel in ("ddp", "fsdp"):
                for recompute in (False, True):
                    step = step_cost(model, device, parallel, devices, batch, per_device, recompute, args.ema, encoder)
                    rows.append(as_row(name, step, device))
    return rows


def as_row(name: str, step: Step, device: Device) -> dict[str, Any]:
    """The numbers of a step in readable units."""
    return {
        "model": name,
        "devices": step.devices,
        "parallel": step.parallel,
        "recompute": step.recompute,
        "micro_batch": step.micro,
        "accumulation": step.accumulation,
        "memory_gb": round(step.total_memory / GB, 1),
        "fits": step.total_memory <= device.memory_gb * GB,
        "memory": {part: round(size / GB, 2) for part, size in step.memory.items()},
        "compute_s": round(step.compute, 4),
        "communication_s": round(step.communication, 4),
        "sent_gb": round(step.sent / GB, 2),
        "step_s": round(step.seconds, 4),
        "images_per_s": round(step.images / step.seconds),
        "utilisation": round(step.utilisation(device), 3),
    }


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The table."""
    print(
        f"{'model':>6} {'N':>5} {'kind':>5} {'recomp':>6} {'batch':>7} {'GB':>6} {'fits':>4} {'comp s':>8} "
        f"{'comm s':>8} {'GB sent':>8} {'step s':>8} {'img/s':>8} {'MFU':>5}"
    )
    for row in rows:
        print(
            f"{row['model']:>6} {row['devices']:>5} {row['parallel']:>5} {'yes' if row['recompute'] else 'no':>6} "
            f"{row['micro_batch']:>3} x{row['accumulation']:>2} {row['memory_gb']:>6.1f} "
            f"{'yes' if row['fits'] else 'NO':>4} {row['compute_s']:>8.3f} {row['communication_s']:>8.3f} "
            f"{row['sent_gb']:>8.1f} {row['step_s']:>8.3f} {row['images_per_s']:>8} {row['utilisation']:>5.2f}"
        )


def measured_rows(names: list[str]) -> list[dict[str, Any]]:
    """Everything that can be counted here."""
    rows = []
    for name in names:
        counted = checks.check_flops(published(name)[0])
        rows.append(counted | {"check": f"{counted['check']}, {name}"})
    rows += checks.check_small_step()
    rows += [checks.check_activations(precision) for precision in ("fp32", "bf16")]
    return [*rows, *checks.check_traffic(), checks.check_speed()]


def parse() -> argparse.Namespace:
    """Flags; every figure of a device is one."""
    parser = ArgumentParser(
        prog="python -m benchmarks.scaling_model",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.scaling_model --devices 8 64 --no-checks",
        takes_words=False,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--devices", nargs="+", type=int, default=list(DEVICES))
    for figure in dataclasses.fields(Device):
        parser.add_argument(f"--{figure.name.replace('_', '-')}", type=type(figure.default), default=figure.default)
    parser.add_argument("--micro-batch", type=int, help="images per device and micro-step (default: as published)")
    parser.add_argument("--batch", type=int, help="images per step (default: as published)")
    parser.add_argument("--ema", action="store_true", help="keep an average of the weights (the published runs do not)")
    parser.add_argument("--cached-latents", action="store_true", help="leave out the frozen encoder")
    parser.add_argument("--no-checks", action="store_true", help="leave out what is counted on this machine")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    for name in (*(figure.name for figure in dataclasses.fields(Device)), "micro_batch", "batch"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} {value} must be positive")
    if min(args.devices) < 1:
        parser.error(f"--devices {args.devices} must be positive")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    device = Device(**{figure.name: getattr(args, figure.name) for figure in dataclasses.fields(Device)})
    encoder = 0.0 if args.cached_latents else encoder_flops()
    print(f"stated, per device: {device}; frozen encoder {encoder / 1e9:.1f} GFLOPs per image")
    with exit_on_user_error(ValueError):
        rows = step_rows(args, device, encoder)
    print_rows(rows)
    measured = [] if args.no_checks else measured_rows(args.models)
    for row in measured:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    line = {
        "benchmark": "scaling_model",
        "torch": torch.__version__,
        "machine": platform.machine(),
        "stated": dataclasses.asdict(device),
        "encoder_flops": encoder,
        "rows": rows,
        "checks": measured,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
