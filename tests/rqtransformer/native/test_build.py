"""The compiled library: built once, taken from a private folder only, as it was made; left out where it cannot be."""

from __future__ import annotations

import ctypes.util
import json
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rqtransformer.native import build as building
from rqtransformer.native import calls
from rqtransformer.native.private_folder import is_private_file, make_private, why_not_private

OTHER_FLAGS = (*building.FLAGS, "-g")
OF_MATH = "cos"  # a function of the library that stands for a compiled one


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    """One line for every library that `compiler` was asked for; the cache is in `tmp_path`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "SYMBOLS", (OF_MATH,))
    monkeypatch.setattr(building.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    return tmp_path / "log"


def compiler(folder: Path, script: str, macros: str = "exit 0") -> str:
    """A program that runs `script` with $last the file to be written, and `macros` when asked for those."""
    path = folder / "compiler"
    lines = ["#!/bin/sh", "for last; do :; done", f'[ "$last" = /dev/null ] && {{ {macros}; }}']
    path.write_text("\n".join([*lines, f"echo run >> {folder}/log", script]) + "\n")
    path.chmod(0o755)
    return str(path)


def sound_compiler(folder: Path) -> str:
    return compiler(folder, f"cp {_library_of_math()} $last")


def _library_of_math() -> Path:
    library = ctypes.CDLL(ctypes.util.find_library("m"))  # by name: only the process knows where it lies
    assert hasattr(library, OF_MATH)
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(Path(line.split()[-1]) for line in lines if "/libm.so" in line or "/libm-" in line)


def found(tmp_path: Path, program: str, monkeypatch) -> tuple[Path | None, str]:
    """What a process gets and the warning that it prints."""
    monkeypatch.setenv("CXX", program)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        path = building.library_path.__wrapped__()
    assert len(caught) <= 1
    text = str(caught[0].message) if caught else ""
    assert "\n" not in text
    return path, text


def test_a_library_is_built_once(log, tmp_path):
    program, cache = sound_compiler(tmp_path), tmp_path / "cache"
    first = building.build(program, cache)
    assert building.build(program, cache) == first
    assert log.read_text() == "run\n"
    (manifest,) = cache.glob("*.json")
    assert sorted(os.listdir(cache)) == sorted([first.name, manifest.name])
    assert first.name == json.loads(manifest.read_text())["library"]
    building.build(program, cache, OTHER_FLAGS)
    assert log.read_text() == "run\n" * 2


def _cut_short(library: Path, manifest: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def _one_byte_else(library: Path, manifest: Path) -> None:
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)


def _a_link(library: Path, manifest: Path) -> None:
    elsewhere = library.parent.parent / "elsewhere.so"
    os.replace(library, elsewhere)
    library.symlink_to(elsewhere)


def _elsewhere(library: Path, manifest: Path) -> None:
    os.replace(library, library.parent.parent / library.name)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"library": f"../{library.name}"}))


DAMAGES = {
    "cut short": _cut_short,
    "one byte": _one_byte_else,
    "gone": lambda library, manifest: library.unlink(),
    "a link": _a_link,
    "in another folder": _elsewhere,
    "others may write it": lambda library, manifest: library.chmod(0o777),
    "no manifest": lambda library, manifest: manifest.unlink(),
    "half a manifest": lambda library, manifest: os.truncate(manifest, 20),
    "a nested manifest": lambda library, manifest: manifest.write_text("[" * 50_000),
    "a manifest of nothing": lambda library, manifest: manifest.write_text("[]"),
    "a manifest of numbers": lambda library, manifest: manifest.write_text('{"library": 1, "sha256": 2}'),
    "a manifest that others may write": lambda library, manifest: manifest.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_library_that_is_not_as_it_was_made_is_made_again(damage, log, tmp_path):
    program, cache = sound_compiler(tmp_path), tmp_path / "cache"
    first = building.build(program, cache)
    made = first.read_bytes()
    (manifest,) = cache.glob("*.json")
    damage(first, manifest)
    again = building.build(program, cache)
    assert log.read_text() == "run\n" * 2
    assert (again.read_bytes(), again.parent, again.is_symlink()) == (made, cache, False)


@pytest.mark.parametrize(
    ("script", "macros", "reason"),
    [
        ("echo no such header >&2; exit 1", "exit 0", "failed with exit code 1: no such header"),
        ("exit 0", "exit 3", "failed with exit code 3"),
        ("kill -9 $$", "exit 0", "failed with exit code -9"),
        ("exit 0", "exit 0", "No such file"),
        ("echo half > $last", "exit 0", "failed with exit code 1"),
        (f"head -c 5000 {_library_of_math()} > $last", "exit 0", "failed with exit code"),
        ("cp $0 $last", "exit 0", "failed with exit code 1"),
        ("yes", "exit 0", "prints without end"),
        ("exit 0", "yes", "prints without end"),
        ("echo '\033[31m' >&2; exit 1", "exit 0", "failed with exit code 1"),
    ],
)
def test_a_compiler_that_fails_is_one_warning_and_not_asked_again(script, macros, reason, log, tmp_path, monkeypatch):
    program = compiler(tmp_path, script, macros)
    path, warning = found(tmp_path, program, monkeypatch)
    assert path is None
    assert reason in warning
    assert warning.isprintable()
    assert not list((tmp_path / "cache").glob("*/*.so"))
    asked = log.read_text() if log.exists() else ""
    if reason == "No such file":  # it says that it wrote one: not its own failure
        return
    path, warning = found(tmp_path, program, monkeypatch)
    assert path is None
    assert reason in warning and "it is asked again after a day" in warning
    assert (log.read_text() if log.exists() else "") == asked


@pytest.mark.parametrize(
    ("script", "macros"),
    [("sleep 30", "exit 0"), ("exit 0", "sleep 30"), ("sleep 30 & exit 0", "exit 0"), ("mkfifo $last", "exit 0")],
)
def test_a_compiler_that_hangs_is_ended_with_what_it_started(script, macros, log, tmp_path, monkeypatch):
    monkeypatch.setattr(building, "BUILD_SECONDS", 0.5)
    marked = [line.replace("sleep 30", f"sleep 30.{os.getpid()}") for line in (script, macros)]
    path, warning = found(tmp_path, compiler(tmp_path, *marked), monkeypatch)
    assert path is None
    assert "took longer than" in warning
    end = time.monotonic() + 20  # those that are ended need a moment
    while left := [pid for pid in os.listdir("/proc") if pid.isdecimal() and f"30.{os.getpid()}" in _command(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.01)


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_failure_is_forgotten_after_a_day_or_with_another_compiler(log, tmp_path, monkeypatch):
    assert found(tmp_path, compiler(tmp_path, "exit 1"), monkeypatch)[0] is None
    program = sound_compiler(tmp_path)  # the same name, another file
    library = found(tmp_path, program, monkeypatch)[0]
    assert library is not None
    library.unlink()
    assert found(tmp_path, compiler(tmp_path, "exit 1"), monkeypatch)[0] is None
    now = time.time()
    asked = log.read_text()
    assert found(tmp_path, str(tmp_path / "compiler"), monkeypatch)[0] is None
    assert log.read_text() == asked
    monkeypatch.setattr(building.time, "time", lambda: now + building.RETRY_SECONDS + 1)
    assert found(tmp_path, str(tmp_path / "compiler"), monkeypatch)[0] is None
    assert log.read_text() == asked + "run\n"


def test_several_builders_at_once_whose_files_differ(log, tmp_path):
    program, cache = (
        compiler(tmp_path, f"cp {_library_of_math()} $last; sleep 0.1; echo $$ >> $last"),
        tmp_path / "cache",
    )
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: building.build(program, cache), range(4)))
    assert len(log.read_text().splitlines()) > 1
    assert all(path.is_file() for path in paths)
    assert building.build(program, cache) in paths
    assert not list(cache.glob("unfinished-*"))


def test_what_killed_builds_left_is_swept(log, tmp_path):
    cache = tmp_path / "cache"
    make_private(cache)
    old, new = cache / "unfinished-1.so", cache / "unfinished-2.so"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    building.build(sound_compiler(tmp_path), cache)
    assert not old.exists()
    assert new.exists()


def test_without_compiler_or_when_switched_off_there_is_no_library(log, tmp_path, monkeypatch):
    assert found(tmp_path, "no-such-compiler", monkeypatch) == (None, "")
    monkeypatch.setenv(building.SWITCH, "0")
    assert found(tmp_path, sound_compiler(tmp_path), monkeypatch) == (None, "")
    monkeypatch.setenv(building.SWITCH, "1")
    (tmp_path / "cache").write_text("a file where the folder should be")
    path, warning = found(tmp_path, sound_compiler(tmp_path), monkeypatch)
    assert path is None
    assert "decoding and training on a CPU run without compiled code" in warning


def test_a_user_without_a_home(log, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    path, warning = found(tmp_path, sound_compiler(tmp_path), monkeypatch)
    assert path is None
    assert "home directory" in warning


def test_a_library_that_does_not_load_or_lacks_a_function_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "broken.so").write_bytes(b"no library")
    for path in (tmp_path / "broken.so", _library_of_math()):
        monkeypatch.setattr(calls, "library_path", lambda path=path: path)
        with pytest.warns(UserWarning, match="without compiled code"):
            assert calls.library.__wrapped__() is None


OPEN = {"the folder": ("cache/rqtransformer", 0o777), "a parent": ("cache", 0o777), "to the group": ("cache", 0o770)}


@pytest.mark.parametrize(("place", "mode"), OPEN.values(), ids=OPEN)
def test_nothing_is_loaded_from_where_others_may_write(place, mode, log, tmp_path, monkeypatch):
    monkeypatch.setattr("rqtransformer.native.private_folder._is_own_group", lambda group: False)
    program = sound_compiler(tmp_path)
    path, _ = found(tmp_path, program, monkeypatch)
    assert path is not None
    (tmp_path / place).chmod(mode)
    path, warning = found(tmp_path, program, monkeypatch)
    assert path is None
    assert f"others may write {tmp_path / place} (mode {mode:o})" in warning
    assert log.read_text() == "run\n"
    (tmp_path / place).chmod(0o700)
    assert found(tmp_path, program, monkeypatch)[0] is not None


def test_folders_and_files_of_others(tmp_path, monkeypatch):
    folder, file = tmp_path / "folder", tmp_path / "folder/file"
    make_private(folder)
    file.write_bytes(b"x")
    assert why_not_private(folder) is None
    assert is_private_file(file)
    (tmp_path / "link").symlink_to(folder)
    assert why_not_private(tmp_path / "link") is None
    tmp_path.chmod(0o1777)  # as /tmp: nobody else can rename what is there
    assert why_not_private(folder) is None
    assert "others may write" in why_not_private(tmp_path)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "belongs to another user" in why_not_private(folder)
    assert not is_private_file(file)


def test_missing_parents_are_private_whatever_the_mask(tmp_path):
    before = os.umask(0)
    try:
        make_private(tmp_path / "a/b/c")
    finally:
        os.umask(before)
    assert why_not_private(tmp_path / "a/b/c") is None
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
