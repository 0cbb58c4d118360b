"""The benchmarks of data run at toy size and say what they claim to say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import data_speed, latent_training
from data.images.binary_formats import read_idx


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_decoders_agree_and_are_timed(kind):
    found = data_speed.measure_decoding(2, (600, 520), kind, rounds=1)
    assert list(found) == ["pillow", "pillow draft", "torchvision", data_speed.SAME_PIXELS]
    assert all(row["images_per_second"] > 0 for row in found.values())
    # half size first gives other pixels; torchvision's resize rounds differently
    assert found["pillow"]["mean_pixel_difference"] == 0 < found["torchvision"]["mean_pixel_difference"] < 3
    assert found["pillow draft"]["mean_pixel_difference"] < 30
    if kind == "PNG":
        assert (
            found["pillow draft"]["mean_pixel_difference"]
            == found[data_speed.SAME_PIXELS]["mean_pixel_difference"]
            == 0
        )


def test_made_images_have_the_layout_of_fashion_mnist(tmp_path):
    folder = data_speed.write_idx(tmp_path / "idx", (50, 20))
    assert read_idx(folder / "t10k-images-idx3-ubyte.gz", 3).shape == (20, 28, 28)
    assert read_idx(folder / "train-labels-idx1-ubyte.gz", 1).max() == 9


def test_report_of_latents_against_images(capsys):
    results = {
        "images": {"seconds_per_step": 3.0, "losses": [2.0, 1.0]},
        "latents fp16": {"seconds_per_step": 1.0, "losses": [2.0, 1.01]},
    }
    line = latent_training.report(results, 2, "wall")
    assert line["variants"]["latents fp16"]["speedup"] == 3.0 and line["holds"]
    np.testing.assert_allclose(line["variants"]["latents fp16"]["largest_relative_loss_difference"], 0.01)
    results["latents fp16"]["seconds_per_step"] = 1.6
    assert not latent_training.report(results, 2, "wall")["holds"]
    json.dumps(line)
    assert "3.00x" in capsys.readouterr().out


def test_unknown_cases_are_refused(capsys):
    with pytest.raises(SystemExit):
        data_speed.parse(["--only", "decode,shard"])
    assert "'shard' is none of decode, fashion-mnist, shards" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_benchmark_on_random_images(tmp_path, monkeypatch):
    monkeypatch.setattr(data_speed, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.delenv("RQ_DATA_ROOT", raising=False)
    folder = data_speed.write_idx(tmp_path / "idx", (64, 16))
    line = data_speed.main(
        data_speed.parse(
            [
                "--only",
                "fashion-mnist",
                "--fashion-mnist",
                str(folder),
                "--steps",
                "5",
                "--fashion-batch",
                "2",
                "--output",
                str(tmp_path / "line.json"),
            ]
        )
    )
    assert json.loads((tmp_path / "line.json").read_text()) == line and line["fashion-mnist"]["steps"] == 5
