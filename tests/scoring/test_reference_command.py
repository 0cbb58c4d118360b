"""`python -m scoring.reference`: make, show, check, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluation.networks.feature_networks import build_features
from scoring.image_source import default_name
from scoring.reference import parse
from scoring.reference_loading import load_reference
from tests.evaluation.image_files import as_png, random_images, write_array, write_folder

IMAGES = random_images(24, 16)
LABELS = np.arange(24) % 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Flags for the small classifier, and the folder of images it was trained on."""
    folder = tmp_path_factory.mktemp("reference")
    write_array(folder / "train.npz", IMAGES, arr_1=LABELS)
    write_folder(folder / "png", IMAGES)
    flags = (
        "--features",
        "classifier",
        "--classifier-data",
        folder / "train.npz",
        "--features-cache",
        folder / "cache",
        "--device",
        "cpu",
    )
    return folder, flags


def last_line(out):
    return json.loads(out.splitlines()[-1])


def test_make_show_check(trained, command, tmp_path):
    folder, flags = trained
    output = tmp_path / "ref.npz"
    code, out, error = command(
        "scoring.reference", "make", folder / "png", "--output", output, "--keep-features", *flags
    )
    assert code == 0, error
    assert "only 24 images behind png, under 2048" in error
    made = last_line(out)
    assert (made["name"], made["num_images"], made["features"], made["classes"]) == ("png", 24, True, 0)
    code, out, _ = command("scoring.reference", "show", output)
    assert (code, last_line(out)) == (0, made)
    assert "num_images  24" in out

    extractor = build_features(
        "classifier", num_classes=2, cache_dir=folder / "cache", train=lambda: [(IMAGES, torch.from_numpy(LABELS))]
    )
    reference = load_reference(output, extractor)
    assert reference.network["fingerprint"] == extractor.fingerprint == made["weights"]
    torch.testing.assert_close(reference.features_NF, extractor(IMAGES)[0])

    # the same images in another form, without any feature network
    code, out, _ = command("scoring.reference", "check", output, folder / "train.npz")
    assert (code, out[:3]) == (0, "ok:")
    changed = IMAGES.clone()
    changed[3, 1, 2, 2] ^= 1
    write_array(tmp_path / "changed.npz", changed)
    code, out, error = command("scoring.reference", "check", output, tmp_path / "changed.npz")
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert "was made from other images" in error


def test_check_of_published_moments(trained, command, tmp_path):
    folder, flags = trained
    command("scoring.reference", "make", folder / "png", "--output", tmp_path / "a.npz", *flags)
    ours = np.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=ours["mu"].astype(np.float32), sigma=ours["sigma"].astype(np.float32))
    code, out, error = command("scoring.reference", "check", tmp_path / "b.npz", folder / "png", *flags)
    assert (code, out[:3]) == (0, "ok:"), error
    assert "records no images; Frechet distance" in out
    np.savez(tmp_path / "b.npz", mu=ours["mu"] + 1, sigma=ours["sigma"])
    code, _, error = command("scoring.reference", "check", tmp_path / "b.npz", folder / "png", *flags)
    assert (code, error.count("\n")) == (2, 1)
    assert "has other moments" in error
    np.savez(tmp_path / "b.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    code, _, error = command("scoring.reference", "check", tmp_path / "b.npz", folder / "png", *flags)
    assert (code, error.count("\n")) == (2, 1)
    assert "has 2048 features" in error


def test_unreadable_images_are_counted(trained, command, tmp_path):
    _, flags = trained
    folder = write_folder(tmp_path / "png", IMAGES)
    (folder / "0005.png").write_bytes(as_png(IMAGES[5])[:200])
    output = tmp_path / "a.npz"
    code, _, error = command("scoring.reference", "make", folder, "--output", output, *flags)
    assert (code, error.count("\n")) == (2, 1)
    assert "0005.png cannot be read" in error
    assert not output.exists()
    code, out, error = command("scoring.reference", "make", folder, "--output", output, "--skip-unreadable", *flags)
    assert code == 0
    assert f"warning: 1 unreadable images of {folder} left out: {folder}/0005.png\n" in error
    assert last_line(out)["num_images"] == 23


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["make", "{empty}"], "no images in"),
        (["make", "{empty}/nowhere"], "expected a folder of images"),
        (["make", "{one}"], "a covariance needs at least 2 images, there is 1"),
        (["make", "{png}"], "no weights at"),
        (["make", "{png}", "--features-weights", "{empty}/x.pth"], "no weights at"),
        (["make", "{png}", "--features", "classifier"], "needs --classifier-data"),
        (["make", "{png}", "--features", "classifier", "--classifier-data", "{png}"], "has no labels"),
        (["make", "{png}", "--features", "resnet"], "'resnet'"),
        (["make", "{png}", "--features-resize", "box"], "invalid choice: 'box'"),
        (["make", "{png}", "--output", "x.pt"], "--output 'x.pt' must end in .npz"),
        (["make", "{png}", "--name", "a/b"], "--name 'a/b' goes into metric names"),
        (["make", "{png}", "--batch-size", "0"], "--batch-size 0"),
        (["make", "{png}", "more"], "make takes SOURCE, got"),
        (["check", "{png}"], "check takes FILE and SOURCE"),
        (["show", "{empty}/x.npz"], "no file"),
        (["show", "{train}"], "is no reference: it has arr_0, arr_1, not mu and sigma"),
        (["look", "{png}"], "invalid choice: 'look'"),
        (["make", "{png}", "--spatal"], "did you mean --spatial?"),
    ],
)
def test_one_line_and_exit_code_2(trained, command, tmp_path, monkeypatch, words, match):
    folder, _ = trained
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "one", IMAGES[:1])
    places = {"empty": tmp_path / "empty", "one": tmp_path / "one", "png": folder / "png"}
    places["train"] = folder / "train.npz"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("FID_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, error = command("scoring.reference", *[word.format(**places) for word in words])
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert error.startswith("error: ")
    assert match in error


def test_names():
    assert default_name("dataset:cifar10:train") == "cifar10-train"
    assert default_name("/a/b c/my images/") == "my-images"
    assert default_name("x/y.npz") == "y"
    settings = parse(["make", "x", "resolution=64", "--data-root", "y"])
    assert (settings.source, settings.dataset.resolution, settings.dataset.root) == ("x", 64, "y")
