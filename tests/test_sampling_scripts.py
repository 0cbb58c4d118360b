"""`main_sampling_fid.py` and `compute_rfid.py` on checkpoints in the published format."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

ROOT = Path(__file__).parents[1]
DATA = ["dataset.type=synthetic", "dataset.transforms=null", "dataset.resolution=16", "dataset.num_samples=64",
        "experiment.num_workers=0"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Copies, because results are written beside checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in ("rqvae-shared", "rqtransformer-class"):
        shutil.copytree(ROOT / "tests" / "golden" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def run(monkeypatch, script: str, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
    runpy.run_path(str(ROOT / script), run_name="__main__")


def sampling_flags(checkpoints: Path, cache: Path, out: Path) -> list[object]:
    return ["-v", checkpoints / "rqvae-shared" / "model.pt", "-a", checkpoints / "rqtransformer-class" / "model.pt",
            "--features", "classifier", "--features-cache", cache, "--save-dir", out, *DATA]


def only_run(out: Path) -> Path:
    (directory,) = (out / "samples").iterdir()
    return directory


def png_images(directory: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((directory / "images").iterdir())])


@pytest.fixture
def sampled(monkeypatch, checkpoints, cache, tmp_path) -> Path:
    run(monkeypatch, "main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "a"), "-n", 13, "-bs", 5)
    return only_run(tmp_path / "a")


def test_result_line_says_what_was_measured(sampled):
    line = json.loads((sampled / "result.json").read_text())
    assert line["num_images"] == 13
    assert line["dataset"] == "synthetic"
    # the checkpoint's own sampling settings
    assert line["sampling"] == {"temperature": 1.0, "top_k": 8, "top_p": 0.9, "weights": "dense", "ema": False}
    assert [name.split("_")[0] for name in line["metrics"]] == ["fid", "is", "is-std"]
    assert all(name.endswith(("vs_train", "splits10")) for name in line["metrics"])
    stats = np.load(sampled / "stats.npz")
    assert stats["sigma"].shape == (len(stats["mu"]),) * 2
    assert stats["num_images"] == 13


def test_files_are_numbered_and_classes_balanced(sampled):
    names = sorted(file.name for file in (sampled / "images").iterdir())
    assert names == [f"{index:06d}_class{index % 10}.png" for index in range(13)]
    assert (sampled / "samples.png").exists()


def test_npz_in_one_batch_equals_png_in_small_ones(sampled, monkeypatch, checkpoints, cache, tmp_path):
    flags = [*sampling_flags(checkpoints, cache, tmp_path / "b"), "--format", "npz", "--no-stats-saving",
             "--no-tensorboard"]
    run(monkeypatch, "main_sampling_fid.py", *flags, "-n", 13, "-bs", 13)
    directory = only_run(tmp_path / "b")
    archive = np.load(directory / "samples.npz")
    np.testing.assert_array_equal(archive["arr_0"], png_images(sampled))
    np.testing.assert_array_equal(archive["labels"], np.arange(13) % 10)
    assert not (directory / "result.json").exists()
    assert not (directory / "tensorboard").exists()


def test_two_processes_make_the_same_images_and_scores(sampled, checkpoints, cache, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "main_sampling_fid.py", *map(str, sampling_flags(checkpoints, cache, tmp_path / "c")), "-n", "13"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False,
                              timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert finished.returncode == 0, finished.stderr[-2000:]
    directory = only_run(tmp_path / "c")
    np.testing.assert_array_equal(png_images(directory), png_images(sampled))
    ours = json.loads((directory / "result.json").read_text())["metrics"]
    assert ours == pytest.approx(json.loads((sampled / "result.json").read_text())["metrics"], rel=1e-6)


def test_other_settings_give_other_images(sampled, monkeypatch, checkpoints, cache, tmp_path):
    flags = [*sampling_flags(checkpoints, cache, tmp_path / "d"), "--no-stats-saving", "-n", 13]
    run(monkeypatch, "main_sampling_fid.py", *flags, "--seed", 1, "--ema", "-t", 0.9, "--top-k", 4, 4, 8, 8)
    assert (png_images(only_run(tmp_path / "d")) != png_images(sampled)).any()


def test_rejection_keeps_the_clearest_on_any_number_of_processes(sampled, monkeypatch, checkpoints, cache, tmp_path):
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(num_classes=10).state_dict(), tmp_path / "judge.pth")
    flags = ["-n", 13, "--reject-keep", 0.25, "--reject-model", f"squeezenet1_1:{tmp_path / 'judge.pth'}"]
    run(monkeypatch, "main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "e"), *flags, "-bs", 9)
    alone = only_run(tmp_path / "e")
    settings = json.loads((alone / "result.json").read_text())["sampling"]
    assert settings["reject_keep"] == 0.25
    assert settings["reject_model"].startswith("squeezenet1_1-")
    assert settings["candidates"] == 3 * 8 + 7 * 4  # ceil(n / keep) of 3 classes with two samples and 7 with one
    assert len(png_images(alone)) == 13
    assert (png_images(alone) != png_images(sampled)).any()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               "main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "f"), *flags,
               "--no-stats-saving"]
    finished = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False,
                              timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert finished.returncode == 0, finished.stderr[-2000:]
    np.testing.assert_array_equal(png_images(only_run(tmp_path / "f")), png_images(alone))


@pytest.mark.parametrize("split", ["val", "train"])
def test_rfid_is_written_beside_the_checkpoint(split, monkeypatch, checkpoints, cache, capsys):
    flags = ["--features", "classifier", "--features-cache", cache, f"--split={split}", "--batch-size", 7, *DATA]
    run(monkeypatch, "compute_rfid.py", "--vqvae", checkpoints / "rqvae-shared" / "model.pt", *flags)
    line = json.loads((checkpoints / "rqvae-shared" / f"rfid_{split}_classifier.json").read_text())
    (name,) = line["metrics"]
    assert name.startswith("rfid_classifier")
    assert name.endswith(f"vs_{split}")
    assert line["num_images"] == {"val": 6, "train": 64}[split]
    assert line["metrics"][name] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line
