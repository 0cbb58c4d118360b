"""Loggers: the same numbers and pictures go to each, and one that fails ends nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from runtime.records.loggers import LOGGERS, TITLES
from runtime.records.metrics_file import read_metrics
from runtime.runlog import RunLog

PICTURE = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)


class Library:
    """Stands for wandb or trackio: remembers what it is told, and fails once, at the call of number `fails_at`."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.opened: dict[str, Any] = {}
        self.said: list[tuple[int, dict[str, Any]]] = []
        self.finished, self.fails_at, self.calls = False, fails_at, 0
        self.Image = lambda image_HWC: ("image", image_HWC.shape)

    def init(self, **options: Any) -> SimpleNamespace:
        self.opened = options
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise ConnectionError("no way out")
        self.said.append((step, values))

    def finish(self) -> None:
        self.finished = True


def log_a_bit(log: RunLog) -> None:
    for step in (1, 2):
        log.log_metrics(step, {"loss": 0.5, "usage": [0.25, 0.75]}, "train", timing={"wait": 2.0})
    log.log_images("grid", PICTURE, 2)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_tracker_gets_all_numbers_and_pictures(name, tmp_path, monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, name, library)
    run_dir = tmp_path / "digits" / "2026-01-31"
    with RunLog(run_dir, loggers=(name,)) as log:
        log_a_bit(log)
    assert [library.opened[key] for key in ("project", "name", "resume")] == ["digits", "2026-01-31", "allow"]
    numbers = {"train/loss": 0.5, "train/usage/0": 0.25, "train/usage/1": 0.75, "timing/wait": 2.0}
    assert library.said == [(1, numbers), (2, numbers), (2, {"grid": ("image", (4, 5, 3))})]
    assert library.finished


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path, monkeypatch):
    library = Library()
    monkeypatch.setitem(sys.modules, "wandb", library)
    identities = []
    for resume_step in (None, 2):
        with RunLog(tmp_path / "a", loggers=("wandb",), resume_step=resume_step):
            identities.append(library.opened["id"])
    with RunLog(tmp_path / "b", loggers=("wandb",)):
        identities.append(library.opened["id"])
    assert identities[0] == identities[1] != identities[2]


def test_a_logger_that_fails_warns_once_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    broken, sound = Library(fails_at=1), Library()
    monkeypatch.setitem(sys.modules, "trackio", broken)
    monkeypatch.setitem(sys.modules, "wandb", sound)
    with RunLog(tmp_path, loggers=("trackio", "wandb")) as log:
        log_a_bit(log)
    assert capsys.readouterr().err.count("cannot write trackio: no way out; the run goes on without") == 1
    assert len(broken.said) == 1 and len(sound.said) == 3
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_package_that_is_missing_is_one_warning(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    with RunLog(tmp_path, loggers=(name,)) as log:
        log_a_bit(log)
    error = capsys.readouterr().err
    assert error.count(f"cannot write {TITLES[name]}: ") == 1 and name in error.split("cannot write")[1]


def test_wandb_offline_keeps_a_run_on_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with RunLog(tmp_path, loggers=("wandb",)) as log:
        log_a_bit(log)
        assert log._loggers, "it was not given up"
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio_keeps_a_run_on_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    with RunLog(tmp_path / "run", loggers=("trackio",)) as log:
        log_a_bit(log)
        assert log._loggers, "it was not given up"


def test_every_logger_has_a_title():
    assert LOGGERS.keys() == TITLES.keys()
