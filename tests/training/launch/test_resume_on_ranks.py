"""A stage-2 run goes on with another number of ranks, and from DDP to FSDP and back: the next losses are the same.

No stochastic codes and no dropout here: their noise belongs to (seed, rank, step), so that other ranks draw other
noise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data.order import TrainOrder
from tests.training.tiny_runs import (
    metrics_without_time,
    only_run,
    session,
    stage1,
    stage2,
    train,
    train_until,
    write_config,
)
from training.experiment import ExperimentConfig, fit_to_ranks, plan_batches

SAVED, LAST = 2, 7
GLOBAL_BATCH = 8
PLAN = {
    "experiment.batch_size": 4,
    "experiment.max_steps": LAST,
    "experiment.save_steps": SAVED,
    "experiment.test_steps": 100,
    "experiment.keep_checkpoints": 9,
    "arch.ema": 0.9,
    "dataset.hflip": True,
    "optimizer.warmup.mode": "linear",
    "optimizer.warmup.multiplier": 1.0,
}


@pytest.fixture(scope="module")
def train_on(on_ranks) -> Callable[..., None]:
    """`train_on(number, *flags, stop=None)` trains in so many processes, to the end or until optimizer step `stop`."""

    def start(number: int, *flags: object, stop: int | None = None) -> None:
        on_ranks(_train_one, [str(flag) for flag in flags], stop, number=number, join=False)

    return start


def _train_one(rank: int, flags: list[str], stop: int | None) -> None:
    train("stage2", *flags) if stop is None else train_until(stop, "stage2", *flags)


@pytest.fixture(scope="module")
def started(train_on, tmp_path_factory) -> Path:
    """A run of two DDP ranks to its end, with a checkpoint after every second step."""
    folder = tmp_path_factory.mktemp("started")
    tokenizer = train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir
    config = write_config(folder / "tiny.yaml", stage2(PLAN))
    train_on(2, "-m", config, "-v", tokenizer, "-r", folder / "runs", "--timeout", 120)
    return only_run(folder / "runs")


def resumed(started: Path, tmp_path: Path) -> Path:
    """A copy of the run as it stood after step SAVED."""
    run_dir = Path(shutil.copytree(started, tmp_path / "run"))
    for directory in (run_dir / "checkpoints").glob("step_*"):
        if directory.name > f"step_{SAVED:08d}":
            shutil.rmtree(directory)
    return run_dir


def losses(run_dir: Path) -> list[float]:
    """The training losses of all steps, in order."""
    lines = [line for line in metrics_without_time(run_dir) if "train/loss" in line]
    assert [line["step"] for line in lines] == list(range(1, LAST + 1))
    return [line["train/loss"] for line in lines]


def assert_goes_on_like(started: Path, run_dir: Path, tolerance: float = 1e-5) -> None:
    straight, other = losses(started), losses(run_dir)
    assert len(set(straight)) == LAST, "every step has a loss of its own"
    assert other[SAVED:] == pytest.approx(straight[SAVED:], rel=tolerance)
    ends = [metrics_without_time(path)[-1] for path in (started, run_dir)]
    assert ends[1].keys() == ends[0].keys()


def test_on_one_rank(started, tmp_path):
    run_dir = resumed(started, tmp_path)
    run = train("stage2", "--resume", "-l", run_dir)
    assert (run.plan.micro_batch, run.plan.accumulation, run.plan.schedule_ranks) == (4, 2, 2)
    assert_goes_on_like(started, run_dir)


@pytest.mark.slow
def test_from_ddp_to_fsdp_and_back(train_on, started, tmp_path):
    run_dir = resumed(started, tmp_path)
    train_on(2, "--resume", "-l", run_dir, "experiment.parallel=fsdp", stop=SAVED + 2)
    assert len(list((run_dir / f"checkpoints/step_{SAVED + 2:08d}").glob("rank_*.safetensors"))) == 2
    train_on(2, "--resume", "-l", run_dir)
    assert_goes_on_like(started, run_dir)


@pytest.mark.slow
def test_on_the_same_ranks_bit_for_bit(train_on, started, tmp_path):
    run_dir = resumed(started, tmp_path)
    train_on(2, "--resume", "-l", run_dir)
    assert losses(run_dir) == losses(started)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_on_four_ranks(train_on, parallel, started, tmp_path):
    run_dir = resumed(started, tmp_path)
    train_on(4, "--resume", "-l", run_dir, f"experiment.parallel={parallel}")
    assert_goes_on_like(started, run_dir)


@pytest.mark.parametrize(
    ("batch_size", "ranks", "global_batch", "fits"),
    [
        (4, 1, 8, (4, 2)),
        (4, 4, 8, (2, 1)),
        (6, 2, 24, (6, 2)),
        (5, 2, 16, (4, 2)),
        (7, 1, 11, (1, 11)),
        (4, 2, 8, (4, 1)),
    ],
)
def test_the_global_batch_is_fitted_to_any_number_of_ranks(batch_size, ranks, global_batch, fits):
    started_with = ExperimentConfig(batch_size=batch_size, max_steps=1)
    experiment, accumulation = fit_to_ranks(started_with, 1, global_batch, ranks)
    plan = plan_batches(experiment, 100, ranks, accumulation)
    assert (plan.micro_batch, plan.accumulation, plan.global_batch) == (*fits, global_batch)
    orders = [TrainOrder(100, 0, plan.micro_batch, rank, ranks, plan.accumulation) for rank in range(ranks)]
    parts = [order.micro_batch(part)[0] for order in orders for part in range(plan.accumulation)]
    step = sorted(index for part in parts for index in part)
    assert step == sorted(TrainOrder(100, 0, global_batch).micro_batch(0)[0])


@pytest.mark.parametrize("ranks", [3, 16])
def test_ranks_that_cannot_share_the_batch_are_told_which_can(ranks):
    with pytest.raises(ValueError, match=f"8 images per step, which {ranks} processes cannot share: start 1, 2, 4, 8"):
        fit_to_ranks(ExperimentConfig(batch_size=4, max_steps=1), 1, 8, ranks)


def test_another_global_batch_is_refused(started, tmp_path):
    run_dir = resumed(started, tmp_path)
    with pytest.raises(ValueError, match="total_batch_size=6: the resumed run takes 8 images per step"):
        session("stage2", "--resume", "-l", run_dir, "experiment.total_batch_size=6")
