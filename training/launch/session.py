"""From a command line to a running stage: flags, config, processes, data, run directory, weights, loop.

Both entry scripts are this function with another schema and another stage. Everything a user can get wrong is found
before the first step and ends in one line and exit code 2.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import ImageDataset, TrainLoader, build_dataset, eval_loader
from data.images.file_dataset import DataError
from runtime import distributed
from runtime.allocator import keep_freed_memory
from runtime.cli import build_parser
from runtime.config import load_config, save_config
from runtime.distributed import DistEnv
from runtime.errors import LOST_RANK_EXIT_CODE, UserError, exit_on_user_error, one_line
from runtime.rundir import new_run_dir, runs
from runtime.runlog import RunLog
from runtime.seeding import seed_everything_for_step
from scoring.scoring_data import ScoringData
from training.checkpoints.checkpoint import (
    CHECKPOINTS,
    CheckpointWriter,
    complete_checkpoints,
    discard_after,
    find_sound_checkpoint,
    read_progress,
    restore_checkpoint,
    step_name,
)
from training.checkpoints.snapshots import (
    SNAPSHOTS,
    complete_snapshots,
    find_latest_snapshot,
    read_metadata,
    save_snapshot,
)
from training.experiment import BatchPlan, fit_to_ranks, plan_batches
from training.launch.continuation import note_launch, run_to_continue
from training.launch.data_checks import tokenizer_files, unreadable_images
from training.loop.feed import Feed, Survivor
from training.loop.guards import Guards
from training.loop.in_loop_scores import InLoopScores, discard_best_after
from training.loop.loop import Loop

SETUP_ERRORS = (ValueError, OSError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)
INITIAL_STEP = -1  # the step number that seeds initial weights


def training_parser(description: str) -> argparse.ArgumentParser:
    """The published flags of both training scripts."""
    parser = build_parser(description)
    parser.set_defaults(seed=None)
    parser.add_argument("-m", "--model-config", help="YAML file of the experiment")
    parser.add_argument("-r", "--result-path", default="./runs", help="where run directories go (default: ./runs)")
    parser.add_argument(
        "-l",
        "--load-path",
        default="",
        help="weights to start from or to evaluate; with --resume the run or checkpoint to continue",
    )
    parser.add_argument(
        "-t",
        "--test-batch-size",
        type=int,
        default=None,
        help="batch size of evaluation, per process (default: the training one)",
    )
    parser.add_argument(
        "-e",
        "--test-epoch",
        type=float,
        default=-1,
        help="with -l RUN: the snapshot of this epoch (default: the newest)",
    )
    parser.add_argument("-p", "--postfix", default="", help="appended to the name of the run directory")
    parser.add_argument("--eval", action="store_true", help="evaluate -l on both splits and stop")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue exactly: the run of -l, or the newest run of this config under -r",
    )
    parser.add_argument(
        "--auto-resume",
        action="store_true",
        help="continue the newest run of this config under -r if there is one, else start a new run",
    )
    return parser


def launch(
    schema: type,
    build_stage: Callable[..., Any],
    args: argparse.Namespace,
    prepare: Callable[[Any, argparse.Namespace], None] | None = None,
) -> None:
    """Runs one training script.

    Args:
        schema: dataclass of the YAML file.
        build_stage: `(config, plan, env, validation_batches) -> stage`.
        args: what `training_parser` parsed.
        prepare: puts further flags into the config.
    """
    with exit_on_user_error(DataError):
        try:
            # in a function of its own, because the process group must outlive everything that refers to it
            _run(schema, build_stage, args, prepare)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(f"{one_line(error)}; the last checkpoint is kept") from error
        except RuntimeError as error:
            if not distributed.lost_a_rank(error):
                raise
            print(
                f"error (rank {distributed.get_rank()}): another process of the run has ended; its own message says "
                f"why ({one_line(error)[:200]})",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(LOST_RANK_EXIT_CODE) from None
        finally:
            distributed.shutdown()


def _run(
    schema: type,
    build_stage: Callable[..., Any],
    args: argparse.Namespace,
    prepare: Callable[[Any, argparse.Namespace], None] | None,
) -> None:
    with exit_on_user_error(*SETUP_ERRORS):
        session = Session(schema, build_stage, args, prepare)
    with session.log:
        session.evaluate() if args.eval else session.train()


class Session:
    """Everything that exists between the command line and the loop."""

    def __init__(
        self,
        schema: type,
        build_stage: Callable[..., Any],
        args: argparse.Namespace,
        prepare: Callable[[Any, argparse.Namespace], None] | None,
    ):
        _check_flags(args)
        self.args = args
        if (run_dir := run_to_continue(args)) is not None:
            args.resume, args.load_path = True, str(run_dir)
        # ranks that resume share the hashing of the checkpoint's files
        joined = _join(args) if args.resume else None
        self.checkpoint_dir = _find_checkpoint(args) if args.resume else None
        self.config = _load(schema, args, self.checkpoint_dir)
        if prepare is not None:
            prepare(self.config, args)
        if args.seed is not None:
            self.config.seed = args.seed
        self.env = joined or _join(args)
        use_device(self.env)
        config, env = self.config, self.env
        self.train_set = build_dataset(config.dataset, "train", config.seed)
        self.val_set = build_dataset(config.dataset, "val", config.seed)
        self.plan = self._plan()
        # initial weights are the same on every rank, and never those of any step's noise
        seed_everything_for_step(config.seed, 0, INITIAL_STEP)
        self.stage = build_stage(config, self.plan, env, partial(self.batches, self.val_set))
        self.stage.check_data(self.train_set)
        self.step = self.images_seen = 0
        self.known_flops: Mapping[str, int] = {}
        self.guards: Guards | None = None
        self._restore()
        self.run_dir = self._open_run_dir()
        distributed.run_on_main(lambda: note_launch(self.run_dir, env.world_size))
        self.log = RunLog(self.run_dir, env.is_main, rank=env.rank, resume_step=self.step if args.resume else None)

    def _plan(self) -> BatchPlan:
        """The counts of the run; one that is resumed keeps its global batch on any number of processes."""
        experiment, optimizer = self.config.experiment, self.config.optimizer
        schedule_ranks = None
        if self.checkpoint_dir is not None:
            progress = read_progress(self.checkpoint_dir)
            schedule_ranks = progress.get("schedule_ranks")
            global_batch = progress.get("global_batch", progress["images_seen"] // progress["step"])
            fit_to_ranks(experiment, optimizer, global_batch, self.env.world_size)
        return plan_batches(
            experiment, len(self.train_set), self.env.world_size, optimizer.grad_accm_steps, schedule_ranks
        )

    def batches(self, dataset: ImageDataset) -> Iterator[dict[str, Tensor]]:
        """This rank's share of a split for evaluation, every image once."""
        experiment = self.config.experiment
        loader = eval_loader(
            dataset,
            self.args.test_batch_size or experiment.batch_size,
            self.env.rank,
            self.env.world_size,
            experiment.num_workers,
            limit=experiment.test_images,
            device=self.env.device,
        )
        for batch in Survivor(experiment.max_worker_deaths, self.log.warning).iterate_once(loader):
            if self.guards is not None:
                self.guards.watchdog.pulse()
            yield batch

    def _restore(self) -> None:
        if self.checkpoint_dir is not None:
            # its files were verified when it was found
            progress = restore_checkpoint(self.checkpoint_dir, self.stage.objects(), verify=False)
            self.step, self.images_seen = progress["step"], progress["images_seen"]
            self.known_flops = progress.get("flops_per_step", {})
            for name, value in self.stage.provenance().items():
                if progress.get(name) != value:
                    raise UserError(
                        f"{self.checkpoint_dir}: this run was trained with {name} {progress.get(name)}, not {value}"
                    )
        elif self.args.load_path:
            self.stage.load_weights(_find_weights(Path(self.args.load_path), self.args.test_epoch))

    def _open_run_dir(self) -> Path:
        if self.checkpoint_dir is not None:
            run_dir = self.checkpoint_dir.parent.parent
            distributed.run_on_main(lambda: self._abandon_later_steps(run_dir))
            return run_dir
        stem = Path(self.args.model_config).stem + ("-eval" if self.args.eval else "")
        run_dir = new_run_dir(self.args.result_path, stem, self.args.postfix)
        distributed.run_on_main(lambda: save_config(self.stage.config, run_dir / "config.yaml"))
        return run_dir

    def _abandon_later_steps(self, run_dir: Path) -> None:
        """A run resumed from an earlier step writes another history: what lies after that step must not be found."""
        for directory in (run_dir / CHECKPOINTS, run_dir / SNAPSHOTS):
            discard_after(directory, self.step)
        discard_best_after(run_dir / SNAPSHOTS, self.step)

    def train(self) -> None:
        """Trains to the end of the plan."""
        plan, log, stage = self.plan, self.log, self.stage
        log.info(f"run directory {self.run_dir}")
        log.info(stage.describe())
        log.info(
            f"{self.train_set.name}: {plan.num_images} training images, {len(self.val_set)} validation images; "
            f"{plan.global_batch} per step = {plan.micro_batch} x {plan.world_size} processes x {plan.accumulation} "
            f"micro-steps; {plan.steps_per_epoch} steps per epoch, {plan.total_steps} in all; "
            f"{self.env.device}, {stage.precision.name}"
        )
        if self.step:
            log.info(f"resumed from {self.checkpoint_dir} at step {self.step}, {self.images_seen} images seen")
        feed = self._feed()
        self.guards = Guards(
            self.config.experiment,
            plan,
            log,
            self.run_dir,
            feed,
            seed=self.config.seed,
            device=self.env.device,
            precision=stage.precision.name,
            known_flops=self.known_flops,
        )
        log.info(self.guards.describe())
        Loop(
            stage,
            feed,
            plan,
            log,
            self.run_dir,
            self._save_snapshot,
            guards=self.guards,
            seed=self.config.seed,
            start_step=self.step,
            images_seen=self.images_seen,
            checkpoints=self._checkpoints(),
            scores=self._scores(),
        ).run()
        self._report_unreadable()

    def _feed(self) -> Feed:
        """The training batches from where the run stands."""
        plan, experiment = self.plan, self.config.experiment

        def open_at(images_seen: int, num_workers: int) -> TrainLoader:
            return TrainLoader(
                self.train_set,
                plan.micro_batch,
                seed=self.config.seed,
                rank=self.env.rank,
                world_size=self.env.world_size,
                accumulation=plan.accumulation,
                start_image=images_seen,
                num_workers=num_workers,
                pin_memory=self.env.device.type == "cuda",
                device=self.env.device,
            )

        return Feed(
            open_at,
            experiment.num_workers,
            images_seen=self.images_seen,
            global_batch=plan.global_batch,
            accumulation=plan.accumulation,
            max_deaths=experiment.max_worker_deaths,
            warn=self.log.warning,
        )

    def _checkpoints(self) -> CheckpointWriter:
        experiment = self.config.experiment
        return CheckpointWriter(
            self.run_dir / CHECKPOINTS,
            keep_last=experiment.keep_checkpoints,
            keep_every=experiment.keep_every_steps,
            asynchronous=experiment.async_checkpoint,
        )

    def _scores(self) -> InLoopScores | None:
        experiment = self.config.experiment
        if experiment.score.every_steps is None:
            return None
        data = ScoringData(
            self.config.dataset,
            self.args.test_batch_size or experiment.batch_size,
            self.env,
            experiment.num_workers,
            {"train": self.train_set, "val": self.val_set},
            experiment.score.features_cache,
        )
        return InLoopScores(
            experiment.score, self.stage, data, self.log, self.run_dir / SNAPSHOTS, self._write_snapshot
        )

    def evaluate(self) -> None:
        """Metrics of the loaded weights on both splits (and of the EMA weights where there are any)."""
        results = {
            "train": self.stage.evaluate(self.batches(self.train_set)),
            "val": self.stage.evaluate(self.batches(self.val_set)),
        }
        if self.stage.ema is not None:
            with self.stage.averaged():
                results["val_ema"] = self.stage.evaluate(self.batches(self.val_set))
        for split, metrics in results.items():
            self.log.log_metrics(self.step, metrics, prefix=split)
        self._report_unreadable()

    def _report_unreadable(self) -> None:
        for dataset in (self.train_set, self.val_set):
            if line := unreadable_images(dataset):
                self.log.warning(line)

    def _save_snapshot(self, progress: dict[str, Any], metrics: dict[str, Any]) -> None:
        self._write_snapshot(
            step_name(progress["step"]), progress, metrics, keep_last=self.config.experiment.keep_snapshots
        )

    def _write_snapshot(
        self,
        name: str,
        progress: Mapping[str, Any],
        metrics: Mapping[str, Any],
        extra: Mapping[str, Any] | None = None,
        keep_last: int | None = None,
    ) -> None:
        tensors, ema_tensors = self.stage.snapshot()
        metadata = {
            **progress,
            "stage": self.stage.name,
            "seed": self.config.seed,
            "metrics": dict(metrics),
            **self.stage.provenance(),
            **(extra or {}),
        }

        def write() -> None:
            save_snapshot(
                self.run_dir / SNAPSHOTS / name,
                tensors,
                self.stage.config,
                metadata,
                ema_tensors,
                keep_last=keep_last,
                extra_files=tokenizer_files(self.stage.config, self.train_set),
            )

        distributed.run_on_main(write)


