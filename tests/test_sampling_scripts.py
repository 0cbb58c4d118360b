"""`main_sampling_fid.py` and `compute_rfid.py` on checkpoints in the published format."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from data import DatasetConfig, build_dataset
from evaluation.protocol import from_uint8, to_uint8
from rqvae import load_rqvae
from rqvae.losses.perceptual import VGG16_ENV, PerceptualLoss
from tests.commands import run_here, torchrun
from tests.golden_files import copies_of
from tests.random_vgg16 import write_random_vgg16

DATA = [
    "dataset.type=synthetic",
    "dataset.transforms=null",
    "dataset.resolution=16",
    "dataset.num_samples=64",
    "experiment.num_workers=0",
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Copies, because results are written beside checkpoints."""
    return copies_of(tmp_path_factory.mktemp("checkpoints"), "rqvae-shared", "rqtransformer-class")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def sampling_flags(checkpoints: Path, cache: Path, out: Path) -> list[object]:
    return [
        "-v",
        checkpoints / "rqvae-shared" / "model.pt",
        "-a",
        checkpoints / "rqtransformer-class" / "model.pt",
        "--features",
        "classifier",
        "--features-cache",
        cache,
        "--save-dir",
        out,
        *DATA,
    ]


def only_run(out: Path) -> Path:
    (directory,) = (out / "samples").iterdir()
    return directory


def png_images(directory: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((directory / "images").iterdir())])


