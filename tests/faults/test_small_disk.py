"""A run on a real disk of eight megabytes: it fills up, stops with one line, and the last checkpoint is whole."""

from __future__ import annotations

import functools
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import environment
from tests.repository import ROOT
from tests.training.checkpoint_files import load_checkpoint
from tests.training.tiny_runs import only_run, stage1, train, write_config
from training.checkpoints.checkpoint_directories import complete_checkpoints, find_sound_checkpoint

# a file system of its own, which ends with the process: no rights on this machine's disks are needed
UNSHARE = ("unshare", "--mount", "--map-root-user")


@functools.cache
def can_mount() -> bool:
    """Whether this system lets a process mount a small file system for itself."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*UNSHARE, "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"], capture_output=True)
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not can_mount(), reason="this system lets nobody mount (test_disks.py raises instead)")


def on_small_disk(disk: Path, kept: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Runs shell lines with eight megabytes mounted at `disk`; what is there at the end is copied to `kept`."""
    disk.mkdir()
    lines = (
        f"mount -t tmpfs -o size=8m tmpfs {shlex.quote(str(disk))} && {{ {script}; }}; code=$?; "
        f"cp -r {shlex.quote(str(disk))} {shlex.quote(str(kept))}; exit $code"
    )
    return subprocess.run(
        [*UNSHARE, "sh", "-c", lines],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        env=environment(),
    )


def command(*flags: object) -> str:
    """`main_stage1.py` with these flags, for a shell."""
    return shlex.join([sys.executable, "main_stage1.py", *map(str, flags)])


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that says what went wrong."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.slow
def test_a_disk_that_fills_up_then_turns_read_only(tmp_path):
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1({"experiment.max_steps": 400, "experiment.save_steps": 2, "experiment.keep_checkpoints": 1000}),
    )
    done = on_small_disk(disk, kept, command("-m", config, "-r", disk / "runs"))
    line = error_line(done)
    assert str(disk) in line and "MB" in line
    run_dir = only_run(kept / "runs")
    saved = complete_checkpoints(run_dir)
    steps = [load_checkpoint(path)["meta"]["step"] for path in saved]
    assert sorted(steps) == list(range(2, 2 * len(saved) + 1, 2)) and len(saved) >= 2
    assert find_sound_checkpoint(run_dir).name == f"step_{max(steps):08d}"
    assert not list(run_dir.glob("checkpoints/.partial-*"))
    # with room again the run goes on from there
    end = max(steps) + 1
    assert train("stage1", "--resume", "-l", run_dir, f"experiment.max_steps={end}").start.step == max(steps)
    assert find_sound_checkpoint(run_dir).name == f"step_{end:08d}"

    # and a disk that has turned read-only says so
    inner = shlex.quote(str(disk))
    disk.rmdir()
    done = on_small_disk(
        disk, tmp_path / "after", f"mount -o remount,ro {inner} && " + command("-m", config, "-r", disk / "runs")
    )
    assert "ead-only" in error_line(done)
