"""The line of an interval: what it says, what it leaves out, and that it is never wider than a terminal."""

from __future__ import annotations

import pytest

from runtime.progress import duration
from runtime.runlog import RunLog
from training.loop.console import interval_line

USAGE = [1.0, 0.5, 0.25]
STAGE1 = {
    "loss_recon": 0.0321987,
    "loss_latent": 0.01,
    "loss_gen": 0.0,
    "g_weight": 0.0,
    "loss_total": 0.04,
    "lr": 1e-3,
}
STAGE1 |= {"perplexity_by_depth": [12.0, 9.0, 8.0], "used_fraction_by_depth": USAGE, "grad_norm": 0.3}
SPEED = {"images_per_second": 412.345, "mfu": 0.3, "data_wait_share": 0.01}


def test_stage_1_says_losses_and_use_of_the_codes():
    line = interval_line(STAGE1, SPEED, 89)
    assert line == "412 img/s  loss 0.04  recon 0.0322  used 58% min 25%"


def test_a_discriminator_is_mentioned_when_it_has_started():
    assert "disc" not in interval_line(STAGE1, SPEED, 89) and "gen" not in interval_line(STAGE1, SPEED, 89)
    assert interval_line(STAGE1 | {"disc_gap": 0.5, "loss_disc": 0.9}, SPEED, 120).endswith("disc_gap 0.5")


def test_stage_2_and_validation_use_one_vocabulary():
    training = {"loss": 4.5, "loss_by_depth": [4.0, 5.0], "nll": 4.4, "accuracy": 0.25, "accuracy_by_depth": [0.4, 0.1]}
    assert interval_line(training, {}, 89) == "loss 4.5  nll 4.4  accuracy 25% min 10%"
    measured = {"nll": 4.6, "unigram_nll": 5.0, "uniform_nll": 6.0, "accuracy": 0.2, "accuracy_by_depth": [0.3, 0.1]}
    assert interval_line(measured, {}, 89) == "nll 4.6  unigram_nll 5  accuracy 20% min 10%"
    assert interval_line({"recon_mse": 0.1, "loss_recon": 0.1, **{"used_fraction_by_depth": USAGE}}, {}, 89) == (
        "recon 0.1  used 58% min 25%"
    )
    assert interval_line({"rfid_x_val": 3.25, "num_images": 64}, {}, 89) == "rfid_x_val 3.25  num_images 64"


def test_skipped_steps_are_said_as_soon_as_there_are_some():
    assert "skipped" not in interval_line(STAGE1 | {"skipped_steps": 0.0}, SPEED, 89)
    assert "loss 0.04  skipped 2" in interval_line(STAGE1 | {"skipped_steps": 2.0}, SPEED, 89)


def test_what_does_not_fit_is_left_out_from_the_end():
    assert interval_line(STAGE1, SPEED, 40) == "412 img/s  loss 0.04  recon 0.0322"


@pytest.mark.parametrize("total", [200, 1_000_000])
def test_lines_of_a_log_are_never_wider_than_100_columns(total, tmp_path, capsys, monkeypatch):
    log = RunLog(tmp_path, loggers=(), headline=interval_line)
    with log, log.progress(total, images_per_step=8) as bar:
        bar._seconds_per_step = 123.0
        log.log_metrics(50, STAGE1 | {"disc_gap": -0.123456}, prefix="train", epoch=1.0, timing=SPEED)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "train" in line and "|" not in line]
    assert len(line) <= 100 and f"train 50/{total}  " in line and "eta " in line and "loss 0.04" in line
    assert line.endswith("used 58% min 25%")
    written = (tmp_path / "metrics.jsonl").read_text()
    assert "train/perplexity_by_depth" in written and '"data_wait_share": 0.01' in written  # all of it is kept


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (65, "1m05s"), (3 * 3600 + 240, "3h04m"), (49 * 3600, "2d01h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
