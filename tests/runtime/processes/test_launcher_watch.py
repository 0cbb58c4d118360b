"""A rank notices that torchrun, its parent, is gone; one that was started by hand has nobody to lose."""

from __future__ import annotations

import os
import time

import pytest

from runtime.processes import launcher_watch
from runtime.processes.launcher_watch import LauncherWatch, launcher_of_this_process


@pytest.fixture
def parent(monkeypatch) -> list[int]:
    """The parent of this process, as the system would say it; torchrun has started it."""
    numbers = [4711]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setattr(os, "getppid", lambda: numbers[-1])
    monkeypatch.setattr(launcher_watch, "POLL_SECONDS", 0.01)
    return numbers


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lost_launcher_is_noticed_and_an_orphan_ends(parent, monkeypatch):
    monkeypatch.setattr(launcher_watch, "GRACE_SECONDS", 0.05)
    lines, codes = [], []
    with LauncherWatch(launcher_of_this_process(), lines.append, codes.append) as watch:
        time.sleep(0.05)
        assert not watch.is_gone
        parent.append(1)
        wait_for(lambda: codes)
    assert watch.is_gone
    assert codes == [75]
    assert lines == ["the launcher (process 4711) has ended: the run saves its next step and ends"]


def test_one_that_ends_in_time_is_left_alone(parent):
    with LauncherWatch(launcher_of_this_process(), lambda line: None, pytest.fail) as watch:
        parent.append(1)
        wait_for(lambda: watch.is_gone)


def test_a_launcher_that_went_before_the_loop_is_noticed_too(parent):
    watch = LauncherWatch(launcher_of_this_process(), lambda line: None, pytest.fail)
    parent.append(1)
    with watch:
        wait_for(lambda: watch.is_gone)


def test_a_process_started_by_hand_may_outlive_its_shell(parent, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with LauncherWatch(launcher_of_this_process(), pytest.fail, pytest.fail) as watch:
        parent.append(1)
        time.sleep(0.05)
        assert not watch.is_gone
