"""Speed and time left, with the clock in the test's hand."""

from __future__ import annotations

import io

import pytest

from runtime import progress
from runtime.progress import Progress, TqdmStream


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


def test_speed_and_time_left(clock):
    bar = Progress(total=100, initial=40, images_per_step=16)
    assert (bar.images_per_second, bar.eta_seconds) == (0.0, 0.0)
    clock.now += 2.0
    bar.update()
    assert bar.images_per_second == pytest.approx(8.0)
    assert bar.eta_seconds == pytest.approx(59 * 2.0)
    clock.now += 10 * 4.0
    bar.update(10)
    expected = 0.9**10 * 2.0 + (1 - 0.9**10) * 4.0
    assert bar.eta_seconds == pytest.approx(49 * expected)
    assert bar.step == 51


def test_pauses_do_not_count(clock):
    with Progress(total=10) as bar:
        clock.now += 1.0
        bar.update()
        clock.now += 1000.0
        bar.skip_time()
        clock.now += 1.0
        bar.update()
    assert bar.eta_seconds == pytest.approx(8.0)


def test_no_bar_where_nobody_looks(capsys):
    with Progress(total=3, visible=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


def test_log_lines_are_written_whole():
    text = io.StringIO()
    stream = TqdmStream(text)
    stream.write("a line\n")
    stream.write("\n")
    stream.flush()
    assert text.getvalue() == "a line\n"
