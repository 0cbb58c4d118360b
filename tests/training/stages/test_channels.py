"""Grey, RGB and RGBA: trained, sampled and scored alike; what does not fit is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.protocol import check_uint8_images
from evaluation.references.image_digest import ImageDigest
from evaluation.references.reference_making import digested
from evaluation.report import picture
from sampling.image_files import save_images
from scoring.image_source import open_source
from tests.commands import run_here
from tests.training.tiny_runs import GAN, launch_in_process, only_run, stage1, stage2, write_config


def keys(channels: int) -> dict[str, object]:
    return {
        "dataset.channels": channels,
        "arch.ddconfig.in_channels": channels,
        "arch.ddconfig.out_ch": channels,
        "gan": GAN,
        "experiment.max_steps": 2,
    }


@pytest.mark.parametrize("channels", [1, 4])
def test_stage_1_trains_validates_and_draws_pictures(channels, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(keys(channels)))
    launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    assert (only_run(tmp_path / "runs") / "snapshots" / "step_00000002").is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch.ddconfig.out_ch": 1}, "ddconfig.in_channels 3 and ddconfig.out_ch 1 must be equal"),
        (
            {"arch.ddconfig.in_channels": 1, "arch.ddconfig.out_ch": 1},
            "channels, arch.ddconfig.in_channels has 1",
        ),
        ({"dataset.channels": 1}, "have 1 channels, arch.ddconfig.in_channels has 3"),
        (keys(4) | {"gan.disc.arch.in_channels": 3}, "gan.disc.arch.in_channels=3 must be arch.ddconfig.out_ch=4"),
    ],
)
def test_channels_that_do_not_fit_are_refused(changes, message, tmp_path, capsys):
    config = write_config(tmp_path / "tiny.yaml", stage1(changes))
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error
    assert not list(Path(tmp_path / "runs").rglob("*.safetensors"))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_saved_with_their_channels(channels, mode, tmp_path):
    image_BCHW = torch.randint(0, 256, (2, channels, 4, 4), dtype=torch.uint8)
    batches = [{"image": image_BCHW, "index": torch.arange(2)}]
    for file_format in ("png", "npz"):
        list(save_images(batches, tmp_path, file_format, 2, (4, 4), channels))
    with Image.open(tmp_path / "images" / "000000.png") as image:
        assert image.mode == mode


def test_scores_see_rgba_on_white_and_grey_three_times():
    rgba = torch.tensor([10, 20, 30, 0, 10, 20, 30, 255]).view(2, 4, 1, 1).to(torch.uint8)
    assert check_uint8_images(rgba).flatten(1).tolist() == [[255, 255, 255], [10, 20, 30]]
    assert check_uint8_images(rgba[:, :1]).flatten(1).tolist() == [[10, 10, 10]] * 2


def digest_of(source: Path) -> str:
    digest = ImageDigest()
    for _ in digested(open_source(str(source)).batches(2), digest):
        pass
    return digest.hexdigest()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_samples_are_the_same_images_to_scores_and_pages_in_both_formats(channels, tmp_path):
    image_BCHW = torch.randint(0, 256, (3, channels, 5, 4), dtype=torch.uint8)
    for file_format in ("png", "npz"):
        batches = [{"image": image_BCHW, "index": torch.arange(3)}]
        list(save_images(batches, tmp_path, file_format, 3, (5, 4), channels))
    assert digest_of(tmp_path / "images") == digest_of(tmp_path / "samples.npz")
    assert picture(image_BCHW[0], "") == picture(check_uint8_images(image_BCHW)[0], "")


def coloured_folder(folder: Path, channels: int) -> Path:
    """Noise in two classes and two splits, with so many channels."""
    draw = np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 6)):
        for label in "ab":
            (folder / split / label).mkdir(parents=True)
            for index in range(number):
                pixels = draw.integers(0, 256, (8, 8, channels), dtype=np.uint8)
                Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels).save(
                    folder / split / label / f"{index}.png"
                )
    return folder


@pytest.mark.parametrize("channels", [1, 4])
def test_shards_and_archives_keep_the_channels(channels, tmp_path):
    folder, words = coloured_folder(tmp_path / "images", channels), (f"channels={channels}", "resolution=8")
    with pytest.raises(SystemExit) as ended:
        run_here("data.prepare", "--dataset", "folder", "--data-root", folder, tmp_path / "shards", *words)
    assert ended.value.code == 0
    out = tmp_path / "val.npz"
    run_here("data.export", "--dataset", "shards", "--data-root", tmp_path / "shards", "--split", "val", out, *words)
    assert np.load(out)["arr_0"].shape == (12, 8, 8, channels)
    assert digest_of(out) == digest_of(folder / "val")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_from_shards_through_training_and_samples_to_scores_and_pages(channels, tmp_path):
    folder, shards, latents = coloured_folder(tmp_path / "images", channels), tmp_path / "shards", tmp_path / "latents"
    words = (f"channels={channels}", "resolution=8")
    with pytest.raises(SystemExit):
        run_here("data.prepare", "--dataset", "folder", "--data-root", folder, shards, *words)
    features = ("--features", "classifier", "--features-cache", tmp_path / "classifiers")
    scored = {"every_steps": 2, "num_images": 8, "features": "classifier", "features_cache": str(features[-1])}
    images = {"type": "shards", "root": str(shards), "channels": channels, "resolution": 8}
    run = {"dataset": images, "experiment.max_steps": 2, "experiment.score": scored}
    launch_in_process(
        "stage1", "-m", write_config(tmp_path / "1.yaml", stage1(run | keys(channels) | run)), "-r", tmp_path / "1"
    )
    one = only_run(tmp_path / "1")
    classes = {"arch.vocab_size_cond": 2}
    launch_in_process(
        "stage2", "-m", write_config(tmp_path / "2.yaml", stage2(run | classes)), "-v", one, "-r", tmp_path / "2"
    )
    two = only_run(tmp_path / "2")
    run_here("extract_codes.py", "-v", one, latents)
    cached = {"dataset": {"type": "latents", "root": str(latents)}, "experiment.max_steps": 1} | classes
    launch_in_process(
        "stage2", "-m", write_config(tmp_path / "3.yaml", stage2(cached)), "-v", one, "-r", tmp_path / "3"
    )

    run_here("compute_rfid.py", "--vqvae", one, "--per-depth", *features)
    values = []
    for file_format in ("png", "npz"):
        out = tmp_path / file_format
        flags = ("--metrics", "fid,is,kid,prdc,class-fid,accuracy", "--report", "--no-tensorboard", *features)
        run_here(
            "main_sampling_fid.py", "-v", one, "-a", two, "-n", 16, "--save-dir", out, "--format", file_format, *flags
        )
        (samples,) = (out / "samples").iterdir()
        compared = ("ref_dataset=shards", *(f"dataset.{key}={value}" for key, value in images.items() if key != "type"))
        run_here("compute_metrics.py", f"fake_path={samples}", *compared, "metrics=fid,kid,prdc", "--report", *features)
        found = json.loads(next(samples.glob("metrics_*.json")).read_text())["metrics"]
        drawn = json.loads((samples / "result.json").read_text())["metrics"]
        fid = next(name for name in found if name.startswith("fid"))
        assert found[fid] == pytest.approx(drawn[fid], rel=1e-6)
        assert (samples / "metrics.html").stat().st_size > 1000
        values.append(found)
    assert values[0] == pytest.approx(values[1], rel=1e-6)
