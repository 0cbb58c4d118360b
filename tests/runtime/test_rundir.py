"""Run directories are new, named by time, and never reused."""

from __future__ import annotations

import re

import pytest

from runtime.errors import UserError
from runtime.rundir import latest_run, new_run_dir, runs


def test_runs_started_in_the_same_second_do_not_meet(tmp_path):
    runs = [new_run_dir(tmp_path / "runs", "digits") for _ in range(3)]
    assert len(set(runs)) == 3
    assert all(run.is_dir() and run.parent == tmp_path / "runs" / "digits" for run in runs)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", runs[0].name)


def test_the_newest_run_is_found_among_other_things(tmp_path):
    assert latest_run(tmp_path, "digits") is None
    for name in ("2024-01-02_03-04-05", "2025-01-01_00-00-00_mine", "zz", "2026-01-01"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    (tmp_path / "digits" / "2027-01-01_00-00-00").write_text("a file")
    assert latest_run(tmp_path, "digits").name == "2025-01-01_00-00-00_mine"
    newest = new_run_dir(tmp_path, "digits")
    assert latest_run(tmp_path, "digits") == newest


def test_the_tenth_run_of_a_second_is_newer_than_the_second(tmp_path):
    for name in ("2025-01-01_00-00-00", "2025-01-01_00-00-00_2", "2025-01-01_00-00-00_10"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    assert latest_run(tmp_path, "digits").name == "2025-01-01_00-00-00_10"


def test_all_runs_are_listed_newest_first(tmp_path):
    assert runs(tmp_path, "digits") == []
    names = ["2025-01-01_00-00-00_10", "2025-01-01_00-00-00_2", "2025-01-01_00-00-00", "2024-12-31_23-59-59_mine"]
    for name in (*sorted(names), "zz"):
        (tmp_path / "digits" / name).mkdir(parents=True)
    assert [run.name for run in runs(tmp_path, "digits")] == names
    (tmp_path / "digits" / names[2] / "checkpoints").mkdir()
    # what a resuming caller does: an empty newer run does not hide the one that can go on
    assert next(run for run in runs(tmp_path, "digits") if (run / "checkpoints").is_dir()).name == names[2]


def test_a_postfix_is_part_of_the_name(tmp_path):
    assert new_run_dir(tmp_path, "digits", "lr1").name.endswith("_lr1")
    with pytest.raises(UserError, match="postfix 'a/b'"):
        new_run_dir(tmp_path, "digits", "a/b")


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot create a run directory"):
        new_run_dir(tmp_path / "runs", "digits")
