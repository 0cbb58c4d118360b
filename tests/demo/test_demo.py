"""The demo from end to end, a few steps of each stage."""

import json
from pathlib import Path

import pytest

from tests.commands import succeed

STEPS = [
    "experiment.max_steps=2",
    "experiment.test_steps=2",
    "experiment.save_steps=2",
    "experiment.log_steps=1",
    "experiment.batch_size=8",
    "experiment.test_images=16",
]
PER_DEPTH = ["recon_mse_by_depth", "rfid_by_depth", "code_usage_by_depth", "nll_by_depth", "unigram_nll_by_depth"]
NUMBERS = [
    "sample_accuracy",
    "uniform_nll",
    "fid_samples",
    "fid_floor",
    "fid_unigram",
    "seconds_stage1",
    "seconds_stage2",
    "seconds_sampling",
]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "out"
    done = succeed(
        "-m",
        "demo",
        "--out",
        str(out),
        "--num-samples",
        "30",
        "--stage1",
        *STEPS,
        "--stage2",
        *STEPS,
        "experiment.sample.num_images=4",
        timeout=600,
    )
    return out, done.out


def test_summary_has_every_number(output):
    summary = json.loads((output[0] / "summary.json").read_text())
    assert all(len(summary[name]) == 4 for name in PER_DEPTH)
    assert all(isinstance(summary[name], float) for name in NUMBERS)
    assert 0.0 <= summary["sample_accuracy"] <= 1.0


def test_report_stands_alone(output):
    page = (output[0] / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 2
    assert page.count("<svg") == 4
    assert "://" not in page


def test_table_ends_the_demo(output):
    assert (output[0] / "samples.png").exists()
    assert "recon MSE" in output[1]
    assert "samples recognised as the digit they were asked for" in output[1]
