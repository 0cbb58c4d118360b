"""What a training script says before there is a log, and when it is done: how long it took, and what to type next."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import say

if TYPE_CHECKING:  # the first line is said before torch is there
    from data import ImageDataset
    from training.checkpoints.snapshot_writer import SnapshotWriter


def announce(text: str) -> None:
    """A line like those of the log, from the first process, while there is no log yet."""
    if os.environ.get("RANK", "0") == "0":
        say(f"{time.strftime('%H:%M:%S')} I {text}", to_stderr=True)


def unread_captions(config: Any, dataset: ImageDataset) -> str:
    """What a run of stage 2 says of captions that no tokenizer reads; of stage 1, which reads none, nothing."""
    from data.dataset import Captioned

    if not hasattr(config, "vqvae") or not isinstance(dataset, Captioned) or dataset.tokenizer is not None:
        return ""
    return ", captions not read: dataset.tokenizer names no tokenizer"


def closing_lines(
    stage: str,
    config: Any,
    snapshots: SnapshotWriter,
    *,
    total_steps: int,
    seconds: float,
    mfu: float | None,
    model_config: str | None = None,
) -> list[str]:
    """What a run says when it is done.

    Args:
        stage: `stage1` or `stage2`.
        config: the run's.
        snapshots: what it has written.
        total_steps: of the run.
        seconds: since it was started.
        mfu: of all steps, where FLOPs were counted.
        model_config: the YAML file, where one was typed.
    """
    from runtime.progress import duration
    from runtime.step_directories import BEST, step_name

    share = "" if mfu is None else f", MFU {mfu:.1%}"
    lines = [f"done: step {total_steps} after {duration(seconds)}{share}"]
    if best := snapshots.best_reason():
        where = snapshots.directory / BEST
        lines.append(f"best {best['metric']} {best['value']:.4g} of {best['num_images']} images: {where}")
    commands = next_commands(stage, config, snapshots.directory.parent, total_steps, model_config)
    width = max(len(purpose) for purpose, _ in commands)
    return [
        *lines,
        f"model: {snapshots.directory / step_name(total_steps)}",
        *(f"{purpose:<{width}}  {command}" for purpose, command in commands),
    ]


def next_commands(
    stage: str, config: Any, run_dir: Path, total_steps: int, model_config: str | None = None
) -> list[tuple[str, str]]:
    """(What for, command) to type after a run, with its paths.

    Args:
        stage: `stage1` or `stage2`.
        config: the run's.
        total_steps: of the run.
        model_config: the YAML file; that of stage 2 is looked for beside one of stage 1.
    """
    run, ema, features = str(run_dir), ["--ema"] * (config.arch.ema is not None), config.experiment.score.features
    scored = [] if features in ("auto", "inception") else ["--features", features]
    script = "main_stage1.py" if stage == "stage1" else "main_stage2.py"
    if stage == "stage1":
        commands = [("evaluate", ["compute_rfid.py", "--vqvae", run, *ema, *scored])]
        second = (model_config or "").replace("stage1", "stage2")
        second = second if Path(second).is_file() else second.replace("rqvae", "rqtransformer")
        if second != model_config and Path(second).is_file():
            root = config.dataset.root
            images = [f"dataset.root={root}"] if isinstance(root, str) else []
            commands.append(("stage 2", ["main_stage2.py", "-m", second, "-v", run, *images]))
    elif config.arch.block_size_cond > 1:
        models = ["main_sampling_txt2img.py", "-v", str(config.vqvae.ckpt), "-a", run, *ema]
        commands = [
            ("evaluate", [*models, "--metrics", "fid", *scored]),
            ("sample", [*models, "--prompt", "TEXT", "--num", "16"]),
        ]
    else:
        models = ["main_sampling_fid.py", "-v", str(config.vqvae.ckpt), "-a", run, *ema]
        commands = [
            ("evaluate", [*models, "-n", "50000", *scored]),
            ("sample", [*models, "-n", "100", "--no-stats-saving"]),
        ]
    commands += [
        ("report", ["-m", "training.report", run]),
        ("resume", [script, "-l", run, "--resume", f"experiment.max_steps={2 * total_steps}"]),
    ]
    return [(purpose, f"python {shlex.join(words)}") for purpose, words in commands]
