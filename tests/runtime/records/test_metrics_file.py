"""`metrics.jsonl` outlives kills, full disks and foreign hands; nothing in it blocks a resume, nothing is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from runtime.records.metrics_file import ASIDE_FILE, MetricsFile, read_metrics, truncate_metrics
from runtime.runlog import RunLog

FOREIGN = {
    "another object": b'{"loss": 1.0}',
    "a step that is no number": b'{"step": "7", "loss": 1.0}',
    "a step that is a truth": b'{"step": true}',
    "a fraction": b'{"step": 1.5}',
    "no object": b"[1, 2]",
    "a number": b"17",
    "half a line": b'{"step": 2, "lo',
    "two lines in one": b'{"step": 1}{"step": 2}',
    "zeros of a lost disk": b"\0" * 512,
    "no text": b"\xff\xfe\x80",
    "nested for ever": b"[" * 100_000,
    "a huge number": b'{"step": ' + b"9" * 5000 + b"}",
    "a mark of the order of bytes": b'\xef\xbb\xbf{"step": 1}',
}


def lines(*steps: int) -> bytes:
    return b"".join(b'{"step": %d}\n' % step for step in steps)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_line_is_kept_aside_and_reported(name, tmp_path, capsys):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(lines(1, 2) + FOREIGN[name] + b"\n" + lines(3, 4))
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3, 4], "readers leave it out"
    RunLog(tmp_path, resume_step=3, loggers=()).close()
    assert file.read_bytes() == lines(1, 2, 3)
    assert (tmp_path / ASIDE_FILE).read_bytes() == FOREIGN[name] + b"\n"
    said = f"{file}: line 3 is no line of metrics; kept aside in {ASIDE_FILE}"
    assert said in capsys.readouterr().err and said in (tmp_path / "train.log").read_text()
    assert truncate_metrics(file, 3) is None, "once"


def test_many_are_one_sentence_and_what_was_kept_before_stays(tmp_path):
    file = tmp_path / "metrics.jsonl"
    (tmp_path / ASIDE_FILE).write_text("before\n")
    file.write_bytes(b"x\n" * 5 + lines(1) + b'\r\n\n{"step": 2, "l')
    assert truncate_metrics(file, 9) == f"{file}: lines 1, 2, 3, ... are no line of metrics; kept aside in {ASIDE_FILE}"
    assert file.read_bytes() == lines(1)
    assert (tmp_path / ASIDE_FILE).read_bytes() == b"before\n" + b"x\n" * 5 + b'{"step": 2, "l\n'


class SmallDisk:
    """Takes so many bytes, then none, until it is `full` no more."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self.file.write(content[: self.room])
        self.room -= taken
        return taken

    def close(self) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 1, 11, 12, 13, 30])
def test_no_line_is_lost_on_a_disk_that_was_full_for_a_while(room, tmp_path):
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file)
    metrics._file = SmallDisk(metrics._file, room)
    failures = 0
    for step in range(6):
        try:
            metrics.write({"step": step})
        except OSError:
            failures += 1
        if step == 4:
            metrics._file.room = 1 << 20
    metrics.close()
    assert failures
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == list(range(6))


def test_what_another_process_left_half_written_is_a_line_of_its_own(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(lines(1) + b'{"step"')
    metrics = MetricsFile(file)
    metrics.write({"step": 2})
    metrics.close()
    assert [line["step"] for line in read_metrics(file)] == [1, 2]
