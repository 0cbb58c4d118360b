"""Listing a folder: links, errors, unread endings; and which of its folders are splits."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.images import listing
from data.images.listing import IMAGE_EXTENSIONS, folders_with_images, holds_image, list_images, scan
from data.images.split_folders import find_splits, split_of

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def said_anew():
    listing._say_once.cache_clear()


def touch(root, *names):
    """Images that differ in their bytes."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), next(_numbers) % 251, dtype=np.uint8)).save(root / name, "PNG")


def build(root, split="train", **settings):
    return build_dataset(DatasetConfig(**{"type": "folder", "root": str(root), "resolution": 8, **settings}), split)


@pytest.mark.parametrize("target", [".", "..", "a", "a/b", "latest"])
def test_links_in_circles_and_to_folders_above_list_every_image_once(tmp_path, caplog, target):
    root = tmp_path / "set"
    touch(root, "a/1.png", "a/b/2.png", "c/3.png")
    touch(tmp_path, "beside/no.png")
    (root / "a" / "loop").symlink_to(root / target)
    (root / "latest").symlink_to(root / "a")
    assert list_images(root) == ["a/1.png", "a/b/2.png", "c/3.png"]
    assert folders_with_images(root) == ["a", "c"]
    assert "2 links lead to what is listed anyway, left out: a/loop, latest\n" in caplog.text


def test_links_that_lead_out_are_followed_once(tmp_path):
    touch(tmp_path, "store/x/1.png", "store/x/2.png", "store/y/3.png")
    root = tmp_path / "set"
    root.mkdir()
    for name, target in (("a", "x"), ("again", "x"), ("b", "y"), ("c", "")):
        (root / name).symlink_to(tmp_path / "store" / target)
    (tmp_path / "store" / "y" / "back").symlink_to(root)
    assert list_images(root) == ["a/1.png", "a/2.png", "b/3.png"]
    assert folders_with_images(root) == ["a", "b"] and holds_image(root)
    train, val = build(root), build(root, "val")
    assert train.class_names == val.class_names == ("a", "b")


def test_links_to_files(tmp_path):
    touch(tmp_path, "set/a.png", "store/b.png", "set/.hidden/c.png")
    for name, target in (("copy.png", "a.png"), ("b.png", "../store/b.png"), ("b2.png", "../store/b.png")):
        (tmp_path / "set" / name).symlink_to(target)
    (tmp_path / "set" / "kept.png").symlink_to(".hidden/c.png")
    (tmp_path / "set" / "gone.png").symlink_to("nowhere.png")  # an unreadable image, as if it were there
    assert list_images(tmp_path / "set") == ["a.png", "b.png", "gone.png", "kept.png"]


def test_a_link_that_leads_nowhere_may_be_a_class(tmp_path):
    touch(tmp_path, "a/1.png")
    (tmp_path / "b").symlink_to("/nowhere/at/all")
    with pytest.raises(ValueError, match="b is a link that leads nowhere"):
        build(tmp_path)
    (tmp_path / "b").unlink()
    (tmp_path / "b").symlink_to(tmp_path / "b")
    with pytest.raises(ValueError, match="b is a link that leads nowhere .or in a circle."):
        list_images(tmp_path)


