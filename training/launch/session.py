"""From a command line to a running stage: flags, config, processes, data, run directory, weights, loop.

Both entry scripts are this function with another schema and another stage. Everything a user can get wrong is found
before the first step and ends in one line and exit code 2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from data import EvalLoader, ImageDataset, TrainLoader, build_dataset
from data.dataset import unreadable_images
from runtime import distributed
from runtime.config import save_config
from runtime.device import use_device
from runtime.errors import UserError
from runtime.rundir import new_run_dir
from runtime.runlog import RunLog
from runtime.seeding import seed_everything_for_step
from runtime.step_directories import CHECKPOINTS, SNAPSHOTS, discard_after, step_name
from scoring.scoring_data import ScoringData
from training.checkpoints.checkpoint import CheckpointWriter, read_progress, restore_checkpoint
from training.checkpoints.snapshots import save_snapshot
from training.experiment import BatchPlan, fit_to_ranks, plan_batches
from training.launch.continuation import note_launch, run_to_continue
from training.launch.data_checks import tokenizer_files
from training.launch.flags import LaunchSettings
from training.launch.resuming import find_checkpoint, find_weights, load_run_config
from training.loop.feed import Feed, Survivor
from training.loop.guards import Guards
from training.loop.in_loop_scores import InLoopScores, discard_best_after
from training.loop.loop import Loop

INITIAL_STEP = -1  # the step number that seeds initial weights


class Session:
    """Everything that exists between the command line and the loop."""

    def __init__(
        self,
        schema: type,
        build_stage: Callable[..., Any],
        settings: LaunchSettings,
    ):
        settings.check()
        if (run_dir := run_to_continue(settings)) is not None:
            settings = replace(settings, resume=True, load_path=run_dir)
        self.settings = settings
        # ranks that resume share the hashing of the checkpoint's files
        joined = settings.processes.join() if settings.resume else None
        self.checkpoint_dir = find_checkpoint(settings) if settings.resume else None
        self.config = load_run_config(schema, settings, self.checkpoint_dir)
        self.env = joined or settings.processes.join()
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
        self.log = RunLog(self.run_dir, env.is_main, rank=env.rank, resume_step=self.step if settings.resume else None)

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
        loader = EvalLoader(
            dataset,
            self.settings.test_batch_size or experiment.batch_size,
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
        elif self.settings.load_path is not None:
            self.stage.load_weights(find_weights(self.settings.load_path, self.settings.test_epoch))

    def _open_run_dir(self) -> Path:
        if self.checkpoint_dir is not None:
            run_dir = self.checkpoint_dir.parent.parent
            distributed.run_on_main(lambda: self._abandon_later_steps(run_dir))
            return run_dir
        settings = self.settings
        assert settings.model_config is not None, "`LaunchSettings.check` lets no new run start without"
        stem = Path(settings.model_config).stem + ("-eval" if settings.evaluate else "")
        run_dir = new_run_dir(settings.result_path, stem, settings.postfix)
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
            self.settings.test_batch_size or experiment.batch_size,
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
