"""Grey, RGB and RGBA: trained, sampled and scored alike; what does not fit is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.protocol import check_uint8_images
from sampling.image_files import save_images
from tests.training.tiny_runs import GAN, launch_in_process, only_run, stage1, write_config


def keys(channels: int) -> dict[str, object]:
    return {
        "dataset.channels": channels,
        "arch.ddconfig.in_channels": channels,
        "arch.ddconfig.out_ch": channels,
        "gan": GAN,
        "gan.disc.arch.in_channels": channels,
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
