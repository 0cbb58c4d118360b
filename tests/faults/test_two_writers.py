"""A run has one writer: a second one is refused before it touches a file, orphans of a launcher save and end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.preemption import LAUNCHER_VARIABLE, Preempted
from tests.commands import LAUNCHER, start
from tests.ranks import children_of, is_running
from tests.training.tiny_runs import metrics_without_time, only_run, session, stage1, train, write_config
from training.checkpoints.checkpoint_directories import complete_checkpoints

PLAN = {"experiment.max_steps": 6, "experiment.save_steps": 2, "experiment.test_steps": 6}


def listing(folder: Path) -> dict[str, bytes]:
    """All files but TensorBoard's, which the living run writes from a thread."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("[!e]*") if file.is_file()}


def test_a_living_run_is_not_resumed_beside_itself(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    results = ["-m", config, "-r", tmp_path / "runs"]
    refused = []

    def on_step(step: int) -> None:
        if step != 5:
            return
        run = only_run(tmp_path / "runs")
        while not (run / "checkpoints/step_00000004/COMPLETE").exists():  # written by a thread
            time.sleep(0.01)
        before = listing(run)
        for flags in (
            ["--resume", "-l", run],
            ["--resume", "-l", run / "checkpoints/step_00000002"],
            [*results, "--resume"],
            [*results, "--auto-resume"],
        ):
            with pytest.raises(UserError, match=f"{run} is being written by process {os.getpid()} on .* since "):
                session("stage1", *flags)
            refused.append(listing(run) == before)

    run = train("stage1", *results, on_step=on_step).run_dir
    assert refused == [True] * 4
    assert [line["step"] for line in metrics_without_time(run)] == [1, 2, 3, 4, 5, 6, 6]
    train("stage1", "--resume", "-l", run, "experiment.max_steps=7")


def test_a_rank_that_has_lost_its_launcher_saves_and_ends(tmp_path, monkeypatch):
    monkeypatch.setenv(LAUNCHER_VARIABLE, "job")
    monkeypatch.setattr("runtime.processes.launcher_watch.POLL_SECONDS", 0.001)
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    parents = [os.getppid()]
    monkeypatch.setattr(os, "getppid", lambda: parents[-1])
    run = session("stage1", "-m", config, "-r", tmp_path / "runs")
    original = run.stage.train_step

    def train_step(micro_batches, step, *args):
        if step == 2:
            parents.append(1)
            while "the launcher (process " not in (run.run_dir / "train.log").read_text():
                time.sleep(0.01)
        return original(micro_batches, step, *args)

    run.stage.train_step = train_step
    with pytest.raises(Preempted), run:
        run.train()
    assert complete_checkpoints(run.run_dir)[0].name == "step_00000003"


def test_a_launcher_that_is_lost_while_the_run_is_built_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv(LAUNCHER_VARIABLE, "job")
    parents = [os.getppid()]
    monkeypatch.setattr(os, "getppid", lambda: parents[-1])
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.max_steps": 10_000}))
    run = session("stage1", "-m", config, "-r", tmp_path / "runs")
    parents.append(1)
    with pytest.raises(Preempted), run:
        run.train()


@pytest.mark.slow
def test_ranks_end_when_their_launcher_was_killed(tmp_path):
    config = write_config(
        tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.max_steps": 100_000, "experiment.save_steps": 5})
    )
    launcher = start(*LAUNCHER, "--nproc-per-node=2", "main_stage1.py", "-m", config, "-r", tmp_path / "runs")
    while not list((tmp_path / "runs").glob("*/*/checkpoints/step_*/COMPLETE")):
        assert launcher.poll() is None, launcher.stderr.read()[-3000:]
        time.sleep(0.05)
    ranks = children_of(launcher.pid)
    launcher.send_signal(signal.SIGKILL)
    printed = launcher.communicate(timeout=200)[1]  # until the ranks have closed it too
    assert not any(map(is_running, ranks))
    saved = complete_checkpoints(only_run(tmp_path / "runs"))[0].name
    assert f"step {int(saved.removeprefix('step_'))} is saved, --resume goes on from there" in printed
    assert "Traceback" not in printed
    session("stage1", "--resume", "-l", only_run(tmp_path / "runs")).close()
