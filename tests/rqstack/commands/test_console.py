"""The console script `rqstack`: what is kept is kept exactly, what is wrong is one line, nothing is left half done."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

import rqstack
import rqtransformer
import rqvae
from data.images.transforms import Pipeline
from evaluation.protocol import from_uint8
from rqstack.commands.__main__ import main
from rqstack.commands.models import load_both
from rqstack.commands.pictures import as_tensor, open_picture, save_sheet, white_cells
from rqstack.snapshots import snapshot_tensors, weights_digest, write_snapshot
from rqtransformer import load_rqtransformer, sample
from rqvae import load_rqvae
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


def run(*words: object) -> None:
    main([str(word) for word in words])


def test_the_version_is_one(capsys):
    assert rqstack.__version__ == rqvae.__version__ == rqtransformer.__version__
    with pytest.raises(SystemExit):
        run("--version")
    assert capsys.readouterr().out == f"rqstack {rqstack.__version__}\n"


def test_inspect_says_what_the_library_knows(checkpoints, capsys):
    path = checkpoints / "rqvae-shared" / "model.pt"
    run("inspect", path)
    assert capsys.readouterr().out.startswith(f"{path}: published checkpoint of stage 1 (RQ-VAE), ")
    run("inspect", path, "--json")
    assert json.loads(capsys.readouterr().out)["stage"] == "stage 1"


def test_inspect_shortens_what_is_long(checkpoints, tmp_path, capsys):
    model = load_rqvae(checkpoints / "rqvae-shared" / "model.pt")
    model.save_pretrained(tmp_path / "model", metadata={"step": 3, "seen": list(range(1000))})
    run("inspect", tmp_path / "model")
    lines = capsys.readouterr().out.splitlines()
    assert "metadata: step = 3" in lines
    (long,) = [line for line in lines if line.startswith("metadata: seen = [0, 1, 2")]
    assert long.endswith(" ... (4,890 characters)") and len(long) < 220
    run("inspect", tmp_path / "model", "--json")
    assert json.loads(capsys.readouterr().out)["metadata"]["seen"] == list(range(1000))


def test_samples_are_those_of_the_library(checkpoints, tmp_path, capsys):
    out = tmp_path / "out"
    run("sample", *model_flags(checkpoints), "-n", 3, "--seed", 5, "--top-k", 4, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
        "codes.safetensors",
        "samples.png",
    ]
    stage1 = load_rqvae(checkpoints / "rqvae-shared" / "model.pt")
    stage2 = load_rqtransformer(checkpoints / "rqtransformer-class" / "model.pt")
    rules = {"temperature": stage2.sampling_defaults.get("temp", 1.0), "top_p": stage2.sampling_defaults.get("top_p")}
    codes = sample(stage2, stage1, torch.tensor([0, 1, 2]), top_k=4, seed=5, **rules)
    assert torch.equal(load_file(out / "codes.safetensors")["codes"], codes)
    image = stage1.decode_code(codes)[1].detach().clamp(-1, 1).permute(1, 2, 0).numpy()
    given = np.asarray(Image.open(out / "00001.png")).astype(float)
    assert np.abs(given - (image + 1) * 127.5).max() <= 0.51
    assert capsys.readouterr().out == f"3 images to {out}\n"


def test_a_fill_keeps_all_codes_that_are_not_painted(checkpoints, pictures, tmp_path):
    out = tmp_path / "fills"
    run(
        "inpaint",
        pictures / "a.png",
        tmp_path / "mask.png",
        *model_flags(checkpoints),
        "--class",
        3,
        "-n",
        2,
        "--out",
        out,
    )
    codes = load_file(out / "codes.safetensors")
    redrawn, kept = codes["redrawn"], ~codes["redrawn"]
    assert redrawn.sum() == 1 and redrawn[0, 0]
    assert torch.equal(codes["fills"][:, kept], codes["image"][kept].expand(2, -1, -1))
    assert not torch.equal(codes["fills"][0][redrawn], codes["image"][redrawn])
    picture = open_picture(pictures / "a.png", 3)
    stage1 = load_rqvae(checkpoints / "rqvae-shared" / "model.pt")
    assert torch.equal(codes["image"], stage1.get_codes(as_tensor(picture, (16, 16))[None])[0])
    assert {path.name for path in out.iterdir()} == {"fill-0.png", "fill-1.png", "fills.png", "codes.safetensors"}


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
        "--out",
        tmp_path / "o",
    ]
    run("inpaint", *words)
    codes = load_file(tmp_path / "o" / "codes.safetensors")
    assert not codes["redrawn"][0].any() and codes["redrawn"][1:].all()
    assert torch.equal(codes["fills"][0, 0], codes["image"][0])


def test_reconstructions_lie_beside_the_images_by_number_of_codes(checkpoints, pictures, tmp_path, capsys):
    vqvae = checkpoints / "rqvae-shared" / "model.pt"
    run("reconstruct", pictures, "-v", vqvae, "--out", tmp_path / "out")
    depth = len(load_rqvae(vqvae).quantizer.num_codes)
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png"))
    assert names == ["by_codes/a.png", "by_codes/more/b.png", "images/a.png", "images/more/b.png"]
    with Image.open(tmp_path / "out" / "by_codes" / "a.png") as sheet:
        assert sheet.size == ((1 + depth) * 130 + 2, 132)
    said = capsys.readouterr().out
    assert f"2 images to {tmp_path / 'out'}; PSNR in dB from 1 to {depth} codes: " in said


def test_what_is_transparent_lies_over_the_background(tmp_path):
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png", 3, "#ff0000"))[:, 0], [[10, 20, 30], [255, 0, 0]])
    assert np.array_equal(np.asarray(open_picture(tmp_path / "a.png", 3))[1, 1], [255, 255, 255])
    assert np.asarray(open_picture(tmp_path / "a.png", 4))[0, 0].tolist() == [10, 20, 30, 255]


def test_cells_are_those_that_any_white_pixel_touches():
    mask = np.zeros((8, 12), np.uint8)
    mask[0, 2] = mask[7, 9] = 200  # the corners of the crop
    mask[3, 5] = 100  # too dark
    mask[0, 0] = mask[7, 11] = 255  # outside
    cells = white_cells(Image.fromarray(mask), (12, 8), (16, 16), (4, 4))
    assert cells.nonzero().tolist() == [[0, 0], [3, 3]]
    lying = white_cells(Image.fromarray(mask), (12, 8), (8, 12), (2, 3))
    assert lying.nonzero().tolist() == [[0, 0], [1, 2]]


@pytest.mark.parametrize("wanted", [(16, 16), (24, 16), (16, 24)])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (40, 11), (7, 9)])
def test_pictures_are_seen_as_training_sees_them(wanted, shape):
    """The library's own reader of pictures beside that of data sets."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    given = as_tensor(picture, wanted)
    expected = from_uint8(Pipeline("imagenet", wanted)(picture, None)[None])[0]
    assert given.shape == (3, *wanted) and (given - expected).abs().max() < 1e-6