def _check_flags(args: argparse.Namespace) -> None:
    if args.eval and (args.resume or args.auto_resume):
        raise UserError("--eval and --resume exclude each other")
    if args.eval and not args.load_path:
        raise UserError("--eval needs -l/--load-path: the run, snapshot or checkpoint to evaluate")
    if not args.model_config and not args.resume:
        raise UserError("-m/--model-config is missing: the YAML file of the experiment")
    if args.test_batch_size is not None and args.test_batch_size < 1:
        raise UserError(f"-t/--test-batch-size {args.test_batch_size} must be at least 1")


def _join(args: argparse.Namespace) -> DistEnv:
    return distributed.initialize(
        args.timeout,
        args.dist_backend,
        local_rank=args.local_rank,
        world_size=args.world_size,
        node_rank=args.node_rank,
    )


def _find_checkpoint(args: argparse.Namespace) -> Path:
    """The checkpoint that --resume continues: -l names it or its run, else the newest run of the config."""
    if args.load_path:
        path = Path(args.load_path)
        if not path.exists():
            raise UserError(f"-l {path} does not exist")
        run_dir = path
    else:
        if not args.model_config:
            raise UserError("--resume needs -l RUN, or -m CONFIG to find the newest run of it")
        candidates = runs(args.result_path, Path(args.model_config).stem)
        run_dir = next((run for run in candidates if complete_checkpoints(run)), None)
        if run_dir is None:
            raise UserError(
                f"nothing to resume: no run of {args.model_config} under {args.result_path} has a complete checkpoint"
            )
    checkpoint = find_sound_checkpoint(run_dir, report=_say_once)
    if checkpoint is None:
        raise UserError(f"nothing to resume: {run_dir} has no complete checkpoint")
    return checkpoint


