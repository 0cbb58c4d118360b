"""`sampling.inpaint` and `sampling.reconstruct`: what is kept is kept exactly, what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from evaluation.protocol import from_uint8, to_uint8
from rqvae import load_rqvae
from sampling.given_images import painted_cells
from tests.commands import run_here
from tests.given_pictures import model_flags, write_pictures
from tests.golden_files import copies_of


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return copies_of(
        tmp_path_factory.mktemp("checkpoints"), "rqvae-shared", "rqtransformer-class", "rqtransformer-text"
    )


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path)


def fills_of_a(pictures: Path, checkpoints: Path, number: int) -> list[object]:
    """Words for fills of class 3 of the first picture, written beside the mask."""
    beside = pictures.parent
    asked = ["--class", 3, "-n", number, "--save-dir", beside]
    return [pictures / "a.png", beside / "mask.png", *model_flags(checkpoints), *asked]


def only_run(out: Path) -> Path:
    (directory,) = (out / "inpainted").iterdir()
    return directory


def test_a_fill_keeps_all_codes_that_are_not_painted(checkpoints, pictures, tmp_path):
    words = fills_of_a(pictures, checkpoints, 2)
    run_here("sampling.inpaint", *words)
    directory = only_run(tmp_path)
    codes = np.load(directory / "codes.npz")
    redrawn, kept = codes["redrawn"], ~codes["redrawn"]
    assert redrawn.sum() == 1 and redrawn[0, 0]
    assert np.array_equal(codes["fills"][:, kept], np.broadcast_to(codes["image"][kept], codes["fills"][:, kept].shape))
    assert not np.array_equal(codes["fills"][0][redrawn], codes["image"][redrawn])
    facts = json.loads((directory / "result.json").read_text())
    assert facts["cells_redrawn"] == 1 and facts["top_k"] == 8  # the checkpoint's own settings
    assert sorted(path.name for path in directory.iterdir()) == [
        "codes.npz",
        "fill-0.png",
        "fill-1.png",
        "fills.png",
        "result.json",
    ]
    # the same seed gives the same pictures
    run_here("sampling.inpaint", *words[:-1], tmp_path / "again")
    assert (only_run(tmp_path / "again") / "fill-1.png").read_bytes() == (directory / "fill-1.png").read_bytes()


def test_rows_are_completed(checkpoints, pictures, tmp_path):
    words = [
        pictures / "a.png",
        "--keep-rows",
        1,
        *model_flags(checkpoints),
        "--class",
        0,
        "-n",
        1,
        "--save-dir",
        tmp_path,
    ]
    run_here("sampling.inpaint", *words)
    codes = np.load(only_run(tmp_path) / "codes.npz")
    assert not codes["redrawn"][0].any() and codes["redrawn"][1:].all()
    assert np.array_equal(codes["fills"][0, 0], codes["image"][0])


def test_cells_are_those_that_any_white_pixel_touches(tmp_path):
    mask = np.zeros((8, 12), np.uint8)
    mask[0, 2] = mask[7, 9] = 200  # the corners of the crop
    mask[3, 5] = 100  # too dark
    mask[0, 0] = mask[7, 11] = 255  # outside
    Image.fromarray(mask).save(tmp_path / "mask.png")
    cells = painted_cells(tmp_path / "mask.png", (8, 12), (16, 16), (4, 4))
    assert cells.nonzero().tolist() == [[0, 0], [3, 3]]
    # a model of images twice as high as wide sees 8 x 4 pixels of it, another all of it
    assert painted_cells(tmp_path / "mask.png", (8, 12), (16, 8), (4, 2)).nonzero().tolist() == []
    assert painted_cells(tmp_path / "mask.png", (8, 12), (8, 12), (2, 3)).nonzero().tolist() == [[0, 0], [1, 2]]


def test_reconstructions_are_those_of_the_model(checkpoints, pictures, tmp_path):
    vqvae = checkpoints / "rqvae-shared" / "model.pt"
    run_here("sampling.reconstruct", pictures, tmp_path / "out", "-v", vqvae)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    model = load_rqvae(vqvae).eval()
    assert result["num_images"] == 2
    assert len(result["mse_by_codes"]) == len(model.quantizer.num_codes)
    assert (tmp_path / "out" / "by_codes.png").is_file()
    assert (tmp_path / "out" / "images" / "more" / "b.png").is_file()
    square = Image.open(pictures / "a.png").crop((4, 0, 20, 16))
    resolution = model.config.ddconfig.resolution
    assert resolution == 16
    image = from_uint8(torch.from_numpy(np.array(square)).permute(2, 0, 1).unsqueeze(0))
    with torch.no_grad():
        expected = model(image).recon[0]
    given = np.asarray(Image.open(tmp_path / "out" / "images" / "a.png")).astype(float)
    difference = np.abs(given - (expected.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5)
    assert difference.max() <= 0.51


def test_the_console_script_gives_the_same_pictures(checkpoints, pictures, tmp_path, command):
    """It has no `data` and no `evaluation`, and so reads, crops and rounds on its own."""
    vqvae = checkpoints / "rqvae-shared" / "model.pt"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (37, 20, 4), dtype=np.uint8)).save(pictures / "c.png")
    ours = command("sampling.reconstruct", pictures, tmp_path / "ours", "-v", vqvae).out
    theirs = command("rqstack.commands", "reconstruct", pictures, "-v", vqvae, "--out", tmp_path / "theirs").out
    assert ours.partition("PSNR")[2] == theirs.partition("PSNR")[2]
    for name in ("a.png", "c.png", "more/b.png"):
        left, right = (np.asarray(Image.open(tmp_path / who / "images" / name)) for who in ("ours", "theirs"))
        assert np.array_equal(left, right)


@pytest.mark.parametrize("averaged", [True, False])
def test_fills_are_of_the_stage1_weights_that_stage2_was_trained_on(averaged, checkpoints, pictures, tmp_path):
    folder = copies_of(tmp_path, "rqvae-shared", "rqtransformer-class")
    config = folder / "rqtransformer-class" / "config.yaml"
    said = OmegaConf.load(config)
    said.vqvae.ema = averaged
    OmegaConf.save(said, config)
    weights = folder / "rqvae-shared" / "model.pt"
    held = torch.load(weights, weights_only=True)
    averages = {
        name: value * 1.5 if name.startswith("decoder.conv_out") else value
        for name, value in held["state_dict"].items()
    }
    torch.save(held | {"state_dict_ema": averages}, weights)
    words = fills_of_a(pictures, folder, 1)
    run_here("sampling.inpaint", *words)
    directory = only_run(tmp_path)
    model = load_rqvae(weights, ema=averaged).eval()
    expected = to_uint8(model.decode_code(torch.from_numpy(np.load(directory / "codes.npz")["fills"])))[0]
    assert np.array_equal(np.asarray(Image.open(directory / "fill-0.png")), expected.permute(1, 2, 0).numpy())


def test_what_cannot_be_read_is_said_and_passed_over(checkpoints, pictures, tmp_path, command):
    (pictures / "broken.png").write_text("no picture")
    ended = command("sampling.reconstruct", pictures, tmp_path / "out", "-v", checkpoints / "rqvae-shared" / "model.pt")
    assert ended.code == 0
    assert "1 of 3 images cannot be read, the first" in ended.err and "broken.png" in ended.err
    assert json.loads((tmp_path / "out" / "result.json").read_text())["num_images"] == 2


def mistakes(checkpoints: Path, tmp_path: Path) -> dict[str, tuple[str, list[object], str]]:
    image, mask, models = tmp_path / "pictures" / "a.png", tmp_path / "mask.png", model_flags(checkpoints)
    text = model_flags(checkpoints, "rqtransformer-text")
    vqvae = models[:2]
    return {
        "no class": ("inpaint", [image, mask, *models], "give --class (0..9)"),
        "no such class": (
            "inpaint",
            [image, mask, *models, "--class", "cat"],
            "--class cat is none of the model's: 0..9",
        ),
        "class out of range": ("inpaint", [image, mask, *models, "--class", 10], "--class 10 is none of"),
        "prompt of classes": (
            "inpaint",
            [image, mask, *models, "--prompt", "a"],
            "--prompt is for a model of captions",
        ),
        "class of captions": ("inpaint", [image, mask, *text, "--class", 1], "this one takes --prompt"),
        "no prompt": ("inpaint", [image, mask, *text], "give --prompt"),
        "neither": ("inpaint", [image, *models], "either a MASK or --keep-rows"),
        "both": ("inpaint", [image, mask, *models, "--keep-rows", 1], "either a MASK or --keep-rows"),
        "rows": ("inpaint", [image, *models, "--class", 1, "--keep-rows", 8], "--keep-rows 8 must be 0 to 7"),
        "size": ("inpaint", [image, image.parent / "more/b.jpg", *models, "--class", 1, "-n", 0], "--num must be"),
        "no image": ("inpaint", [tmp_path / "x.png", mask, *models, "--class", 1], "cannot be read as an image"),
        "mask of another size": ("inpaint", [mask.parent / "small.png", mask, *models, "--class", 1], "is 24x16"),
        "black mask": ("inpaint", [image, tmp_path / "black.png", *models, "--class", 1], "white nowhere"),
        "nothing": ("reconstruct", [tmp_path / "x.png", tmp_path / "o", *vqvae], "no file and no folder"),
        "full": ("reconstruct", [image, image.parent, *vqvae], "exists and is not an empty folder"),
        "empty": ("reconstruct", [tmp_path / "empty", tmp_path / "o", *vqvae], "holds no images"),
        "codes": ("reconstruct", [image, tmp_path / "o", *vqvae, "--codes", 5], "--codes 5 must be 1 to 4"),
        "no picture": ("reconstruct", [tmp_path / "text.png", tmp_path / "o", *vqvae], "cannot be read as an image"),
    }


@pytest.mark.parametrize("name", mistakes(Path(), Path()))
def test_mistakes_are_one_line(name, checkpoints, pictures, tmp_path, command):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    Image.new("L", (24, 16)).save(tmp_path / "black.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    module, words, said = mistakes(checkpoints, tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    ended = command(f"sampling.{module}", *words)
    assert ended.code == 2
    assert said in ended.err and len(ended.err.splitlines()) == 1 and len(ended.err) < 420
    assert sorted(tmp_path.rglob("*")) == before