@pytest.fixture
def sampled(checkpoints, cache, tmp_path) -> Path:
    run_here("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "a"), "-n", 13, "-bs", 5)
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


def test_npz_in_one_batch_equals_png_in_small_ones(sampled, checkpoints, cache, tmp_path):
    flags = [
        *sampling_flags(checkpoints, cache, tmp_path / "b"),
        "--format",
        "npz",
        "--no-stats-saving",
        "--no-tensorboard",
    ]
    run_here("main_sampling_fid.py", *flags, "-n", 13, "-bs", 13)
    directory = only_run(tmp_path / "b")
    archive = np.load(directory / "samples.npz")
    np.testing.assert_array_equal(archive["arr_0"], png_images(sampled))
    np.testing.assert_array_equal(archive["labels"], np.arange(13) % 10)
    assert not (directory / "result.json").exists()
    assert not (directory / "tensorboard").exists()


def test_two_processes_make_the_same_images_and_scores(sampled, checkpoints, cache, tmp_path):
    torchrun("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "c"), "-n", 13)
    directory = only_run(tmp_path / "c")
    np.testing.assert_array_equal(png_images(directory), png_images(sampled))
    ours = json.loads((directory / "result.json").read_text())["metrics"]
    assert ours == pytest.approx(json.loads((sampled / "result.json").read_text())["metrics"], rel=1e-6)


def test_other_settings_give_other_images(sampled, checkpoints, cache, tmp_path):
    flags = [*sampling_flags(checkpoints, cache, tmp_path / "d"), "--no-stats-saving", "-n", 13]
    run_here("main_sampling_fid.py", *flags, "--seed", 1, "--ema", "-t", 0.9, "--top-k", 4, 4, 8, 8)
    assert (png_images(only_run(tmp_path / "d")) != png_images(sampled)).any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--class", "3"], "--class 3 draws images of one class, without scores: add --no-stats-saving"),
        (["--class", "3", "--no-stats-saving", "--classes", "all"], "leave out --classes and --reject-keep"),
        (["--class", "cat", "--no-stats-saving"], "--class cat is none of the model's: 0..9"),
    ],
)
def test_one_class_is_asked_for_alone(words, said, checkpoints, cache, tmp_path, command):
    ended = command("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "x"), "-n", 1, *words)
    assert ended.code == 2 and said in ended.err and len(ended.err.splitlines()) == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_rejection_keeps_the_clearest_on_any_number_of_processes(sampled, checkpoints, cache, tmp_path):
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(num_classes=10).state_dict(), tmp_path / "judge.pth")
    flags = ["-n", 13, "--reject-keep", 0.25, "--reject-model", f"squeezenet1_1:{tmp_path / 'judge.pth'}"]
    run_here("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "e"), *flags, "-bs", 9)
    alone = only_run(tmp_path / "e")
    settings = json.loads((alone / "result.json").read_text())["sampling"]
    assert settings["reject_keep"] == 0.25
    assert settings["reject_model"].startswith("squeezenet1_1-")
    assert settings["candidates"] == 3 * 8 + 7 * 4  # ceil(n / keep) of 3 classes with two samples and 7 with one
    assert len(png_images(alone)) == 13
    assert (png_images(alone) != png_images(sampled)).any()
    torchrun("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "f"), *flags, "--no-stats-saving")
    np.testing.assert_array_equal(png_images(only_run(tmp_path / "f")), png_images(alone))


@pytest.mark.parametrize("split", ["val", "train"])
def test_rfid_is_written_beside_the_checkpoint(split, checkpoints, cache, capsys):
    flags = ["--features", "classifier", "--features-cache", cache, f"--split={split}", "--batch-size", 7, *DATA]
    run_here("compute_rfid.py", "--vqvae", checkpoints / "rqvae-shared" / "model.pt", *flags)
    line = json.loads((checkpoints / "rqvae-shared" / f"rfid_{split}_classifier.json").read_text())
    name, *others = line["metrics"]
    assert name.startswith("rfid_classifier")
    assert name.endswith(f"vs_{split}")
    assert others == [f"psnr_rgb_vs_{split}", f"ssim_gauss11_vs_{split}"]
    assert line["reference"]["source"] == f"synthetic:{split}"
    assert any(text.startswith("no LPIPS") for text in line["warnings"])
    assert line["num_images"] == {"val": 6, "train": 64}[split]
    assert line["metrics"][name] > 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line


def test_lpips_of_reconstructions_with_vgg16_at_hand(monkeypatch, checkpoints, cache, tmp_path):
    monkeypatch.setenv(VGG16_ENV, str(write_random_vgg16(tmp_path / "vgg16.pth")))
    folder = shutil.copytree(checkpoints / "rqvae-shared", tmp_path / "rqvae")
    flags = ["--features", "classifier", "--features-cache", cache, "--batch-size", 4, *DATA]
    run_here("compute_rfid.py", "--vqvae", folder / "model.pt", *flags)
    line = json.loads((folder / "rfid_val_classifier.json").read_text())
    assert not any("LPIPS" in text for text in line["warnings"])
    ((name, value),) = [(name, value) for name, value in line["metrics"].items() if name.startswith("lpips")]
    assert name.endswith("_vs_val")
    model = load_rqvae(folder)
    config = DatasetConfig(type="synthetic", resolution=16, num_samples=64)
    image_NCHW = build_dataset(config, "val").fetch(np.arange(6), None)["image"]
    with torch.no_grad():
        recon_NCHW = to_uint8(model.decode_code(model.get_codes(from_uint8(image_NCHW))))
        distance_N = PerceptualLoss()(from_uint8(recon_NCHW), from_uint8(image_NCHW))
    assert value == pytest.approx(distance_N.mean().item(), rel=1e-4)
    assert value > 0


def test_curves_over_depths_end_at_all_codes(checkpoints, cache, capsys):
    flags = ["--features", "classifier", "--features-cache", cache, "--batch-size", 4, *DATA]
    model = checkpoints / "rqvae-shared" / "model.pt"
    lines = []
    for more in (["--per-depth"], ["--depth", 2]):
        run_here("compute_rfid.py", "--vqvae", model, *flags, *more)
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    curve, second = lines
    assert [point["codes"] for point in curve["per_depth"]] == [1, 2, 3, 4]
    assert curve["per_depth"][-1]["metrics"] == curve["metrics"]
    assert curve["per_depth"][1]["metrics"] == pytest.approx(second["metrics"], rel=1e-9)
    assert all("_depth2_" in name for name in second["metrics"])
    names = [name for point in curve["per_depth"] for name in point["metrics"]]
    assert len(set(names)) == len(names), "numbers of different depths never share a name"
    with pytest.raises(SystemExit):
        run_here("compute_rfid.py", "--vqvae", model, "--per-depth", "--depth", 2)
    assert "--depth and --per-depth exclude each other" in capsys.readouterr().err


def test_more_metrics_a_page_and_the_same_from_the_saved_images(sampled, checkpoints, cache, tmp_path):
    """Scored in memory and from the files: the same line, with the run's own settings."""
    flags = ["-n", 13, "-bs", 5, "--metrics", "fid,is,kid,prdc", "--report", "--format", "npz"]
    run_here("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "other"), *flags)
    directory = only_run(tmp_path / "other")
    line = json.loads((directory / "result.json").read_text())
    first = json.loads((sampled / "result.json").read_text())
    assert {name: line["metrics"][name] for name in first["metrics"]} == pytest.approx(first["metrics"], rel=1e-9)
    assert {name.split("_")[0] for name in line["metrics"]} >= {"kid", "precision", "recall", "density", "coverage"}
    assert {"seed", "sampling", "checkpoint", "tokenizer", "reference", "features", "seconds", "neighbours"} <= {*line}
    page = (directory / "metrics.html").read_text()
    assert page.count("<svg") == 1 and line["checkpoint"] in page
    words = [f"fake_path={directory}", "ref_dataset=synthetic", "dataset.num_samples=64", "metrics=fid,is,kid,prdc"]
    for source in (directory, sampled):
        run_here(
            "compute_metrics.py",
            f"fake_path={source}",
            *words[1:],
            "batch_size=5",
            "--features",
            "classifier",
            "--features-cache",
            cache,
        )
        saved = json.loads((source / "metrics_classifier.json").read_text())
        assert saved["metrics"] == pytest.approx(line["metrics"], rel=1e-9)
        assert {name: saved[name] for name in ("seed", "checkpoint", "sampling")} == {
            name: first[name] for name in ("seed", "checkpoint", "sampling")
        }


def test_moments_in_a_file_stand_for_the_split(sampled, checkpoints, cache, tmp_path):
    (file,) = [path for path in (cache / "references").glob("*.npz") if _is_split(path, "synthetic:train")]
    np.savez(tmp_path / "published.npz", **{name: np.load(file)[name] for name in ("mu", "sigma")})
    flags = ["-n", 13, "-bs", 13, "--reference", tmp_path / "published.npz", "--metrics", "fid"]
    run_here("main_sampling_fid.py", *sampling_flags(checkpoints, cache, tmp_path / "other"), *flags)
    line = json.loads((only_run(tmp_path / "other") / "result.json").read_text())
    first = json.loads((sampled / "result.json").read_text())["metrics"]
    ((name, value),) = line["metrics"].items()
    assert name.endswith("_vs_published")
    assert value == pytest.approx(first[name.replace("published", "train")], rel=1e-9)
    assert line["references"] == {"published": {"num_images": 0}}


def _is_split(path: Path, source: str) -> bool:
    """Whether a cached reference holds the moments, and only these, of a split."""
    with np.load(path) as arrays:
        return source in str(arrays["meta"]) and "features" not in arrays
