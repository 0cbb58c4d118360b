"""A run directory has one writer, which dies with its process; on shared disks it lives as long as its heartbeat."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.processes import run_ownership
from runtime.processes.run_ownership import OWNER_FILE, Owner, RunOwnership, read_owner
from tests.commands import start

HOLDS = """
import os, sys, time
from pathlib import Path
from runtime.processes.run_ownership import RunOwnership
ownership = RunOwnership(Path(sys.argv[1]))
if os.fork() == 0:  # a data worker, which outlives its rank
    del ownership
    print("held", flush=True)
time.sleep(60)
"""
ELSEWHERE = Owner("node7", "another boot", 4711, "2026-01-02 03:04:05 UTC", "token")


def write_owner(run_dir: Path, owner: Owner) -> Path:
    file = run_dir / OWNER_FILE
    file.write_text(json.dumps(asdict(owner)))
    return file


def test_a_second_writer_is_told_who_holds_the_run(tmp_path):
    first = RunOwnership(tmp_path)
    with pytest.raises(UserError) as refused:
        RunOwnership(tmp_path)
    line = str(refused.value)
    assert f"{tmp_path} is being written by process {os.getpid()} on {first.owner.host} since " in line
    assert first.owner.since in line and "\n" not in line
    first.release()
    assert not (tmp_path / OWNER_FILE).exists()
    RunOwnership(tmp_path).release()


def test_another_name_of_the_directory_is_the_same_run(tmp_path):
    run, link = tmp_path / "run", tmp_path / "latest"
    run.mkdir()
    link.symlink_to(run)
    first = RunOwnership(run)
    with pytest.raises(UserError, match=f"{link} is being written by process {os.getpid()}"):
        RunOwnership(link)
    first.release()


def test_an_owner_that_nothing_refers_to_has_let_go(tmp_path):
    RunOwnership(tmp_path)
    gc.collect()
    RunOwnership(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no data workers are forked here")
def test_a_killed_owner_holds_nothing_though_its_worker_lives(tmp_path):
    process = start("-c", HOLDS, tmp_path)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            RunOwnership(tmp_path)
        process.kill()
        process.wait()
        RunOwnership(tmp_path).release()
    finally:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            if str(tmp_path).encode() in _content(file):
                os.kill(int(file.parent.name), signal.SIGKILL)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def test_the_owner_on_another_host_counts_while_its_time_moves(tmp_path, monkeypatch):
    """Its lock is not seen here."""
    monkeypatch.setattr(run_ownership, "SILENT_SECONDS", 60.0)
    file = write_owner(tmp_path, ELSEWHERE)
    slept = []

    def renewed(seconds: float) -> None:
        slept.append(seconds)
        os.utime(file, (time.time() + len(slept), time.time() + len(slept)))

    monkeypatch.setattr(run_ownership.time, "sleep", renewed)
    with pytest.raises(UserError, match="process 4711 on node7 since 2026-01-02 03:04:05 UTC"):
        RunOwnership(tmp_path)
    assert read_owner(file) == ELSEWHERE
    assert len(slept) == 1


def test_a_silent_owner_on_another_host_is_succeeded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_ownership, "SILENT_SECONDS", 0.3)
    file = write_owner(tmp_path, ELSEWHERE)
    ownership = RunOwnership(tmp_path)
    assert read_owner(file) == ownership.owner
    assert "the run was last written by process 4711 on node7" in capsys.readouterr().err
    ownership.release()
    # long silent by the disk's own clock: nobody waits
    monkeypatch.setattr(run_ownership, "SILENT_SECONDS", 60.0)
    os.utime(write_owner(tmp_path, ELSEWHERE), (1, 1))
    monkeypatch.setattr(run_ownership.time, "sleep", lambda seconds: pytest.fail("waits"))
    RunOwnership(tmp_path).release()
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.name != run_ownership.LOCK_FILE) == []


def test_an_owner_that_was_succeeded_is_told_and_takes_nothing_along(tmp_path, monkeypatch):
    """It stood still for too long (a suspended machine), and another host went on."""
    monkeypatch.setattr(run_ownership, "HEARTBEAT_SECONDS", 0.02)
    lost: list[str] = []
    ownership = RunOwnership(tmp_path, lost.append)
    file = write_owner(tmp_path, ELSEWHERE)
    while not lost:
        time.sleep(0.01)
    assert "was taken over by process 4711 on node7" in lost[0]
    ownership.release()
    assert read_owner(file) == ELSEWHERE


def test_the_heartbeat_renews_the_time_and_a_lost_file(tmp_path, monkeypatch):
    monkeypatch.setattr(run_ownership, "HEARTBEAT_SECONDS", 0.02)
    ownership = RunOwnership(tmp_path, pytest.fail)
    file = tmp_path / OWNER_FILE
    os.utime(file, (1, 1))
    while file.stat().st_mtime == 1:
        time.sleep(0.01)
    file.unlink()
    while read_owner(file) != ownership.owner:
        time.sleep(0.01)
    ownership.release()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', "\0" * 64, json.dumps(asdict(replace(ELSEWHERE, pid=-1)))]
)
def test_a_damaged_owner_file_is_nobody(tmp_path, text):
    (tmp_path / OWNER_FILE).write_text(text)
    assert read_owner(tmp_path / OWNER_FILE) is None
    ownership = RunOwnership(tmp_path)
    assert read_owner(tmp_path / OWNER_FILE) == ownership.owner
    ownership.release()


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}"):
        RunOwnership(tmp_path)