def test_a_sheet_has_its_pictures_in_order(tmp_path):
    save_sheet([torch.full((1, 64, 64), value) for value in (-1.0, 0.0, 1.0)], tmp_path / "s.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape == (2 * 130 + 2, 2 * 130 + 2)
    assert (sheet[50, 50], sheet[50, 200], sheet[200, 50], sheet[200, 200]) == (0, 128, 255, 255)


def test_a_second_stage_1_is_noticed(checkpoints, tmp_path, capsys):
    stage2 = load_rqtransformer(checkpoints / "rqtransformer-class" / "model.pt")
    stage2.save_pretrained(tmp_path / "stage2", metadata={"tokenizer": "0" * 64, "class_names": ["cat", "dog"]})
    vqvae = checkpoints / "rqvae-shared" / "model.pt"
    with pytest.raises(SystemExit):
        run("sample", "-v", vqvae, "-a", tmp_path / "stage2", "--out", tmp_path / "out")
    assert "was trained on the codes of other stage-1 weights than" in capsys.readouterr().err


def test_stage_1_has_the_weights_that_stage_2_was_trained_with(checkpoints, tmp_path):
    stage1 = load_rqvae(checkpoints / "rqvae-shared" / "model.pt")
    stage2 = load_rqtransformer(checkpoints / "rqtransformer-class" / "model.pt")
    raw = snapshot_tensors(stage1)
    with torch.no_grad():
        next(stage1.encoder.parameters()).mul_(0.5)
    folders = (tmp_path / "stage1", tmp_path / "stage2")
    for folder in folders:
        folder.mkdir()
    averaged = {"model.safetensors": raw, "model_ema.safetensors": snapshot_tensors(stage1)}
    write_snapshot(folders[0], averaged, OmegaConf.to_yaml(OmegaConf.create(stage1._sections())), {})
    config = OmegaConf.create({**stage2._sections(), "vqvae": {"ema": True}})
    weights = {"model.safetensors": snapshot_tensors(stage2)}
    write_snapshot(folders[1], weights, OmegaConf.to_yaml(config), {"tokenizer": weights_digest(stage1)})
    for folder in folders:
        (folder / "COMPLETE").touch()
    tokenizer, _ = load_both(*folders, torch.device("cpu"))
    assert weights_digest(tokenizer) == weights_digest(stage1)


def mistakes(checkpoints: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    image, mask, both = tmp_path / "pictures" / "a.png", tmp_path / "mask.png", model_flags(checkpoints)
    out, vqvae, text = (
        ["--out", tmp_path / "o"],
        model_flags(checkpoints)[:2],
        model_flags(checkpoints, "rqtransformer-text"),
    )
    return {
        "no command": ([], "the following arguments are required"),
        "no such command": (["inpant"], "invalid choice: 'inpant'"),
        "no checkpoint": (["inspect", tmp_path / "x"], "no checkpoint at"),
        "no class": (["inpaint", image, mask, *both, *out], "this model has classes: give --class (0..9, or a name)"),
        "no such class": (["sample", *both, *out, "--class", "cat"], "--class cat is none of the model's: 0..9"),
        "captions": (["sample", *text, *out], "trained on captions"),
        "neither": (["inpaint", image, *both, *out], "either a MASK or --keep-rows"),
        "rows": (["inpaint", image, *both, *out, "--class", 1, "--keep-rows", 8], "--keep-rows 8 must be 0 to 7"),
        "no images": (["sample", *both, *out, "-n", 0], "--num must be at least 1, not 0"),
        "temperature": (["sample", *both, *out, "-t", 0], "temperature=0.0 must be above 0"),
        "device": (["sample", *both, *out, "--device", "abacus"], "--device abacus cannot be had"),
        "mask of another size": (["inpaint", tmp_path / "small.png", mask, *both, *out, "--class", 1], "is 24x16"),
        "black mask": (["inpaint", image, tmp_path / "black.png", *both, *out, "--class", 1], "white nowhere"),
        "no image": (["inpaint", tmp_path / "x.png", mask, *both, *out, "--class", 1], "there is no image"),
        "full": (["reconstruct", image, *vqvae, "--out", image.parent], "exists and is not an empty folder"),
        "nothing": (["reconstruct", tmp_path / "x", *vqvae, *out], "no file and no folder"),
        "empty": (["reconstruct", tmp_path / "empty", *vqvae, *out], "holds no images"),
        "no picture": (["reconstruct", tmp_path / "text.png", *vqvae, *out], "text.png cannot be read as an image"),
        "two stage 2": (["sample", "-v", both[3], "-a", both[3], *out], "arch.type is 'rq-transformer', not 'rq-vae'"),
    }


@pytest.mark.parametrize("name", mistakes(Path(), Path()))
def test_mistakes_are_one_line(name, checkpoints, pictures, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    Image.new("L", (24, 16)).save(tmp_path / "black.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    words, said = mistakes(checkpoints, tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        run(*words)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in error and len(error.splitlines()) == 1 and error.startswith("error: ") and len(error) < 420
    assert sorted(tmp_path.rglob("*")) == before


def test_without_pillow_it_is_said_before_anything_is_drawn(checkpoints, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SystemExit) as ended:
        run("sample", *model_flags(checkpoints), "--out", tmp_path / "out")
    assert ended.value.code == 2
    error = "error: reading and writing pictures needs the package pillow: pip install rqstack[images]\n"
    assert capsys.readouterr().err == error
    assert not (tmp_path / "out").exists()
    run("inspect", checkpoints / "rqvae-shared" / "model.pt")  # needs no pictures


def test_a_folder_with_a_broken_picture_leaves_nothing(checkpoints, pictures, tmp_path, capsys):
    shutil.copy(pictures / "a.png", pictures / "z.png")
    (pictures / "y.png").write_text("no picture")
    with pytest.raises(SystemExit):
        run("reconstruct", pictures, "-v", checkpoints / "rqvae-shared" / "model.pt", "--out", tmp_path / "out")
    assert "y.png cannot be read as an image" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
