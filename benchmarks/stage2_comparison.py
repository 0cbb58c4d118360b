"""A training step of stage 2 beside the same step as the published implementation does it, in one process.

Codes of 8x8x4, 2,048 of them, body 8 and head 4 layers of width 256, batch 16: 64x64 images through the frozen encoder,
stochastic codes and soft targets, forward, loss, backward, clipping, AdamW. Ours is `Stage2.train_step` as the training
script runs it; the other is `published_step`, on the same weights and images, in fp32 as published on a CPU. Ours comes
in three forms: fp32 throughout; the frozen encoder in bf16 (`vqvae.precision=bf16`: the search for codes stays fp32),
with the share of codes that differ for it; and the model in bf16 too (`experiment.precision=bf16`), with fp32 weights.
The published step is taken under autocast to bf16 as well, which its code offers on a GPU alone, so that bf16 stands
beside bf16. All are warmed up and take turns, so that all see the same machine; processor time of the process and wall
time are both told, as medians, with the ratio of every turn. A table, then one JSON line.
`python -m benchmarks.stage2_comparison [--rounds N] [--threads N] [--output FILE]`
"""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
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
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config
from training.stages.training_codes import changed_codes

CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
# Our forms of the step: (experiment.precision, vqvae.precision).
FORMS = {"fp32": ("fp32", "fp32"), "encoder_bf16": ("fp32", "bf16"), "bf16": ("bf16", "bf16")}
PAIRS = (("fp32", "published"), ("encoder_bf16", "published"), ("bf16", "published"), ("bf16", "published_bf16"))


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


def build_forms(config: Mapping[str, Any], tokenizer: Stage1, env: DistEnv) -> dict[str, Stage2]:
    """Stage 2 from one seed in each form."""
    stages = {}
    for form, (precision, encoder) in FORMS.items():
        experiment = {**config["experiment"], "precision": precision}
        settings = {**config, "experiment": experiment, "vqvae": {"precision": encoder}}
        stages[form] = build_stage2(typed(Stage2Config, settings), tokenizer, env)
    return stages


def compare(stages: Mapping[str, Stage2], image_BCHW: Tensor, label_B: Tensor, rounds: int) -> list[dict[str, Any]]:
    """A row per pair and clock; the published step runs on the weights of the form in fp32."""
    published = published_step(stages["fp32"])

    def published_bf16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            published(image_BCHW, label_B)

    steps: dict[str, Callable[[], Any]] = {
        "published": lambda: published(image_BCHW, label_B),
        "published_bf16": published_bf16,
    }
    batch = {"image": image_BCHW, "label": label_B}
    changed = {}
    for form, stage in stages.items():
        steps[form] = partial(stage.train_step, [batch], 1)
        dtype = stage.encoder_dtype
        changed[form] = 0.0 if dtype is None else changed_codes(stage.tokenizer, image_BCHW, dtype).item()
    seconds = turns(steps, rounds)
    rows = []
    for form, other in PAIRS:
        for clock in CLOCKS:
            ours, theirs = seconds[form][clock], seconds[other][clock]
            ratios = sorted(their / own for own, their in zip(ours, theirs))
            rows.append(
                {
                    "form": form,
                    "against": other,
                    "clock": clock,
                    "ours_seconds": round(statistics.median(ours), 4),
                    "their_seconds": round(statistics.median(theirs), 4),
                    "times_faster": round(statistics.median(ratios), 3),
                    "lowest": round(ratios[0], 3),
                    "highest": round(ratios[-1], 3),
                    "codes_changed": round(changed[form], 5),
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
    stages = build_forms(STAGE2, stage1, env)
    batch_size = STAGE2["experiment"]["batch_size"]
    image_BCHW = torch.rand(batch_size, 3, 64, 64) * 2 - 1
    rows = compare(stages, image_BCHW, torch.arange(batch_size) % 10, args.rounds)
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
