"""The flags of both training scripts, and the frozen settings that they become."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.cli import ArgumentParser, ProcessSettings, build_parser
from runtime.errors import UserError


@dataclass(frozen=True)
class LaunchSettings:
    """What the command line of a training script says.

    Args:
        model_config: the YAML file of the experiment; a run that is resumed has its own.
        result_path: where run directories go.
        load_path: weights to start from or to evaluate; of a resumed run the run or checkpoint to continue.
        test_batch_size: images of a batch of evaluation, per process; None takes that of training.
        test_epoch: which snapshot of a run `load_path` stands for; negative for the newest.
        postfix: appended to the name of the run directory.
        evaluate: evaluate the weights on both splits and stop.
        resume: continue a run exactly.
        auto_resume: continue the newest run of the config where there is one.
        print_config: print the whole config and stop.
        dry_run: do everything up to the first step, say what was found, and leave nothing behind.
        seed: replaces that of the config.
        overrides: `key=value` words.
        config_values: dotted config key -> value of the flags that stand for one; they win over file and words.
        processes: what is said about the processes.
    """

    model_config: str | None = None
    result_path: str = "./runs"
    load_path: Path | None = None
    test_batch_size: int | None = None
    test_epoch: float = -1.0
    postfix: str = ""
    evaluate: bool = False
    resume: bool = False
    auto_resume: bool = False
    print_config: bool = False
    dry_run: bool = False
    seed: int | None = None
    overrides: tuple[str, ...] = ()
    config_values: Mapping[str, Any] = field(default_factory=dict)
    processes: ProcessSettings = ProcessSettings()

    @classmethod
    def from_flags(cls, args: argparse.Namespace, config_values: Mapping[str, Any] | None = None) -> LaunchSettings:
        """Of what `training_parser` parsed."""
        return cls(
            model_config=args.model_config,
            result_path=args.result_path,
            load_path=Path(args.load_path) if args.load_path else None,
            test_batch_size=args.test_batch_size,
            test_epoch=args.test_epoch,
            postfix=args.postfix,
            evaluate=args.eval,
            resume=args.resume,
            auto_resume=args.auto_resume,
            print_config=args.print_config,
            dry_run=args.dry_run,
            seed=args.seed,
            overrides=tuple(args.overrides),
            config_values=config_values or {},
            processes=ProcessSettings.from_flags(args),
        )

    @property
    def source(self) -> str:
        """What the run starts from."""
        return str((self.load_path if self.resume else None) or self.model_config or self.result_path)

    def check(self) -> None:
        """UserError when flags exclude each other, or one is missing or out of range."""
        if self.evaluate and (self.resume or self.auto_resume):
            raise UserError("--eval and --resume exclude each other")
        only_look = "--print-config" if self.print_config else "--dry-run" if self.dry_run else ""
        if only_look and (self.evaluate or (self.print_config and self.dry_run)):
            raise UserError(f"{only_look} and {'--eval' if self.evaluate else '--dry-run'} exclude each other")
        if self.evaluate and not self.load_path:
            raise UserError("--eval needs -l/--load-path: the run, snapshot or checkpoint to evaluate")
        if not self.model_config and not self.resume:
            raise UserError("-m/--model-config is missing: the YAML file of the experiment, as below configs/")
        if self.resume and self.postfix:
            raise UserError(f"-p/--postfix {self.postfix}: a resumed run keeps its directory")
        if self.resume and self.test_epoch >= 0:
            raise UserError(f"-e/--test-epoch {self.test_epoch:g} chooses a snapshot; --resume takes a checkpoint: -l")
        if self.test_batch_size is not None and self.test_batch_size < 1:
            raise UserError(f"-t/--test-batch-size {self.test_batch_size} must be at least 1")


WORDS = {
    "dataset.root=DIR": "where the images lie",
    "dataset.type=NAME": "which data set: data/README.md has the table",
    "experiment.batch_size=N": "images of a process and micro-step",
    "experiment.total_batch_size=N": "of a whole optimizer step, over processes and micro-steps",
    "experiment.epochs=N": "length of the run; or experiment.max_steps=N",
    "experiment.precision=NAME": "auto, fp32, bf16 or fp16",
    "experiment.save_steps=N": "steps from one checkpoint and snapshot to the next",
    "experiment.score.every_steps=N": "rFID or FID while training",
    "experiment.report=true": "the page of the run with every snapshot",
    "optimizer.init_lr=RATE": "learning rate after the warm-up",
    "arch.ema=DECAY": "keep averaged weights too, such as 0.999",
    "SECTION.KEY=VALUE": "any other key; --print-config shows all of them with their values",
}


def training_parser(description: str, example: str = "") -> ArgumentParser:
    """The published flags of both training scripts, and those that only look."""
    parser = build_parser(description, example, WORDS)
    parser.set_defaults(seed=None)
    parser.add_argument("-m", "--model-config", metavar="CONFIG.yaml", help="the experiment")
    parser.add_argument(
        "-r", "--result-path", metavar="DIR", default="./runs", help="where run directories go (default: ./runs)"
    )
    parser.add_argument("-p", "--postfix", metavar="TEXT", default="", help="appended to the name of the run directory")
    start = parser.add_argument_group("what it starts from")
    start.add_argument(
        "-l",
        "--load-path",
        metavar="PATH",
        default="",
        help="weights to start from or to evaluate; with --resume the run or checkpoint to continue",
    )
    start.add_argument(
        "-e",
        "--test-epoch",
        metavar="EPOCH",
        type=float,
        default=-1,
        help="with -l RUN: the snapshot of this epoch (default: the newest)",
    )
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue exactly: the run of -l, or the newest run of this config under -r",
    )
    start.add_argument(
        "--auto-resume",
        action="store_true",
        help="continue the newest run of this config under -r if there is one, else start a new run",
    )
    look = parser.add_argument_group("to look without training")
    look.add_argument("--eval", action="store_true", help="evaluate -l on both splits and stop")
    look.add_argument(
        "-t",
        "--test-batch-size",
        metavar="N",
        type=int,
        default=None,
        help="batch size of evaluation, per process (default: the training one)",
    )
    look.add_argument(
        "--print-config", action="store_true", help="print the whole config as YAML, which -m takes, and stop"
    )
    look.add_argument(
        "--dry-run",
        action="store_true",
        help="everything up to the first step: sizes, data, memory, one batch; nothing is written",
    )
    return parser
