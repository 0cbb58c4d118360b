"""Sampling speed: `python -m measure_throughput f=32 d=4 c=16384 model=huge batch_size=100 [key=value ...]`.

Prints one row (milliseconds per sample, split into drawing codes and decoding pixels; memory; operations and bytes; the
share of the roofline measured in the same run) and ends with one JSON line. `--sweep` runs the published figure, a
VQ-GAN 16x16x1 against an RQ 8x8x4, and writes `throughput.json` and `throughput.png`.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure_throughput.experiment import WORDS, Experiment
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.errors import UserError, exit_on_user_error, say

if TYPE_CHECKING:
    from measure_throughput.roofline import Roofline

SWEEP_SHAPES = ((16, 1), (32, 4))  # downsampling factor f, code depth d
SWEEP_BATCHES = (100, 200, 500)


def parse_experiment(overrides: list[str]) -> Experiment:
    """`key=value` words over the defaults; UserError for an unknown key or a wrong type."""
    return load_config(Experiment, None, overrides)


def sweep(base: Experiment, batches: list[int]) -> list[Experiment]:
    """The published figure: both code shapes at every batch size, with the rest as given."""
    cases = [dataclasses.replace(base, f=f, d=d, batch_size=size) for f, d in SWEEP_SHAPES for size in batches]
    for case in cases:
        case.check()
    return cases


def run(cases: list[Experiment]) -> tuple[list[dict[str, Any]], Roofline]:
    """Measure the roofline, then every case; prints as it goes."""
    # after the flags are read: `--help` does not wait for torch
    import torch

    from measure_throughput.measure import measure
    from measure_throughput.roofline import measure_roofline

    device, dtype = cases[0].torch_device, cases[0].torch_dtype
    roofline = measure_roofline(device, dtype)
    say(f"{device}, {dtype}: {roofline.flops / 1e9:.0f} GFLOP/s, {roofline.bytes / 1e9:.1f} GB/s")
    rows = []
    for case in cases:
        rows.append(measure(case, roofline))
        say("  ".join(f"{name} {_short(value)}" for name, value in rows[-1].items()))
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows, roofline


def result_line(base: Experiment, rows: list[dict[str, Any]], roofline: Roofline) -> str:
    """Everything needed to read the numbers again, as JSON."""
    import torch

    from rqtransformer import native

    device = base.torch_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return json.dumps(
        {
            "benchmark": "measure_throughput",
            "device": device.type,
            "device_name": name,
            "dtype": str(base.torch_dtype).removeprefix("torch."),
            "weights": base.weights,
            "compile": base.compile,
            "torch": torch.__version__,
            "cuda": torch.version.cuda if device.type == "cuda" else None,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "compiled": native.serves(torch.empty(0)),
            "settings": dataclasses.asdict(base),
            "roofline_gflops": roofline.flops / 1e9,
            "roofline_gbytes": roofline.bytes / 1e9,
            "rows": rows,
        }
    )


def main() -> None:
    parser = ArgumentParser(
        prog="python -m measure_throughput",
        description=__doc__.splitlines()[0],
        example="python -m measure_throughput f=32 d=4 c=16384 model=huge batch_size=100",
        words=WORDS,
    )
    parser.add_argument("--sweep", action="store_true", help="the published figure: both code shapes, all batch sizes")
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        help=f"batch sizes of the sweep (default: {' '.join(map(str, SWEEP_BATCHES))})",
    )
    parser.add_argument("--output-dir", type=Path, help="where JSON and, of a sweep, the PNG go (sweep: default '.')")
    args = parser.parse_args()
    base = parse_experiment(args.overrides)
    base.check()
    if args.batches and not args.sweep:
        raise UserError(f"--batches {' '.join(map(str, args.batches))} is for --sweep; one case takes batch_size=")
    cases = sweep(base, args.batches or list(SWEEP_BATCHES)) if args.sweep else [base]
    directory = args.output_dir or (Path(".") if args.sweep else None)
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)  # before the hours of measuring, not after
    rows, roofline = run(cases)
    line = result_line(base, rows, roofline)
    if directory is not None:
        write_text_atomically(directory / "throughput.json", line + "\n")
    if args.sweep and directory is not None:
        from measure_throughput.figure import draw_figure

        dtype = str(base.torch_dtype).removeprefix("torch.")
        title = f"Milliseconds per sample, {base.model}, {dtype}, {json.loads(line)['device_name']}"
        draw_figure(rows, directory / "throughput.png", title)
    say(line)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main()
