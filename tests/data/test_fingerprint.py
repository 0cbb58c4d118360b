"""What identifies the images of a run: names, sizes, labels and captions, of every kind of data set."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data import fingerprint as fingerprints
from data.fingerprint import fingerprint, from_json


def write_images(root, count=60, start=0, size=8, captions=False):
    for number in range(start, start + count):
        path = root / f"class{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"picture {number}")
    return root


def splits(root, kind="folder", **settings):
    config = DatasetConfig(type=kind, root=None if root is None else str(root), resolution=8, **settings)
    return build_dataset(config, "train"), build_dataset(config, "val")


def prints(root, kind="folder", **settings):
    found = fingerprint(*splits(root, kind, **settings))
    return found.train, found.val


def test_the_same_images_elsewhere_are_the_same(tmp_path):
    root = write_images(tmp_path / "a")
    shutil.copytree(root, tmp_path / "b")
    assert prints(root) == prints(tmp_path / "b")
    content = fingerprint(*splits(root)).as_json()
    assert from_json(json.loads(json.dumps(content))) == fingerprint(*splits(root))


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "other pixels", "other class", "other caption"])
def test_every_change_is_noticed(tmp_path, change):
    root = write_images(tmp_path, captions=True)
    kind = "caption-folder" if change == "other caption" else "folder"
    before, path = prints(root, kind), root / "class0" / "000.png"
    if change == "added":
        write_images(root, 1, start=99)
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("new.png"))
    elif change == "other pixels":
        Image.new("RGB", (8, 8)).save(path)
    elif change == "other class":
        path.rename(root / "class1" / "000.png")
    else:
        path.with_suffix(".txt").write_text("another")
    assert prints(root, kind) != before


def test_images_that_come_or_go_move_no_validation_image_into_training(tmp_path):
    root = write_images(tmp_path)
    known = fingerprint(*splits(root))
    write_images(root, 10, start=60)
    (root / "class0" / "000.png").unlink()
    assert known.share_trained_on(splits(root)[1]) == 0


@pytest.mark.parametrize("settings", [{"split_seed": 1}, {"val_fraction": 0.5}])
def test_validation_images_that_were_trained_on_are_counted(tmp_path, settings):
    root = write_images(tmp_path, captions=True)
    train, _ = splits(root)
    known = fingerprint(*splits(root))
    _, val = splits(root, "caption-folder", **settings)
    trained = set(train.names())
    expected = np.mean([name in trained for name in val.names()])
    assert known.share_trained_on(val) == pytest.approx(expected) and expected > 0.3


def test_classes_and_captions_over_one_folder_hold_out_the_same_images(tmp_path):
    root = write_images(tmp_path, captions=True)
    for missing in ("class0/000.txt", "class1/001.txt"):
        (root / missing).unlink()  # images without captions are left out, and move no other
    known = fingerprint(*splits(root))
    train, val = splits(root, "caption-folder")
    assert known.share_trained_on(val) == 0 and set(val.names()) <= set(splits(root)[1].names())
    assert not set(train.names()) & set(splits(root)[1].names())


def test_a_large_data_set_is_known_by_a_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_SEEN", 20)
    monkeypatch.setattr(fingerprints, "_MOST_SIZES", 10)
    root = write_images(tmp_path, 150)
    known = fingerprint(*splits(root))
    assert len(known.seen) == 20 and known.share_trained_on(splits(root)[1]) == 0
    assert 0.5 < known.share_trained_on(splits(root, split_seed=3, val_fraction=0.5)[1]) <= 1


def test_one_image_among_seven_hundred_is_noticed(tmp_path):
    """All names of a data set of this size are known, not a sample of 512."""
    root = write_images(tmp_path, 700)
    train, val = splits(root)
    assert len(fingerprint(train, val).seen) == len(train) > 600
    moved = splits(root)[1]
    names, size = [*moved.names()][1:] + [next(iter(train.names()))], moved.image_size
    moved.names = lambda: names
    moved.image_size = lambda index: size(index) if index < len(names) - 1 else train.image_size(0)
    assert fingerprint(train, val).share_trained_on(moved) == pytest.approx(1 / len(moved))


def test_equal_names_in_given_splits_are_other_images(tmp_path):
    for split in ("train", "valid"):
        write_images(tmp_path / split)  # the very same files
    known = fingerprint(*splits(tmp_path))
    assert known.share_trained_on(splits(tmp_path)[1]) == 0


@pytest.mark.parametrize("kind", ["digits", "synthetic", "synthetic-pairs"])
def test_data_sets_without_files(kind):
    settings = {"num_samples": 50} if kind != "digits" else {}
    known = fingerprint(*splits(None, kind, **settings))
    assert known.share_trained_on(splits(None, kind, **settings)[1]) == 0
    others = fingerprint(*splits(None, kind, **settings, split_seed=1))
    assert (known.train, known.val) != (others.train, others.val)
    if kind == "digits":
        assert known.share_trained_on(splits(None, kind, split_seed=1)[1]) > 0.5


@pytest.mark.parametrize("content", [None, {}, [], "x", {"rule": 0}, {"rule": 1, "train": 3}, {"rule": 1, "train": []}])
def test_what_is_no_fingerprint(content):
    assert from_json(content) is None
