"""A training step of stage 2 beside the same step as the published implementation does it, in one process.

Codes of 8x8x4, 2,048 of them, body 8 and head 4 layers of width 256, batch 16: 64x64 images through the frozen encoder,
stochastic codes and soft targets, forward, loss, backward, clipping, AdamW. Ours is `Stage2.train_step` as the training
script runs it; the other is `published_step`, on the same weights and images. Both are warmed up and take turns, so
that both see the same machine; processor time of the process and wall time are both told, as medians, with the ratio
of every turn. A table, then one JSON line.
`python -m benchmarks.stage2_comparison [--rounds N] [--threads N] [--output FILE]`
"""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.outputs.result_line import end_with_line
from benchmarks.published_step import PublishedStep
from benchmarks.training_speed import STAGE1, STAGE2, build_stage1, build_stage2, typed
from rqtransformer import native
from runtime.cli import ArgumentParser
from runtime.device import use_device
from runtime.distributed import DistEnv
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def published_step(stage: Stage2) -> PublishedStep:
    """The published step with the weights and settings of ours."""
    optimizer, loss = stage.config.optimizer, stage.config.loss
    assert optimizer.max_gn is not None, "gradients are clipped"
    return PublishedStep(
        stage.model,
        stage.tokenizer,
        rate=optimizer.init_lr,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        max_norm=optimizer.max_gn,
        temp=loss.temp,
        stochastic=loss.stochastic_codes,
    )


def turns(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds per step, by step and clock, after two steps of each."""
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in steps}
    for _ in range(2):
        for step in steps.values():
            step()
    for _ in range(rounds):
        for name, step in steps.items():
            starts = {clock: read() for clock, read in CLOCKS.items()}
            step()
            for clock, read in CLOCKS.items():
                seconds[name][clock].append(read() - starts[clock])
    return seconds


def compare(stage: Stage2, image_BCHW: Tensor, label_B: Tensor, rounds: int) -> list[dict[str, Any]]:
    """A row per clock."""
    published = published_step(stage)
    batch = {"image": image_BCHW, "label": label_B}
    seconds = turns(
        {"ours": lambda: stage.train_step([batch], 1), "published": lambda: published(image_BCHW, label_B)}, rounds
    )
    rows = []
    for clock in CLOCKS:
        ours, theirs = seconds["ours"][clock], seconds["published"][clock]
        ratios = sorted(other / own for own, other in zip(ours, theirs))
        rows.append(
            {
                "clock": clock,
                "ours_seconds": round(statistics.median(ours), 4),
                "published_seconds": round(statistics.median(theirs), 4),
                "times_faster": round(statistics.median(ratios), 3),
                "lowest": round(ratios[0], 3),
                "highest": round(ratios[-1], 3),
            }
        )
    return rows


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.stage2_comparison",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.stage2_comparison --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    env = DistEnv(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="none")
    use_device(env)
    stage1 = build_stage1(typed(Stage1Config, STAGE1), env)
    stage2 = build_stage2(typed(Stage2Config, STAGE2), stage1, env)
    batch_size = stage2.config.experiment.batch_size
    image_BCHW = torch.rand(batch_size, 3, 64, 64) * 2 - 1
    rows = compare(stage2, image_BCHW, torch.arange(batch_size) % 10, args.rounds)
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    line = {
        "benchmark": "stage2_comparison",
        "device": "cpu",
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "compiled": native.serves(torch.empty(0)),
        "rows": rows,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
