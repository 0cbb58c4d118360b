"""Text from elsewhere acts on no terminal, no log and no page."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from data.images.file_dataset import ReplacingDataset
from rqstack.printable import escaped, printable
from runtime.cli import ArgumentParser
from runtime.errors import PrintableFormatter, UserError, exit_on_user_error, first_few, one_line, say, warn
from runtime.runlog import LOG_FILE, RunLog

CLEAR_SCREEN = "\x1b[2J\x1b]0;title\x07a\nerror: forged\r\x9b31m\u202eb"
ACTING = set("\x1b\x07\n\r\x9b\u202e")


def acts(text: str) -> bool:
    return bool(ACTING & set(text))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("café 日本 ✨ 👩\u200d🚀", "café 日本 ✨ 👩\u200d🚀"),
        ("a\u3000b\u00a0c", "a\u3000b\u00a0c"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\tc\x00\x7f", "a\\nb\\tc\\x00\\x7f"),
        ("\x9b2J", "\\x9b2J"),
        ("\u2028\u202e\u2066\ufeff", "\\u2028\\u202e\\u2066\\ufeff"),
        ("photo_\udcff.png", "photo_\\udcff.png"),
    ],
)
def test_what_is_shown(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode("utf-8")


def test_pages_show_it_too():
    assert escaped("<b>\x1b\"'") == "&lt;b&gt;\\x1b&quot;&#x27;"
    assert not acts(escaped(CLEAR_SCREEN))


def test_errors_and_names():
    assert not acts(one_line(ValueError(CLEAR_SCREEN)))
    assert not acts(first_few([CLEAR_SCREEN, "b"]))


def test_the_error_line_of_a_script(capsys):
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError(f"no image {CLEAR_SCREEN}")
    assert not acts(capsys.readouterr().err.removesuffix("\n"))


def test_a_wrong_flag(capsys):
    with pytest.raises(SystemExit):
        ArgumentParser().parse_args([f"--{CLEAR_SCREEN}"])
    assert not acts(capsys.readouterr().err.removesuffix("\n"))


def test_what_scripts_say(capsys):
    say(f"images to {CLEAR_SCREEN}")
    warn(CLEAR_SCREEN)
    captured = capsys.readouterr()
    assert not acts(captured.out.removesuffix("\n"))
    assert captured.err.startswith("warning: ")
    assert not acts(captured.err.removesuffix("\n"))


def test_a_file_name_that_is_no_text_can_be_said(monkeypatch):
    """Printing it was a UnicodeEncodeError."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", out)
    say("photo_\udcff.png")
    out.seek(0)
    assert out.read() == "photo_\\udcff.png\n"


def test_the_log_of_a_run(tmp_path, capsys):
    with RunLog(tmp_path, loggers=()) as log:
        log.warning(f"skipping {CLEAR_SCREEN}")
        log.log_metrics(1, {f"loss{CLEAR_SCREEN}": 1.0})
    with pytest.raises(ValueError, match="forged"), RunLog(tmp_path, loggers=()):
        raise ValueError(f"\udcff{CLEAR_SCREEN}")
    text = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert not acts(text.replace("\n", ""))
    assert "skipping \\x1b" in text
    assert "ValueError: \\udcff\\x1b" in text
    assert not any(line.startswith("error: forged") for line in text.splitlines())
    assert not acts(capsys.readouterr().err.replace("\n", ""))


def test_records_without_a_handler(capsys, monkeypatch):
    """As modules of `data` log what they found, before there is a run."""
    monkeypatch.setattr(logging, "lastResort", logging._StderrHandler(logging.WARNING))
    with exit_on_user_error():
        record = logging.LogRecord(ReplacingDataset.__module__, logging.WARNING, "", 0, "%s", (CLEAR_SCREEN,), None)
        logging.lastResort.handle(record)
    assert not acts(capsys.readouterr().err.removesuffix("\n"))


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError(f"{CLEAR_SCREEN}")
    except ValueError:
        record = logging.LogRecord("rq", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    lines = PrintableFormatter().format(record).split("\n")
    assert "Traceback" in lines[1]
    assert not any(map(acts, lines))
