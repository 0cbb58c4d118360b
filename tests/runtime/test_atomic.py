"""Directories are complete or absent, whatever interrupts their writer."""

from __future__ import annotations

import hashlib
import os

import pytest

from runtime import atomic
from runtime.atomic import atomic_directory, is_complete, remove_directory, remove_partial_directories, sha256_of_file
from runtime.errors import UserError


def names(directory) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def write(final, text: str) -> None:
    with atomic_directory(final) as partial:
        (partial / "file").write_text(text)


def test_a_directory_appears_complete(tmp_path):
    final = tmp_path / "parent" / "a"
    with atomic_directory(final) as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("x")
        assert not final.exists()
        assert partial.parent == final.parent, "a rename is atomic within one file system only"
    assert is_complete(final)
    assert (final / "inner" / "file").read_text() == "x"
    assert names(final.parent) == ["a"]


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "a") as partial:
        (partial / "file").write_text("x")
        raise RuntimeError
    assert names(tmp_path) == []


def test_a_failure_leaves_the_previous_one(tmp_path):
    write(tmp_path / "a", "old")
    with pytest.raises(UserError, match=r"cannot write .*/a: .*No space left"), atomic_directory(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert (tmp_path / "a" / "file").read_text() == "old"
    assert is_complete(tmp_path / "a")


def test_an_existing_directory_is_replaced(tmp_path):
    write(tmp_path / "a", "old")
    write(tmp_path / "a", "new")
    assert (tmp_path / "a" / "file").read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("calls_before_kill", range(8))
def test_a_kill_at_any_call_leaves_an_old_or_a_new_one_or_none(tmp_path, monkeypatch, calls_before_kill):
    """The writer stops dead at its n-th system call that matters: no clean-up runs."""

    class Killed(BaseException):
        pass

    left = calls_before_kill

    def counted(function):
        def call(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return function(*args, **kwargs)

        return call

    write(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(atomic.shutil, "rmtree", counted(atomic.shutil.rmtree))
    try:
        partial = atomic.begin_directory(tmp_path / "a")
        (partial / "file").write_text("new")
        atomic.commit_directory(partial, tmp_path / "a")
    except Killed:
        pass
    monkeypatch.undo()
    if is_complete(tmp_path / "a"):
        assert (tmp_path / "a" / "file").read_text() in ("old", "new")
    write(tmp_path / "a", "after")
    assert (tmp_path / "a" / "file").read_text() == "after"


def test_the_mark_goes_first_when_a_directory_is_removed(tmp_path, monkeypatch):
    write(tmp_path / "a", "x")
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda directory: None)
    remove_directory(tmp_path / "a")
    assert (tmp_path / "a" / "file").exists()
    assert not is_complete(tmp_path / "a")


def test_only_leftovers_of_the_named_kind_are_cleaned_up(tmp_path):
    write(tmp_path / "step_1", "x")
    for name in ("step_2", ".partial-step_3", ".partial-replaced-step_1", "other", ".partial-other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_file").write_text("x")
    remove_partial_directories(tmp_path, "step_")
    assert names(tmp_path) == [".partial-other", "other", "step_1", "step_file"]


def test_text_files_are_replaced_whole(tmp_path, monkeypatch):
    file = tmp_path / "new" / "a.txt"
    atomic.write_text_atomically(file, "old")

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "flush_to_disk", full)
    with pytest.raises(UserError, match="No space left"):
        atomic.write_text_atomically(file, "new")
    assert file.read_text() == "old"
    assert names(file.parent) == ["a.txt"]


def test_sha256(tmp_path):
    content = os.urandom((1 << 22) + 17)
    (tmp_path / "file").write_bytes(content)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()
