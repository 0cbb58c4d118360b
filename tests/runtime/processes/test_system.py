"""What only POSIX systems have is asked for in one file, and something stands in its place elsewhere."""

from __future__ import annotations

import ast
import json
import os
import select
import signal
import subprocess
import sys

import pytest

from runtime.processes import system
from tests.architecture import all_sources, dotted, product_sources
from tests.commands import succeed
from tests.repository import ROOT
from tests.runtime.processes.without_posix import HIDDEN, HIDDEN_MODULES, Windowed

# the C++ of stage 2 is loaded on POSIX systems alone; the checks of a GPU start processes there alone
ALLOWED = ("runtime/processes/system.py", "rqtransformer/native/", "benchmarks/gpu/")


@pytest.fixture
def elsewhere(monkeypatch):
    """`runtime.processes.system` on a system that is not POSIX."""
    for module in (os, select, signal):
        monkeypatch.setattr(system, module.__name__, Windowed(module))
    monkeypatch.setattr(system, "_resource", lambda: None)


def test_nobody_else_asks_for_what_only_posix_systems_have():
    hidden = {f"{module}.{name}" for module, names in HIDDEN.items() for name in names}
    found = []
    for source in product_sources(ROOT):
        if source.name.startswith(ALLOWED):
            continue
        used = {dotted(node) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
        found += [f"{source.name} uses {name}" for name in sorted(hidden & used)]
        imported = {name.split(".")[0] for name in source.imports}
        found += [f"{source.name} imports {name}" for name in sorted(imported & {*HIDDEN_MODULES})]
    assert found == []


def test_text_files_have_an_encoding_that_no_system_decides():
    """Windows takes its own for what says none."""
    places = {"read_text": 0, "write_text": 1}  # of the encoding among the arguments
    unsaid = []
    for source in product_sources(ROOT):
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in places:
                said = any(keyword.arg == "encoding" for keyword in node.keywords)
                if not said and len(node.args) <= places[node.func.attr]:
                    unsaid.append(f"{source.name}:{node.lineno}")
    assert unsaid == []


def test_what_stands_in_its_place(elsewhere, tmp_path):
    file = tmp_path / "bytes"
    file.write_bytes(bytes(range(100)) + b"\r\n")
    descriptor = os.open(file, system.READ_ONLY)
    try:
        assert system.read_at(descriptor, 5, 97) == bytes([97, 98, 99]) + b"\r\n"
        assert system.read_at(descriptor, 50, 95) == bytes(range(95, 100)) + b"\r\n"  # fewer at the end
        system.touch(descriptor, file)
        system.take_room(descriptor, 1000)
    finally:
        os.close(descriptor)
    system.flush_to_disk(tmp_path)
    system.flush_to_disk(file)
    assert system.user_mark().isalnum() and system.usable_cores() == os.cpu_count()
    assert system.is_alive(os.getpid()) and system.is_alive(2**22 + 7)
    assert system.is_own(file.stat()) and not system.has_owners()
    assert system.peak_memory_bytes() is None and not system.limit_this_process(1 << 30, 10)
    assert system.reader_is_gone(1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of POSIX systems")
def test_what_posix_systems_say():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert system.is_alive(os.getpid()) and not system.is_alive(process.pid)
    assert system.peak_memory_bytes() > 10**7
    assert {"SIGTERM", "SIGUSR1", "SIGINT"} == {number.name for number in system.STOP_SIGNALS}
    reading, writing = os.pipe()
    assert not system.reader_is_gone(writing)
    os.close(reading)
    assert system.reader_is_gone(writing)
    os.close(writing)


def test_no_boot_id_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "_BOOT_ID", tmp_path / "none")
    assert system.boot_id() == ""


@pytest.mark.slow
def test_everything_is_imported_and_a_run_is_made_where_they_are_missing(tmp_path):
    program = ROOT / "tests" / "runtime" / "processes" / "without_posix.py"
    said = json.loads(succeed(program, tmp_path, timeout=280).out.splitlines()[-1])
    assert said["modules"] > 400 and said["scripts"] == len(list(ROOT.glob("*.py"))) and len(said["missing"]) < 20
    assert said["peak"] is None and not said["limited"] and "SIGUSR1" not in said["signals"]
    assert said["pairs"] == [True, True, True]  # other packages see this system as it is
    assert (tmp_path / "given" / "images" / "red.png").is_file()


def test_the_sources_were_looked_at():
    assert len(list(all_sources(ROOT))) > 800
