"""What a run writes down, and how a resumed run goes on in the same files."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runtime.records.loggers import LOGGERS
from runtime.records.metrics_file import read_metrics
from runtime.runlog import RunLog


def quiet(run_dir, **settings) -> RunLog:
    return RunLog(run_dir, loggers=(), **settings)


def test_metrics_become_lines_of_plain_numbers(tmp_path):
    with quiet(tmp_path) as log:
        log.log_metrics(5, {"loss": torch.tensor(0.5), "usage": torch.tensor([1, 2]), "lr": 1e-3}, prefix="train")
        log.log_metrics(6, {"bad": float("nan"), "worse": torch.tensor([1.0, float("inf")])})
        log.log_metrics(7, {"loss": 1}, prefix="val", epoch=0.5, timing={"images_per_second": 10.0})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 5, "train/loss": 0.5, "train/usage": [1, 2], "train/lr": 0.001},
        {"step": 6, "bad": None, "worse": [1.0, None]},
        {"step": 7, "epoch": 0.5, "val/loss": 1, "timing": {"images_per_second": 10.0}},
    ]


def test_lines_are_there_before_the_log_is_closed(tmp_path):
    log = quiet(tmp_path)
    log.log_metrics(1, {"loss": 1.0})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    log.close()


def test_messages_and_metrics_go_to_the_log_file_and_stderr(tmp_path, capsys):
    with quiet(tmp_path) as log, log.progress(total=10, initial=4, images_per_step=8) as bar:
        bar.update()
        log.info("hello")
        log.log_metrics(5, {"loss": torch.tensor(0.123456), "usage": [1.0, 2.0]}, prefix="train")
    text = (tmp_path / "train.log").read_text()
    assert "hello" in text
    assert "train step 5/10 (" in text
    assert "loss 0.1235  usage [1 2]" in text
    assert "hello" in capsys.readouterr().err


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    with quiet(tmp_path) as log:
        for step in (10, 20, 30):
            log.log_metrics(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    with quiet(tmp_path, resume_step=20) as log:
        log.log_metrics(30, {"loss": -30})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 10), (20, 20), (30, -30)]


def test_tensorboard_gets_numbers_per_depth_and_images(tmp_path):
    with RunLog(tmp_path) as log:
        log.log_metrics(3, {"loss": 0.5, "usage": torch.tensor([0.25, 0.75])}, "train", timing={"wait": 2.0})
        log.log_images("grid", torch.zeros(3, 4, 4, dtype=torch.uint8), 3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    values = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert values == {"train/loss": 0.5, "train/usage/0": 0.25, "train/usage/1": 0.75, "timing/wait": 2.0}
    assert events.Tags()["images"] == ["grid"]


def test_tensorboard_of_a_resumed_run_has_every_step_once(tmp_path):
    for resume_step, steps in ((None, (1, 2, 3)), (2, (3, 4))):
        with RunLog(tmp_path, resume_step=resume_step) as log:
            for step in steps:
                log.log_metrics(step, {"loss": float(step)})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_saved_as_they_are(tmp_path, channels):
    image_CHW = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    with quiet(tmp_path) as log:
        path = log.log_images("val/grid", image_CHW, 12)
    assert path == tmp_path / "samples" / "val_grid_00000012.png"
    with Image.open(path) as saved:
        assert saved.size == (7, 5)
        assert saved.getpixel((6, 4)) == tuple(image_CHW.expand(3, -1, -1)[:, 4, 6].tolist())


def test_float_images_are_refused(tmp_path):
    with quiet(tmp_path) as log, pytest.raises(AssertionError, match="to_uint8"):
        log.log_images("grid", torch.zeros(3, 4, 4), 1)


def test_other_ranks_write_no_files_but_warn(tmp_path, capsys):
    with RunLog(tmp_path, is_main=False, rank=2) as log:
        log.info("silent")
        log.warning("careful")
        log.log_metrics(1, {"loss": 1.0})
        assert log.log_images("grid", torch.zeros(3, 4, 4, dtype=torch.uint8), 1) is None
    assert list(tmp_path.iterdir()) == []
    error = capsys.readouterr().err
    assert "[rank 2]" in error
    assert "careful" in error
    assert "silent" not in error


def test_a_crash_is_in_the_log_file(tmp_path):
    with pytest.raises(RuntimeError), quiet(tmp_path):
        raise RuntimeError("out of luck")
    assert "RuntimeError: out of luck" in (tmp_path / "train.log").read_text()


def test_two_logs_do_not_share_lines(tmp_path):
    with quiet(tmp_path / "a") as first, quiet(tmp_path / "b") as second:
        first.info("one")
        second.info("two")
    assert "two" not in (tmp_path / "a" / "train.log").read_text()


def test_a_console_log_needs_no_directory(capsys):
    with RunLog(None) as log:
        log.info("hello")
        log.log_metrics(1, {"loss": 1.0})
        assert log.log_images("grid", torch.zeros(3, 4, 4, dtype=torch.uint8), 1) is None
    assert "metrics step 1: loss 1" in capsys.readouterr().err


class Broken:
    """A TensorBoard writer whose disk is full."""

    def __getattr__(self, name: str):
        def fail(*_args: object) -> None:
            raise OSError(28, "No space left on device")

        return fail


def log_a_bit(log: RunLog) -> None:
    for step in (1, 2):
        log.log_metrics(step, {"loss": 1.0})
        log.log_images("grid", torch.zeros(3, 4, 4, dtype=torch.uint8), step)


@pytest.mark.parametrize("error", [ImportError("no module"), TypeError("Descriptors cannot be created directly")])
def test_a_tensorboard_that_cannot_be_opened_is_one_warning(error, tmp_path, monkeypatch, capsys):
    def fail(*_args: object) -> None:
        raise error

    monkeypatch.setitem(LOGGERS, "tensorboard", fail)
    with RunLog(tmp_path) as log:
        log_a_bit(log)
    assert capsys.readouterr().err.count("cannot write TensorBoard") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_tensorboard_that_breaks_is_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(LOGGERS, "tensorboard", lambda *_args: Broken())
    with RunLog(tmp_path) as log:
        log_a_bit(log)
    assert capsys.readouterr().err.count("cannot write TensorBoard: [Errno 28] No space left on device") == 1
    assert len(list((tmp_path / "samples").iterdir())) == 2
    with RunLog(tmp_path):  # one that breaks when it is closed
        pass


def test_metrics_and_samples_that_cannot_be_written_are_one_warning_each(tmp_path, capsys):
    (tmp_path / "samples").write_text("in the way of the folder")
    with quiet(tmp_path) as log:
        log.log_metrics(1, {"loss": 1.0})
        whole, log._metrics._file = log._metrics._file, Broken()
        log_a_bit(log)
        log._metrics._file = whole
        log.log_metrics(3, {"loss": 3.0})
    printed = capsys.readouterr().err
    assert printed.count("cannot write metrics.jsonl") == printed.count("cannot write samples") == 1
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 1, 2, 3], "written in the end"


def test_a_terminal_that_is_gone_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", Broken())
    with quiet(tmp_path) as log:
        log_a_bit(log)
        log.warning("said in the file")
    assert "said in the file" in (tmp_path / "train.log").read_text()