def test_a_folder_that_cannot_be_read_is_an_error_and_takes_no_class_away(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "b/2.png", "c/3.png", "a/4.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for split in ("train", "val"):
        with pytest.raises(PermissionError, match="/b'"):
            build(tmp_path, split)


def test_what_is_no_file_is_never_opened(tmp_path):
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    assert list_images(tmp_path) == ["a.png"]


def test_unread_endings_are_said_once(tmp_path, caplog):
    touch(tmp_path, "a.png", "b/C.JPG", "d.Tiff")
    for name in ("x.gif", "y.GIF", "z.jfif", "b/n.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for _ in range(2):
        assert list_images(tmp_path) == ["a.png", "b/C.JPG", "d.Tiff"]
    assert caplog.text.count("not read: 2 .gif, 1 .heic, 1 .jfif; images end in .jpg") == 1
    assert ".txt" not in caplog.text
    assert not set(IMAGE_EXTENSIONS) & listing._OTHER_IMAGES


def test_a_folder_of_unread_files_says_what_is_there(tmp_path):
    for name in ("a.gif", "b.gif", "c"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no images found in .* \(3 files .* not read: 2 .gif, 1 without"):
        build(tmp_path)
    assert scan(tmp_path).images == []


def test_folders_without_images_are_said_to_be_no_classes(tmp_path, caplog):
    touch(tmp_path, *(f"{name}/{number}.png" for name in "ac" for number in range(20)))
    (tmp_path / "b").mkdir()
    assert build(tmp_path).class_names == ("a", "c")
    assert "folders without images are no classes: b" in caplog.text


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("Train", "train"), ("TRAINING", "train"), ("train2017", "train"), ("trainset", "train"),
     ("valid", "val"), ("Val", "val"), ("validation_images", "val"), ("dev", "val"), ("eval", "val"), ("test", "test"),
     ("test-set", "test"), ("cats", None), ("training wheels", None), ("", None), ("2017", None), ("setter", None)],
)  # fmt: skip
def test_names_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    "names", [("train", "valid"), ("Train", "Val"), ("training", "validation"), ("train", "test"), ("train", "eval"),
              ("train2017", "val2017"), ("trn", "dev"), ("TRAIN", "TEST")],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["", "cats/"])
def test_folders_with_the_names_of_splits_are_splits_and_no_classes(tmp_path, names, inside):
    for name, count in zip(names, (6, 3)):
        touch(tmp_path, *(f"{name}/{inside}{number}.png" for number in range(count)))
    train, val = build(tmp_path), build(tmp_path, "val")
    assert (len(train), len(val), train.num_classes) == (6, 3, 1)
    assert not {name for name in names} & set(train.class_names)
    for kind in ("lsun-church", *(["imagenet"] if inside else [])):
        assert [len(build(tmp_path, split, type=kind)) for split in ("train", "val")] == [6, 3]


def test_test_images_are_left_out_where_there_are_validation_images_and_that_is_said(tmp_path, caplog):
    touch(tmp_path, "train/1.png", "val/2.png", "test/3.png", "extra/4.png", "loose.png")
    assert [build(tmp_path, split).source.name(0)[-5:] for split in ("train", "val")] == ["1.png", "2.png"]
    assert "not used beside the splits: test, extra, 1 images beside the folders" in caplog.text


def test_training_images_alone_are_split_as_if_they_were_named(tmp_path):
    touch(tmp_path, *(f"train/{label}/{number}.png" for label in "ab" for number in range(30)))
    for split in ("train", "val"):
        above, named = build(tmp_path, split), build(tmp_path / "train", split)
        assert list(above.source.names()) == list(named.source.names()) and above.class_names == ("a", "b")


@pytest.mark.parametrize(
    "names", [("val/x",), ("test/x",), ("valid/x", "test/y"), ("train/x", "Training/y", "val/z"), ("val/a/x", "cats/y"),
              ("train/a/x", "train/b/x", "more/y"), ("train/x", "val/y", "validation/z")],
)  # fmt: skip
def test_what_looks_like_splits_and_is_not_understood_is_refused(tmp_path, names):
    touch(tmp_path, *(f"{name}{number}.png" for name in names for number in range(9)))
    for split in ("train", "val"):
        with pytest.raises(ValueError, match="look like splits and are not understood: .*class_folders=true") as error:
            build(tmp_path, split)
        assert len(str(error.value).replace(str(tmp_path), "/data")) < 300
    first = {name.split("/")[0] for name in names}
    assert set(build(tmp_path, class_folders=True).class_names) == first


def test_one_class_of_several_may_be_called_like_a_split(tmp_path):
    touch(tmp_path, *(f"{name}/{number}.png" for name in ("car", "plane", "train") for number in range(9)))
    assert find_splits("folder", tmp_path) is None
    assert build(tmp_path).class_names == ("car", "plane", "train")
