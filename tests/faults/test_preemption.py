"""SIGTERM, SIGINT and SIGUSR1 end a run at a step boundary, saved, with an exit code of its own; restarts go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from runtime.preemption import PREEMPTED_EXIT_CODE, Preempted, StopSignals
from tests.commands import LAUNCHER, start
from tests.ranks import children_of
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    only_run,
    session,
    stage1,
    train,
    write_config,
)
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.experiment import ExperimentConfig
from training.launch_record import LAUNCH_FILE

STEPS = 6
PLAN = {"experiment.max_steps": STEPS, "experiment.save_steps": STEPS, "experiment.test_steps": STEPS}
END = f"checkpoints/step_{STEPS:08d}"


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path / "tiny.yaml", stage1(PLAN))


def signalled(number: signal.Signals, at_step: int):
    """An `on_step` that sends this process a signal in the middle of the run."""

    def on_step(step: int) -> None:
        if step == at_step:
            os.kill(os.getpid(), number)

    return on_step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_the_step_and_exits_with_75(number, config, tmp_path):
    straight = train("stage1", "-m", config, "-r", tmp_path / "straight").run_dir
    before = signal.getsignal(number)
    with pytest.raises(Preempted) as ended:
        train("stage1", "-m", config, "-r", tmp_path / "stopped", on_step=signalled(number, 2))
    assert ended.value.code == PREEMPTED_EXIT_CODE == 75
    assert signal.getsignal(number) is before
    stopped = only_run(tmp_path / "stopped")
    assert [path.name for path in complete_checkpoints(stopped)] == ["step_00000003"], "not a step of the plan"
    assert "told to stop: step 3 is saved" in (stopped / "train.log").read_text()
    assert "Traceback" not in (stopped / "train.log").read_text()
    assert train("stage1", "--resume", "-l", stopped).run_dir == stopped
    assert differing(checkpoint_tensors(straight / END), checkpoint_tensors(stopped / END)) == []


def test_a_signal_in_the_last_step_is_a_finished_run(config, tmp_path):
    run = train("stage1", "-m", config, "-r", tmp_path, on_step=signalled(signal.SIGTERM, STEPS - 1))
    assert (run.run_dir / END).is_dir()


def test_several_signals_are_one(config, tmp_path):
    def on_step(step: int) -> None:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    with pytest.raises(Preempted):
        train("stage1", "-m", config, "-r", tmp_path, on_step=on_step)
    assert [path.name for path in complete_checkpoints(only_run(tmp_path))] == ["step_00000001"]


PRESSES = """
import os, signal, sys, time
from runtime.preemption import StopSignals

with StopSignals() as signals:
    for pause in map(float, sys.argv[1:]):
        os.kill(os.getpid(), signal.SIGINT)
        print(signals.received, flush=True)
        time.sleep(pause)
    print("went on", flush=True)