def _say_once(line: str) -> None:
    """On stderr, from the main process alone; there is no log and no process group yet."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _load(schema: type, args: argparse.Namespace, checkpoint_dir: Path | None) -> Any:
    """The config of -m; a resumed run keeps its own, which only `key=value` words change."""
    if checkpoint_dir is None:
        return load_config(schema, args.model_config, args.overrides)
    config = load_config(schema, checkpoint_dir.parent.parent / "config.yaml", args.overrides)
    if args.seed not in (None, config.seed):
        raise UserError(f"--seed {args.seed} differs from the resumed run's seed {config.seed}")
    return config


def _find_weights(path: Path, epoch: float) -> Path:
    """What -l names: a published file, a snapshot, or a run, of which the snapshot of `epoch` (-1: newest) is taken."""
    if not path.exists():
        raise UserError(f"-l {path} does not exist")
    if path.parent.name == CHECKPOINTS:
        # a checkpoint is for resuming; the snapshot of the same step holds the same weights for use
        path = path.parent.parent / SNAPSHOTS / path.name
        if not path.exists():
            raise UserError(f"there is no snapshot {path}; a checkpoint itself can only be resumed (--resume)")
    if not (path / SNAPSHOTS).is_dir():
        return path
    if epoch < 0:
        snapshot = find_latest_snapshot(path)
        if snapshot is None:
            raise UserError(f"-l {path} has no complete snapshot")
        return snapshot
    by_epoch = {round(read_metadata(entry)["epoch"], 3): entry for entry in complete_snapshots(path / SNAPSHOTS)}
    if round(epoch, 3) not in by_epoch:
        choices = ", ".join(f"{value:g}" for value in sorted(by_epoch))
        raise UserError(f"-e {epoch:g}: {path} has no snapshot of that epoch; choose from {choices}")
    return by_epoch[round(epoch, 3)]


def use_device(env: DistEnv) -> None:
    """Switches of PyTorch, and of the allocator below it, that all training and extraction share."""
    if env.device.type == "cpu":
        keep_freed_memory()
    if env.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # the newer of PyTorch's two TF32 switches: the quantizer uses it too, and they must not be mixed
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.cudnn.conv.fp32_precision = "tf32"
