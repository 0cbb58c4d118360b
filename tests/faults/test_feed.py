"""Killed data workers: the loader is opened again where it stood, and the run ends as if nothing had happened."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, EvalLoader, build_dataset
from data.loader import TrainLoader
from runtime.errors import UserError
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    metrics_without_time,
    stage1,
    train,
    write_config,
)
from training.loop.feed import Feed, Survivor, let_deaths_wait

DEATH = "DataLoader worker (pid(s) 17) exited unexpectedly"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder data set, which is decoded by workers."""
    root = tmp_path_factory.mktemp("images")
    for split, count in (("train", 24), ("val", 4)):
        for index in range(count):
            path = root / split / "one" / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


def numbered(start: int) -> Iterator[dict[str, torch.Tensor]]:
    return ({"index": torch.tensor([number])} for number in itertools.count(start))


def make_feed(warnings: list[str], dies_after: list[int], accumulation: int = 1, max_deaths: int = 10) -> Feed:
    """Batches numbered by position; each opening dies after the next number of `dies_after`."""

    def open_at(images_seen: int, num_workers: int) -> Iterator[dict[str, torch.Tensor]]:
        batches = numbered(images_seen * accumulation)
        if num_workers and dies_after:
            yield from itertools.islice(batches, dies_after.pop(0))
            raise RuntimeError(DEATH)
        yield from batches

    return Feed(
        open_at,
        2,
        images_seen=5,
        global_batch=1,
        accumulation=accumulation,
        max_deaths=max_deaths,
        warn=warnings.append,
    )


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_order_is_that_of_an_undisturbed_loader(accumulation):
    warnings: list[str] = []
    feed = make_feed(warnings, [4, 0, 2], accumulation)
    first = 5 * accumulation
    assert [int(next(feed)["index"]) for _ in range(20)] == list(range(first, first + 20))
    assert len(warnings) == 3
    assert DEATH in warnings[0]
    assert [int(batch["index"]) for batch in feed.step_again(7)] == [7 * accumulation + m for m in range(accumulation)]


def test_too_many_deaths_stop_the_run():
    feed = make_feed([], [1] * 9, max_deaths=2)
    with pytest.raises(UserError, match="3 data workers have died, more than experiment.max_worker_deaths=2"):
        list(itertools.islice(feed, 20))


def test_other_errors_pass():
    def open_at(images_seen: int, num_workers: int) -> Iterator[dict[str, torch.Tensor]]:
        yield from numbered(0)
        raise AssertionError

    def broken(images_seen: int, num_workers: int) -> Iterator[dict[str, torch.Tensor]]:
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
        yield from open_at(images_seen, num_workers)

    feed = Feed(broken, 2, images_seen=0, global_batch=1, accumulation=1, max_deaths=5, warn=print)
    with pytest.raises(RuntimeError, match="Caught RuntimeError"):
        next(feed)


def kill_a_worker() -> None:
    workers = multiprocessing.active_children()
    assert workers, "nothing to kill"
    # the youngest: earlier tests of this process may have left loaders that nobody has collected yet
    os.kill(max(worker.pid for worker in workers), signal.SIGKILL)


def test_a_killed_worker_changes_no_batch(folder):
    dataset = build_dataset(DatasetConfig(type="folder", root=str(folder), resolution=8), "train", 0)

    def open_at(images_seen: int, num_workers: int) -> TrainLoader:
        return TrainLoader(dataset, 4, seed=3, start_image=images_seen, num_workers=num_workers)

    warnings: list[str] = []
    feed = Feed(open_at, 2, images_seen=8, global_batch=4, accumulation=1, max_deaths=3, warn=warnings.append)
    given = []
    for number in range(24):
        given.append(next(feed))
        if number == 3:
            kill_a_worker()
    expected = list(itertools.islice(open_at(8, 0), 24))
    assert [differing(*pair) for pair in zip(given, expected, strict=True)] == [[]] * 24
    assert len(warnings) == 1


def test_an_evaluation_survives_too(folder):
    dataset = build_dataset(DatasetConfig(type="folder", root=str(folder), resolution=8), "train", 0)
    loader = EvalLoader(dataset, 2, num_workers=2)
    seen = []
    for batch in Survivor(3, lambda line: None).iterate_once(loader):
        seen += batch["index"].tolist()
        if len(seen) == 2:
            kill_a_worker()
    assert seen == list(range(24))


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_ends_like_another(folder, tmp_path):
    plan = {
        "dataset": {"type": "folder", "root": str(folder), "resolution": 8},
        "experiment.num_workers": 2,
        "experiment.max_steps": 20,
        "experiment.log_steps": 7,
    }
    config = write_config(tmp_path / "tiny.yaml", stage1(plan))

    def on_step(step: int) -> None:
        if step == 2:
            kill_a_worker()

    straight = train("stage1", "-m", config, "-r", tmp_path / "straight").run_dir
    killed = train("stage1", "-m", config, "-r", tmp_path / "killed", on_step=on_step).run_dir
    assert "a data worker has died" in (killed / "train.log").read_text()
    ends = [run / "checkpoints/step_00000020" for run in (straight, killed)]
    assert differing(*map(checkpoint_tensors, ends)) == []
    assert metrics_without_time(straight) == metrics_without_time(killed)


def test_deaths_are_found_by_reads_alone(folder):
    """PyTorch's handler of SIGCHLD would raise in the middle of a step."""
    dataset = build_dataset(DatasetConfig(type="folder", root=str(folder), resolution=8), "train", 0)
    batches = iter(TrainLoader(dataset, 4, seed=3, num_workers=1))
    next(batches)
    let_deaths_wait()
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