"""


@pytest.mark.parametrize(
    ("launched", "pauses", "code", "printed"),
    [
        (False, ["0"], 0, "SIGINT\nwent on\n"),
        (False, ["0", "0"], -signal.SIGINT, "SIGINT\n"),
        (True, ["0", "0"], 0, "SIGINT\nSIGINT\nwent on\n"),  # the terminal's and the launcher's
        (True, ["1.1", "0"], 130, "SIGINT\n"),
    ],
)
def test_a_second_press_ends_at_once(launched, pauses, code, printed, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    process = start("-c", PRESSES, *pauses)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, printed)
    assert "Traceback" not in err


def test_the_first_checkpoint_comes_after_a_time(config, tmp_path):
    run = train("stage1", "-m", config, "-r", tmp_path, "experiment.save_minutes=1e-6").run_dir
    assert [path.name for path in complete_checkpoints(run)] == [f"step_{STEPS:08d}", "step_00000001"]
    assert ExperimentConfig(batch_size=1).save_minutes == 10


def test_outside_the_loop_signals_keep_their_meaning():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signal.getsignal(signal.SIGTERM) is not before
        assert signals.received is None
    assert signal.getsignal(signal.SIGTERM) is before


def _train_two_ranks(rank: int, folder: str, config: str) -> bool:
    """Rank 1 alone is told to stop, in the second step; the ranks ask each other every third step. Whether it did."""
    on_step = signalled(signal.SIGUSR1, 1) if rank == 1 else None
    try:
        train("stage1", "-m", config, "-r", f"{folder}/runs", on_step=on_step)
    except Preempted:
        return True
    return False


def test_all_ranks_stop_at_the_same_step(on_ranks, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.signal_steps": 3}))
    assert on_ranks(_train_two_ranks, str(tmp_path), str(config)) == [True, True]
    assert [path.name for path in complete_checkpoints(only_run(tmp_path / "runs"))] == ["step_00000003"]


def test_a_restarted_process_continues_the_run_of_its_launch(config, tmp_path, monkeypatch):
    results = ["-m", config, "-r", tmp_path / "runs"]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    mine = train("stage1", *results).run_dir
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-18")
    other = train("stage1", *results).run_dir
    assert json.loads((mine / LAUNCH_FILE).read_text())["launch"] == "job-17"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = session("stage1", *results)
    again.close()
    assert (again.run_dir, again.start.step) == (mine, STEPS)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-19")
    new = session("stage1", *results)
    new.close()
    assert new.run_dir not in (mine, other)
    assert new.start.step == 0, "the first start of its launch died before its first checkpoint"


def test_auto_resume_continues_if_it_can(config, tmp_path):
    results = ["-m", config, "-r", tmp_path / "runs", "--auto-resume"]
    with pytest.raises(Preempted):
        train("stage1", *results, on_step=signalled(signal.SIGTERM, 1))
    stopped = only_run(tmp_path / "runs")
    assert train("stage1", *results).run_dir == stopped
    assert (stopped / END).is_dir()


def _torchrun(*command: object) -> subprocess.Popen[str]:
    return start(*LAUNCHER, "--nproc-per-node=2", *command)


def _wait_for_a_checkpoint(launcher: subprocess.Popen, results: Path) -> None:
    deadline = time.monotonic() + 200
    while not list(results.glob("*/*/checkpoints/step_*/COMPLETE")):
        assert launcher.poll() is None, launcher.stderr.read()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_run_goes_on(tmp_path):
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1(PLAN | {"experiment.max_steps": 60, "experiment.save_steps": 5, "experiment.test_steps": 60}),
    )
    flags = ["main_stage1.py", "-m", config, "-r"]
    straight = _torchrun(*flags, tmp_path / "straight")
    killed = _torchrun("--max-restarts", 2, *flags, tmp_path / "killed")
    _wait_for_a_checkpoint(killed, tmp_path / "killed")
    os.kill(children_of(killed.pid)[1], signal.SIGKILL)
    printed = killed.communicate(timeout=300)[1]
    assert killed.returncode == 0, printed[-3000:]
    assert "resumed from" in printed
    assert straight.wait(300) == 0
    ends = [only_run(tmp_path / name) / "checkpoints/step_00000060" for name in ("straight", "killed")]
    assert differing(*map(checkpoint_tensors, ends)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signalled_torchrun_lets_its_workers_save(number, tmp_path):
    """As docs/launch/slurm.sbatch starts it: the launcher passes the signal on and waits."""
    config = write_config(
        tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.max_steps": 5000, "experiment.save_steps": 5})
    )
    launcher = _torchrun(
        "--max-restarts",
        2,
        "--signals-to-handle",
        "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "--shutdown-timeout",
        120,
        "main_stage1.py",
        "-m",
        config,
        "-r",
        tmp_path / "runs",
    )
    _wait_for_a_checkpoint(launcher, tmp_path / "runs")
    launcher.send_signal(number)
    printed = launcher.communicate(timeout=300)[1]
    assert launcher.returncode != 0
    saved = complete_checkpoints(only_run(tmp_path / "runs"))[0].name
    assert f"told to stop: step {int(saved.removeprefix('step_'))} is saved" in printed
