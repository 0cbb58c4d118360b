"""User errors end a script with one line and exit code 2."""

from __future__ import annotations

import io

import pytest

from runtime.errors import UserError, exit_on_user_error, first_few, one_line
from tests.commands import start


def test_a_user_error_is_one_line_and_exit_code_2(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise UserError("no such file x.yaml;\n  did you mean\ty.yaml?")
    assert exit_info.value.code == 2
    assert capsys.readouterr().err == "error: no such file x.yaml; did you mean y.yaml?\n"


def test_other_ranks_say_who_they_are(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError("broken")
    assert capsys.readouterr().err == "error (rank 3): broken\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ValueError, match="ours"), exit_on_user_error():
        raise ValueError("ours")


def test_further_types_can_be_named(capsys):
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error(FileNotFoundError):
        open("/nonexistent/file")
    assert exit_info.value.code == 2
    assert "/nonexistent/file" in capsys.readouterr().err


def test_the_traceback_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("RQ_TRACEBACK", "1")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError("broken")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"), [(KeyError("name"), "name"), (ValueError(""), "ValueError"), (ValueError("a\nb"), "a b")]
)
def test_one_line(error, text):
    assert one_line(error) == text


def test_ctrl_c_is_a_line_and_its_own_exit_code(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit) as exit_info, exit_on_user_error():
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "thing", [object(), io.BytesIO(), test_a_bug_keeps_its_traceback, [].append, io.BytesIO().read]
)
def test_messages_carry_no_addresses(thing):
    assert "0x" not in one_line(ValueError(f"cannot read {thing!r}"))


@pytest.mark.parametrize("lines", [1, 10000])
def test_a_reader_who_has_seen_enough_is_no_error(lines):
    script = f"""
from runtime.errors import exit_on_user_error
import time
with exit_on_user_error(OSError):
    time.sleep(1)
    print("line\\n" * {lines})
"""
    process = start("-c", script)
    process.stdout.close()
    with process.stderr:
        assert (process.wait(120), process.stderr.read()) == (141, "")


@pytest.mark.parametrize(("names", "shown"), [([], ""), (["a"], "a"), ([1, 2, 3], "1, 2, 3"), ("abcd", "a, b, c, ...")])
def test_dots_stand_for_names_that_are_not_shown_and_for_nothing_else(names, shown):
    assert first_few(names) == shown
