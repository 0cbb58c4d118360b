"""Pictures of 24 x 16 pixels through everything: both stages, samples, in-painting, reconstructions, scores, codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from rqstack.archive import read_archive
from rqstack.inspection import facts_of, lines_of
from rqtransformer import load_rqtransformer, sample
from rqvae import load_rqvae
from sampling.trained_models import class_names_of, resolve_checkpoint
from tests.commands import run_here
from tests.training.tiny_runs import only_run, session, stage1, stage2, train, write_config

SIZE = (24, 16)  # height, width
GRID = [6, 4, 2]
CLASSES = ("left", "right")
ARCH = {
    "arch.hparams.latent_shape": [12, 8, 8],
    "arch.hparams.code_shape": GRID,
    "arch.ddconfig.resolution": list(SIZE),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """A folder of pictures, dark but for a light corner, and a run of either stage on them."""
    root = tmp_path_factory.mktemp("shapes")
    draw = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / "pictures" / name).mkdir(parents=True)
        for number in range(12):
            pixels = draw.integers(0, 64, (*SIZE, 3), dtype=np.uint8)
            pixels[:8, 8 * label : 8 * label + 8] += 180
            Image.fromarray(pixels).save(root / "pictures" / name / f"{number}.png")
    dataset = {"type": "folder", "root": str(root / "pictures"), "hflip": False, "val_fraction": 0.25}
    shaped = {"dataset": {**dataset, "resolution": list(SIZE), "resize": "keep"}, "experiment.max_steps": 3}
    config = write_config(root / "one.yaml", stage1({**shaped, **ARCH, "experiment.grid_images": 3}))
    one = train("stage1", "-m", config, "-r", root / "one").run_dir
    # stage 2 takes size and shape from stage 1
    config = write_config(
        root / "two.yaml",
        stage2({"dataset": dataset, "experiment.max_steps": 3, "arch.vocab_size_cond": 2, "arch.block_size": GRID}),
    )
    two = train("stage2", "-m", config, "-v", one, "-r", root / "two").run_dir
    return {"root": root, "pictures": root / "pictures", "one": one, "two": two, "config": config}


def models(made: dict[str, Path]) -> list[object]:
    return ["-v", made["one"], "-a", made["two"]]


def test_runs_and_their_pictures_have_the_shape(made):
    stage, network = load_rqvae(resolve_checkpoint(made["one"])), load_rqtransformer(resolve_checkpoint(made["two"]))
    assert stage.config.ddconfig.image_size == SIZE and list(network.config.block_size) == GRID
    said = (made["two"] / "config.yaml").read_text()
    assert "resize: keep" in said
    (picture,) = (made["one"] / "samples").glob("*coarse_to_fine*")
    width, height = Image.open(picture).size
    assert height > width  # three pictures beside each other, in three rows, each higher than wide


def test_names_of_classes_travel_with_stage_2(made):
    snapshot = resolve_checkpoint(made["two"])
    lines = lines_of(facts_of(read_archive(snapshot)))
    assert class_names_of(snapshot) == list(CLASSES)
    assert "classes: 2 (left, right)" in lines
    assert any(line.startswith("training images of each class: ") for line in lines)
    assert not any("class_names" in line for line in lines)


@pytest.mark.slow
def test_samples_are_drawn_saved_and_scored(made, tmp_path):
    words = [*models(made), "-n", 5, "--save-dir", tmp_path, "--no-tensorboard", "experiment.num_workers=0"]
    scores = ["--features", "classifier", "--features-cache", tmp_path / "cache", "-bs", 2]
    run_here("main_sampling_fid.py", *words, *scores)
    (directory,) = (tmp_path / "samples").iterdir()
    files = sorted((directory / "images").iterdir())
    assert [Image.open(file).size for file in files] == [(16, 24)] * 5
    assert json.loads((directory / "result.json").read_text())["num_images"] == 5
    run_here("main_sampling_fid.py", *words, "--format", "npz", "--no-stats-saving", "--save-dir", tmp_path / "npz")
    (archive,) = (tmp_path / "npz" / "samples").glob("*/samples.npz")
    image_NHWC = np.load(archive)["arr_0"]
    assert image_NHWC.shape == (5, *SIZE, 3)
    assert all(np.array_equal(image_NHWC[place], np.asarray(Image.open(file))) for place, file in enumerate(files))
    # saved images are compared with a data set at their own size, in their own shape
    data = ["ref_dataset=folder", f"dataset.root={made['pictures']}", "num_workers=0", "metrics=fid"]
    target = ["--out", tmp_path / "line.json", "--report", "--features", "classifier"]
    run_here("compute_metrics.py", f"fake_path={directory}", *data, *target, "--features-cache", tmp_path / "cache")
    assert json.loads((tmp_path / "line.json").read_text())["num_images"] == 5


def test_samples_do_not_depend_on_batches_and_codes_are_kept(made):
    stage, network = load_rqvae(resolve_checkpoint(made["one"])), load_rqtransformer(resolve_checkpoint(made["two"]))
    stage, network, classes = stage.eval(), network.eval(), torch.tensor([0, 1, 0])
    whole = sample(network, stage, classes, seed=1)
    assert whole.shape == (3, *GRID)
    for number in range(3):
        alone = sample(network, stage, classes[number : number + 1], seed=1, indices=torch.tensor([number]))
        assert torch.equal(alone[0], whole[number])
    kept = torch.zeros(6, 4, dtype=torch.bool)
    kept[5, :] = kept[:, 3] = True
    filled = sample(network, stage, classes, seed=2, known=(kept, whole))
    assert torch.equal(filled[:, kept], whole[:, kept]) and not torch.equal(filled, whole)
    rows = sample(network, stage, classes, seed=1, prefix=whole[:, :3])
    assert torch.equal(rows, whole)  # the same draws after the same rows


def test_images_are_filled_and_given_back(made, tmp_path):
    image = made["pictures"] / "left" / "0.png"
    mask = np.zeros(SIZE, np.uint8)
    mask[23, 0] = 255  # the lower left corner
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run_here("sampling.inpaint", image, tmp_path / "mask.png", *models(made), "--class", "left", "--save-dir", tmp_path)
    (directory,) = (tmp_path / "inpainted").iterdir()
    codes = np.load(directory / "codes.npz")
    assert codes["redrawn"].shape == (6, 4) and np.argwhere(codes["redrawn"]).tolist() == [[5, 0]]
    assert np.array_equal(codes["fills"][:, ~codes["redrawn"]], np.stack([codes["image"][~codes["redrawn"]]] * 4))
    with Image.open(directory / "fill-0.png") as fill:
        assert fill.size == (16, 24)
    run_here("sampling.reconstruct", made["pictures"], tmp_path / "out", "-v", made["one"])
    given = np.asarray(Image.open(tmp_path / "out" / "images" / "left" / "0.png")).astype(int)
    assert given.shape == (*SIZE, 3)


@pytest.mark.slow
def test_reconstructions_are_scored(made, tmp_path):
    features = ["--features", "classifier", "--features-cache", tmp_path / "cache"]
    words = ["--split=val", f"--vqvae={made['one']}", "-bs", 5, "experiment.num_workers=0"]
    run_here("compute_rfid.py", *words, *features)
    (file,) = resolve_checkpoint(made["one"]).glob("rfid_val_*.json")
    line = json.loads(file.read_text())
    assert any(name.startswith("ssim") for name in line["metrics"]) and line["num_images"] == 5


@pytest.mark.slow
def test_codes_are_extracted_and_trained_from(made, tmp_path):
    run_here("extract_codes.py", "-v", made["one"], "--num-workers", 0, tmp_path / "latents")
    manifest = json.loads((tmp_path / "latents" / "train.manifest.json").read_text())
    assert manifest["resolution"] == list(SIZE) and manifest["codes_shape"] == GRID
    config = stage2({"dataset": {"type": "latents", "root": str(tmp_path / "latents")}, "experiment.max_steps": 1})
    config["arch"] |= {"vocab_size_cond": 2, "block_size": GRID}
    train("stage2", "-m", write_config(tmp_path / "l.yaml", config), "-v", made["one"], "-r", tmp_path / "runs")
    assert (only_run(tmp_path / "runs") / "snapshots").is_dir()


@pytest.mark.slow
def test_a_run_is_resumed_with_its_shape_and_no_other(made, tmp_path):
    words = ["-m", made["config"], "-v", made["one"], "-r", made["root"] / "two", "--resume"]
    resumed = session("stage2", *words, "experiment.max_steps=4")
    assert resumed.train_set.resolution == SIZE
    resumed.close()
    with pytest.raises(ValueError, match="dataset.resolution=.16, 24.: the resumed run has .24, 16. and cannot"):
        session("stage2", *words, "dataset.resolution=[16,24]")


def test_other_shapes_than_those_of_stage_1_are_refused(made, tmp_path):
    for word, named in (
        ("dataset.resolution=[16,24]", "are 16 pixels high and 24 wide, that of the stage-1 checkpoint is [24, 16]"),
        ("dataset.resolution=24", "are 24 pixels wide, that of the stage-1 checkpoint is [24, 16]"),
    ):
        with pytest.raises(ValueError) as told:
            session("stage2", "-m", made["config"], "-v", made["one"], "-r", tmp_path, word, "dataset.resize=keep")
        assert named in str(told.value) and "dataset.resolution=[24,16] dataset.resize=keep" in str(told.value)


def test_export_and_shards_keep_the_shape(made, tmp_path):
    words = ["--data-root", made["pictures"], "resolution=[24,16]", "resize=keep", "val_fraction=0.25"]
    run_here("data.export", "--dataset", "folder", "--split", "val", *words, tmp_path / "val.npz")
    image_NHWC = np.load(tmp_path / "val.npz")["arr_0"]
    assert image_NHWC.shape[1:] == (*SIZE, 3)
    shape = ["resolution=[24,16]", "resize=keep"]
    with pytest.raises(SystemExit, match="0"):
        run_here("data.prepare", "--dataset", "digits", "--split", "val", *shape, tmp_path / "s")
    config = DatasetConfig(type="shards", root=str(tmp_path / "s"), resolution=[24, 16], resize="keep")
    assert build_dataset(config, "val").fetch(np.arange(2), None)["image"].shape == (2, 3, *SIZE)
