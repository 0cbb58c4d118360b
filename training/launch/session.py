"""From settings to a running stage: config, processes, data, weights, run directory, loop.

Everything a user can get wrong is found before the first step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic

from data import EvalLoader, ImageDataset, TrainLoader, build_dataset
from data.dataset import reading_notes
from data.loader import worker_count
from data.shared_memory import Reading, check_room, processes_here
from runtime import distributed
from runtime.config import save_config
from runtime.device import use_device
from runtime.distributed import DistEnv
from runtime.errors import one_line
from runtime.processes.launcher_watch import launcher_of_this_process
from runtime.processes.run_ownership import RunOwnership
from runtime.rundir import new_run_dir, sweep_run
from runtime.runlog import RunLog
from runtime.seeding import seed_everything_for_step
from runtime.step_directories import CHECKPOINTS, SNAPSHOTS
from sampling.recorded_paths import TYPED, typed_paths, with_absolute_paths
from scoring.scoring_data import ScoringData
from training.checkpoints.checkpoint_writer import CheckpointWriter
from training.checkpoints.snapshot_writer import SnapshotWriter
from training.dry_run import dry_run_lines
from training.experiment import BatchPlan, RunPosition
from training.launch.continuation import note_launch, typed_by, with_run_to_continue
from training.launch.data_identity import DataIdentity
from training.launch.flags import LaunchSettings
from training.launch.resume_rules import Change, allowed_changes
from training.launch.resuming import ResumedRun
from training.launch.run_config import (
    config_before,
    edited,
    learning_rate_jump,
    load_run_config,
    plan_run,
    recorded_config,
    with_images_of_stage1,
)
from training.launch.starting_points import find_checkpoint, find_weights, run_dir_of, run_to_resume, step_of
from training.launch.words import announce, closing_lines, unread_captions
from training.loop.console import interval_line
from training.loop.faults import FaultRecorder
from training.loop.feed import Feed, Survivor
from training.loop.guards import Guards
from training.loop.in_loop_scores import InLoopScores, find_features
from training.loop.loop import Loop, Records
from training.loop.throughput import SpeedMeter, StepFlops
from training.report.page import REPORT_FILE, write_report
from training.report.run_record import RunRecord
from training.schedules import never_reached
from training.stage import Batch, Config, RunConfig, Stage

INITIAL_STEP = -1  # the step number that seeds initial weights
BuildStage = Callable[[Config, BatchPlan, DistEnv], Stage]


class Session(Generic[Config]):
    """Everything that exists between the command line and the loop.

    Args:
        schema: dataclass of the YAML file.
        build_stage: the stage's class.
        settings: what the command line says.
    """

    def __init__(self, schema: type[Config], build_stage: BuildStage[Config], settings: LaunchSettings) -> None:
        self._launcher = launcher_of_this_process()
        self.ownership: RunOwnership | None = None  # of the main process
        try:
            self._prepare(schema, build_stage, settings)
        except BaseException:
            self._let_go()
            raise

    def _prepare(self, schema: type[Config], build_stage: BuildStage[Config], settings: LaunchSettings) -> None:
        settings.check()
        told_to_resume = settings.resume
        self.settings = settings = with_run_to_continue(settings)
        # ranks that resume share the hashing of the checkpoint's files
        joined = settings.processes.join() if settings.resume else None
        self.resumed = self._resumed() if settings.resume else None
        config = load_run_config(schema, settings, None if self.resumed is None else self.resumed.run_dir)
        self.changed: list[Change] | None = None
        self.notes: list[str] = []
        self.weights_step = 0  # of those that are evaluated, where they say it
        if self.resumed is not None:
            before = config_before(schema, self.resumed)
            self.changed = changed = allowed_changes(before, config)
            self.notes = edited(settings, self.resumed, config, refused=told_to_resume)
        config = with_images_of_stage1(config)
        self.env = env = joined or settings.processes.join()
        use_device(env, config.experiment.deterministic)
        announce(f"loading the data set {config.dataset.name}")
        self.train_set = build_dataset(config.dataset, "train", config.seed)
        self.val_set = build_dataset(config.dataset, "val", config.seed)
        config = config.fitted_to(self.train_set)
        self.config, self.plan = plan_run(config, len(self.train_set), env.world_size, self.resumed, self.changed or ())
        self._check_shared_memory()
        self.data = DataIdentity.of(self.train_set, self.val_set)
        if self.resumed is not None:
            self.data.check_resumed(self.resumed, self.config.dataset.accept_changed)
            self.data.check_shards(self.resumed.run_dir, self.config.dataset.accept_changed)
            self.notes += [f"from here on {change}" for change in changed]
            self.notes += learning_rate_jump(before, self.config, self.plan, self.start.step)
        # initial weights are the same on every rank, and never those of any step's noise
        seed_everything_for_step(config.seed, 0, INITIAL_STEP)
        announce(f"building the model on {env.device}" + (f" x {env.world_size}" if env.world_size > 1 else ""))
        self.stage = build_stage(self.config, self.plan, env)
        self.stage.check_data(self.train_set)
        if self.resumed is None and not settings.evaluate:
            self.data.check_unseen(self.stage.config, self.config.dataset.accept_seen)
        if self.resumed is not None:
            self.resumed.restore(self.stage)
        elif settings.load_path is not None:
            weights = find_weights(settings.load_path, settings.test_epoch)
            self.stage.load_weights(weights)
            self.weights_step = step_of(weights)
        if settings.dry_run:
            return
        self.typed = {} if self.resumed is None else typed_by(self.resumed.run_dir)
        self.typed |= typed_paths(self.stage.config)
        self.run_dir = self._open_run_dir(recorded_config(self.stage.config, config, self.changed))
        distributed.run_on_main(lambda: note_launch(self.run_dir, env.world_size, settings.model_config, self.typed))
        distributed.run_on_main(lambda: self.data.note_shards(self.run_dir))
        resume_step = None if self.resumed is None else self.resumed.position.step
        headline = None if self.config.experiment.console == "full" else interval_line
        self.log = RunLog(
            self.run_dir,
            env.is_main,
            rank=env.rank,
            resume_step=resume_step,
            loggers=self.config.experiment.loggers,
            headline=headline,
        )

    def _resumed(self) -> ResumedRun:
        """The run that is continued, once this process is the only one that writes to it."""
        path = run_to_resume(self.settings)
        if not self.settings.dry_run:
            self._own(run_dir := run_dir_of(path))
            distributed.run_on_main(lambda: sweep_run(run_dir))
        return ResumedRun.at(find_checkpoint(path))

    def _own(self, run_dir: Path) -> None:
        def take() -> None:
            self.ownership = RunOwnership(run_dir)

        distributed.run_on_main(take)

    def __enter__(self) -> Session[Config]:
        self.log.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.log.__exit__(*error)
        self._let_go()

    def close(self) -> None:
        """Closes the log and gives the run directory back."""
        self.__exit__(None, None, None)

    def look(self) -> Iterator[str]:
        """What a dry run says; every rank must go through all of it."""
        yield from dry_run_lines(self.stage, self.train_set, self.val_set, self.plan, self.env.device, self.config.seed)
        yield from (f"warning: {line}" for line in [*self.data.warnings, *self.notes])
        yield "a dry run: nothing was trained, nothing was written"

    def _let_go(self) -> None:
        if self.ownership is not None:
            self.ownership.release()

    @property
    def start(self) -> RunPosition:
        """Where the run stands before it is trained on."""
        return RunPosition() if self.resumed is None else self.resumed.position

    def _open_run_dir(self, config: RunConfig) -> Path:
        if self.resumed is not None:
            run_dir = self.resumed.run_dir
            distributed.run_on_main(self.resumed.abandon_later_steps)
            distributed.run_on_main(lambda: save_config(config, run_dir / "config.yaml"))
            return run_dir
        settings = self.settings
        assert settings.model_config, "`LaunchSettings.check` lets no new run start without"
        stem = Path(settings.model_config).stem + ("-eval" if settings.evaluate else "")
        run_dir = new_run_dir(settings.result_path, stem, settings.postfix)
        self._own(run_dir)
        distributed.run_on_main(lambda: save_config(config, run_dir / "config.yaml"))
        return run_dir

    def batches(self, dataset: ImageDataset, pulse: Callable[[], None] | None = None) -> Iterator[Batch]:
        """This rank's share of a split for evaluation, every image once.

        Args:
            pulse: called for every batch, to show that something moves.
        """
        experiment = self.config.experiment
        loader = EvalLoader(
            dataset,
            self._test_batch_size,
            self.env.rank,
            self.env.world_size,
            experiment.num_workers,
            limit=experiment.test_images,
            device=self.env.device,
        )
        for batch in Survivor(experiment.max_worker_deaths, self.log.warning).iterate_once(loader):
            if pulse is not None:
                pulse()
            yield batch

    def _check_shared_memory(self) -> None:
        """UserError where the data workers of the training and the validation loader would find no room."""
        asked = self.config.experiment.num_workers
        batches = {self.train_set: self.plan.micro_batch, self.val_set: self._test_batch_size}
        readings = [Reading(split, size, worker_count(split, asked)) for split, size in batches.items()]
        check_room(readings, processes_here(self.env.world_size))

    @property
    def _test_batch_size(self) -> int:
        return self.settings.test_batch_size or self.config.experiment.batch_size

    def train(self) -> None:
        """Trains to the end of the plan."""
        started = time.monotonic()
        self._say_what_is_trained()
        feed, meter, snapshots = self._feed(), self._meter(), self._snapshots()
        recorder = FaultRecorder(self.run_dir, feed, self.config.seed, self.plan.global_batch, self.log.warning)
        guards = Guards(self.config.experiment, self.plan, self.log, recorder, self._launcher)
        self.log.info(meter.describe())
        Loop(
            self.stage,
            feed,
            self.plan,
            Records(self.log, self._checkpoints(), snapshots, self.data.facts(), self._write_report),
            guards=guards,
            meter=meter,
            validation=partial(self.batches, self.val_set, guards.watchdog.pulse),
            start=self.start,
            scores=self._scores(snapshots),
        ).run()
        self._report_unreadable()
        self.log.event("done", f"step {self.plan.total_steps}", self.plan.total_steps)
        if self.env.is_main:
            config, steps = self.stage.config, self.plan.total_steps
            for line in closing_lines(
                self.stage.name,
                config,
                snapshots,
                total_steps=steps,
                seconds=time.monotonic() - started,
                mfu=meter.mfu,
                model_config=self.settings.model_config,
            ):
                self.log.info(line)

    def evaluate(self) -> None:
        """Metrics of the loaded weights on both splits (and of the averaged weights where there are any)."""
        results = {
            "train": self.stage.evaluate(self.batches(self.train_set)),
            "val": self.stage.evaluate(self.batches(self.val_set)),
        }
        if self.stage.keeps_average:
            with self.stage.averaged():
                results["val_ema"] = self.stage.evaluate(self.batches(self.val_set))
        for split, metrics in results.items():
            self.log.log_metrics(self.weights_step, metrics, prefix=split)
        self._report_unreadable()

    def _say_what_is_trained(self) -> None:
        plan, log = self.plan, self.log
        log.info(f"run directory {self.run_dir}")
        log.info(self.stage.describe())
        log.info(
            f"{self.train_set.name}: {plan.num_images} training images, {len(self.val_set)} validation images"
            f"{unread_captions(self.config, self.train_set)}; {self.env.device}, {self.stage.precision.name}"
        )
        log.info(
            f"{plan.total_steps} steps, {plan.steps_per_epoch} per epoch, of {plan.global_batch} images = "
            f"{plan.micro_batch} x {plan.world_size} processes x {plan.accumulation} micro-steps"
        )
        log.event("start" if self.resumed is None else "resume", " ".join(sys.argv), self.start.step)
        if self.train_set.credit:
            log.info(self.train_set.credit)
        if self.resumed is not None:
            start = self.start
            log.info(f"resumed from {self.resumed.checkpoint} at step {start.step}, {start.images_seen} images seen")
            if start.step >= plan.total_steps:
                self.notes.append(
                    f"the run is finished: {start.step} of {plan.total_steps} steps are done; a larger "
                    "experiment.max_steps or experiment.epochs makes it longer"
                )
        for line in [*self.data.warnings, *self.notes, *never_reached(self.stage.objects().values())]:
            if log.is_main:  # every rank has them
                log.warning(line)

    def _write_report(self) -> None:
        """The page of the run, where the config asks for it; one that cannot be written does not end the run."""
        if not (self.config.experiment.report and self.env.is_main):
            return
        try:
            write_report([RunRecord.open(self.run_dir)], self.run_dir / REPORT_FILE)
        except Exception as error:
            self.log.warning(f"cannot write {REPORT_FILE}: {one_line(error)[:200]}; the run goes on without")

    def _report_unreadable(self) -> None:
        for dataset in (self.train_set, self.val_set):
            for line in reading_notes(dataset):
                self.log.warning(line)

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
            images_seen=self.start.images_seen,
            global_batch=plan.global_batch,
            accumulation=plan.accumulation,
            max_deaths=experiment.max_worker_deaths,
            warn=partial(self.log.warning, event="worker death"),
        )

    def _meter(self) -> SpeedMeter:
        known = {} if self.resumed is None else self.resumed.flops_per_step
        flops = StepFlops(self.config.experiment.count_flops, known)
        return SpeedMeter(self.env.device, self.stage.precision.name, flops)

    def _checkpoints(self) -> CheckpointWriter:
        experiment = self.config.experiment
        return CheckpointWriter(
            self.run_dir / CHECKPOINTS,
            keep_last=experiment.keep_checkpoints,
            keep_every=experiment.keep_every_steps,
            asynchronous=experiment.async_checkpoint,
        )

    def _snapshots(self) -> SnapshotWriter:
        return SnapshotWriter(
            self.run_dir / SNAPSHOTS,
            with_absolute_paths(self.stage.config),
            facts={
                "stage": self.stage.name,
                "seed": self.config.seed,
                **self.stage.snapshot_facts(self.train_set),
                **({TYPED: self.typed} if self.typed else {}),
            },
            files=self.stage.snapshot_files(self.train_set),
            keep_last=self.config.experiment.keep_snapshots,
        )

    def _scores(self, snapshots: SnapshotWriter) -> InLoopScores | None:
        """Of rFID or FID; None where none is asked for, or, with a warning, where none can be had."""
        experiment = self.config.experiment
        if experiment.score.every_steps is None:
            return None
        data = ScoringData(
            self.config.dataset,
            self._test_batch_size,
            self.env,
            experiment.num_workers,
            {"train": self.train_set, "val": self.val_set},
            experiment.score.features_cache,
        )
        try:
            scores = InLoopScores(experiment.score, self.stage, find_features(experiment.score, data), data, snapshots)
        except ValueError as error:
            if self.env.is_main:
                self.log.warning(f"no {self.stage.score_kind} while training: {error}")
            return None
        self.log.info(scores.describe())
        return scores
