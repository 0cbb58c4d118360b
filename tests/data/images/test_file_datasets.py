"""ImageNet, FFHQ, LSUN and folders of images: layouts, splits, crops, unreadable files."""

from __future__ import annotations

import io
import itertools
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, EvalLoader, TrainLoader, build_dataset
from data.images.decoding import decode_rgb
from data.images.encoded_images import PackedPaths
from data.images.listing import list_images


def _image(value, size=(20, 16), mode="RGB"):
    """An image whose pixels tell its number and their place."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = value, np.arange(width) * 5, np.arange(height)[:, None] * 5
    return Image.fromarray(pixels).convert(mode)


def _save(path, value, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    _image(value, **kwargs).save(path)


def _numbers(dataset):
    """The numbers of the images, read from their pixels."""
    return [int(round(float(dataset[i]["image"][0].mean()) * 127.5 + 127.5)) for i in range(len(dataset))]


def _build(split="train", **settings):
    return build_dataset(DatasetConfig(**{"resolution": 8, **settings}), split)


def test_imagenet_folders(tmp_path):
    for label, name in enumerate(("n03", "n01", "n02")):
        for number in range(3):
            _save(tmp_path / "train" / name / f"{number}.PNG", 10 * label + number)
        if name != "n01":
            _save(tmp_path / "val" / name / "sub" / "x.png", 100 + label)
    (tmp_path / "train" / "n02" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "n00").mkdir()  # a folder without images is no class
    train, val = (_build(split, type="imagenet", root=str(tmp_path)) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("n01", "n02", "n03")
    assert train.labels_N.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert _numbers(train) == [10, 11, 12, 20, 21, 22, 0, 1, 2]
    assert val.labels_N.tolist() == [1, 2] and _numbers(val) == [102, 100]
    _save(tmp_path / "val" / "n09" / "x.png", 0)
    with pytest.raises(ValueError, match="has a class 'n09' that the training images do not have"):
        _build("val", type="imagenet", root=str(tmp_path))


def test_imagenet_validation_needs_class_folders_and_training_images_do_not_have_to_exist(tmp_path):
    _save(tmp_path / "val" / "n01" / "x.png", 1)
    assert len(_build("val", type="imagenet", root=str(tmp_path))) == 1
    with pytest.raises(FileNotFoundError, match=r"expected train/<class>/\*.JPEG"):
        _build("train", type="imagenet", root=str(tmp_path))
    _save(tmp_path / "train" / "n01" / "x.png", 1)
    _save(tmp_path / "val" / "y.png", 1)
    with pytest.raises(ValueError, match="holds 1 images outside of class folders"):
        _build("val", type="imagenet", root=str(tmp_path))


def test_folder_with_classes_is_split_by_name(tmp_path):
    for name, count, base in (("b", 30, 100), ("a", 10, 0)):
        for number in range(count):
            _save(tmp_path / name / f"{number:02d}.png", base + number)
    train, val = (_build(split, type="folder", root=str(tmp_path)) for split in ("train", "val"))
    assert train.class_names == ("a", "b")
    assert len(train) + len(val) == 40 and 1 <= len(val) <= 8
    labels = [number // 100 for number in _numbers(train)]
    assert train.labels_N.tolist() == labels
    numbers = _numbers(train) + _numbers(val)
    assert sorted(numbers) == [*range(10), *range(100, 130)]
    assert _numbers(_build("val", type="folder", root=str(tmp_path))) == _numbers(val)
    others = [_numbers(_build("val", type="folder", root=str(tmp_path), split_seed=seed)) for seed in range(1, 4)]
    assert any(other != _numbers(val) for other in others)
    assert 12 <= len(_build("val", type="folder", root=str(tmp_path), val_fraction=0.5)) <= 28


def test_folder_without_classes_and_with_given_splits(tmp_path):
    for number in range(10):
        _save(tmp_path / "flat" / f"{number}.jpg", number)
    flat = _build(type="folder", root=str(tmp_path / "flat"))
    assert (flat.num_classes, flat.labels_N.unique().tolist()) == (1, [0])
    _save(tmp_path / "split" / "train" / "a.png", 1)
    _save(tmp_path / "split" / "val" / "b.png", 2)
    assert _numbers(_build("val", type="folder", root=str(tmp_path / "split"))) == [2]


def test_folder_problems(tmp_path):
    with pytest.raises(FileNotFoundError, match="folder: no images found in .*; expected images"):
        _build(type="folder", root=str(tmp_path))
    _save(tmp_path / "x.png", 1)
    with pytest.raises(ValueError, match="val_fraction 0.1 of 1 images leaves a split without images"):
        _build(type="folder", root=str(tmp_path))
    _save(tmp_path / "a" / "x.png", 1)
    with pytest.raises(ValueError, match="holds 1 images outside of class folders"):
        _build(type="folder", root=str(tmp_path))


def test_ffhq_is_split_by_number(tmp_path):
    for number in (59_999, 60_000, 7, 69_999):
        _save(tmp_path / f"{number // 1000:02d}000" / f"{number:05d}.png", number % 251, size=(16, 16))
    train, val = (_build(split, type="ffhq", root=str(tmp_path)) for split in ("train", "val"))
    assert _numbers(train) == [7, 59_999 % 251] and _numbers(val) == [60_000 % 251, 69_999 % 251]
    assert train.num_classes == 1
    _save(tmp_path / "thumbnails" / "00007.png", 0)
    with pytest.raises(ValueError, match="several images of one name"):
        _build(type="ffhq", root=str(tmp_path))


def test_ffhq_without_validation_images(tmp_path):
    _save(tmp_path / "face.png", 3)  # names that are no numbers count by their place
    assert _numbers(_build(type="ffhq", root=str(tmp_path))) == [3]
    with pytest.raises(FileNotFoundError, match="no images found in the val split"):
        _build("val", type="ffhq", root=str(tmp_path))


@pytest.mark.parametrize("names", [("train", "val"), ("church_outdoor_train", "church_outdoor_val")])
def test_lsun_folders(tmp_path, names):
    for name, numbers in zip(names, ((1, 2), (3,))):
        for number in numbers:
            _save(tmp_path / name / "a" / f"{number}.webp", number)
    config = dict(type="LSUN-church", root=str(tmp_path), transforms={"type": "LSUN-church"})
    train, val = (_build(split, **config) for split in ("train", "val"))
    assert (len(train), len(val), train.name, train.num_classes) == (2, 1, "lsun-church", 1)


def test_lsun_one_folder_is_split(tmp_path):
    for number in range(20):
        _save(tmp_path / f"{number:02d}.png", number)
    train, val = (_build(split, type="lsun_cat", root=str(tmp_path)) for split in ("train", "val"))
    assert 1 <= len(val) <= 5 and sorted(_numbers(train) + _numbers(val)) == list(range(20))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected bedroom_train_lmdb/"):
        _build(type="lsun-bedroom", root=str(tmp_path / "empty"))


class _FakeLmdb(types.ModuleType):
    """As much of the lmdb package as is used, over a dict per path; like it, it refuses to open a database twice."""

    def __init__(self, stores):
        super().__init__("lmdb")
        self.stores, self.is_open, self.opened = stores, set(), 0

    def open(self, path, *, readonly, lock, readahead, meminit):
        assert readonly and not lock
        if path in self.is_open:
            raise RuntimeError("already open in this process")
        self.is_open.add(path)
        self.opened += 1
        store = self.stores[path]

        class Transaction:
            def __enter__(self):
                return self

            def __exit__(self, *error):
                return False

            def cursor(self):
                return types.SimpleNamespace(iternext=lambda keys, values: iter(sorted(store)))

            def get(self, key):
                return store.get(key)

        return types.SimpleNamespace(begin=Transaction, close=lambda: self.is_open.discard(path))


def _encoded(number):
    buffer = io.BytesIO()
    _image(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_lsun_databases(tmp_path, monkeypatch):
    stores = {}
    for name, numbers in (("bedroom_train_lmdb", range(5)), ("bedroom_val_lmdb", (7,)), ("cat", range(20, 40))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").touch()
        stores[str(tmp_path / name)] = {b"key%03d" % number: _encoded(number) for number in numbers}
    lmdb = _FakeLmdb(stores)
    monkeypatch.setitem(sys.modules, "lmdb", lmdb)
    monkeypatch.setattr("data.images.lsun._OPEN", {})
    train, val = (_build(split, type="lsun-bedroom", root=str(tmp_path)) for split in ("train", "val"))
    assert _numbers(train) == list(range(5)) and _numbers(val) == [7]
    cats = [_build(split, type="lsun-cat", root=str(tmp_path)) for split in ("train", "val")]
    assert len(cats[1]) >= 1 and sorted(_numbers(cats[0]) + _numbers(cats[1])) == [*range(20, 40)]
    copy = pickle.loads(pickle.dumps(train))  # as for a data worker
    assert _numbers(copy) == list(range(5))
    assert train.source.name(3).endswith("bedroom_train_lmdb:key003")
    assert lmdb.opened == 3  # each once, though two data sets read the cats
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert _numbers(train) == list(range(5)) and lmdb.opened == 4  # none crosses a fork
    del stores[str(tmp_path / "bedroom_train_lmdb")][b"key001"]
    assert _numbers(train) == [0, 2, 2, 3, 4] and train.corrupt_count() == 1


def test_a_database_may_be_the_root_itself(tmp_path, monkeypatch):
    for path in (tmp_path / "horse", tmp_path / "elsewhere"):
        path.mkdir()
        (path / "data.mdb").touch()
    stores = {str(path): {b"key%03d" % number: _encoded(number) for number in range(30)} for path in tmp_path.iterdir()}
    monkeypatch.setitem(sys.modules, "lmdb", _FakeLmdb(stores))
    monkeypatch.setattr("data.images.lsun._OPEN", {})
    sides = [_numbers(_build(split, type="lsun-horse", root=str(tmp_path))) for split in ("train", "val")]
    assert sorted(sides[0] + sides[1]) == [*range(30)]
    inside = [
        _numbers(_build(split, type="lsun-horse", root=str(tmp_path / "elsewhere"))) for split in ("train", "val")
    ]
    assert inside == sides


def test_lsun_database_without_the_package(tmp_path, monkeypatch):
    (tmp_path / "bedroom_train_lmdb").mkdir()
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ValueError, match="pip install lmdb"):
        _build(type="lsun-bedroom", root=str(tmp_path))


def _folder(tmp_path, count=12):
    for number in range(count):
        _save(tmp_path / f"{number:02d}.png", number, size=(30, 24))
    return dict(type="folder", root=str(tmp_path), val_fraction=0.2, transforms="imagenet16x16", resolution=None)


def test_training_crops_depend_on_the_key_and_evaluation_has_none(tmp_path):
    config = _folder(tmp_path)
    train, val = (_build(split, **config) for split in ("train", "val"))
    assert train.resolution == (16, 16)
    crops = {train[0, key]["image"].numpy().tobytes() for key in range(10)}
    assert len(crops) > 5
    assert torch.equal(train[0, 3]["image"], train[0, 3]["image"])
    assert torch.equal(val[0, 1]["image"], val[0, 2]["image"]) and torch.equal(val[0, 1]["image"], val[0]["image"])


def test_modes_of_images(tmp_path):
    for mode in ("L", "P", "RGBA", "CMYK", "1", "I;16"):
        buffer = io.BytesIO()
        source = Image.new(mode, (4, 4)) if mode == "I;16" else _image(200, mode="RGB").convert(mode)
        source.save(buffer, "TIFF")
        assert decode_rgb(buffer.getvalue(), 1000).mode == "RGB"


def _spoil(tmp_path):
    encoded = (tmp_path / "02.png").read_bytes()
    (tmp_path / "02.png").write_bytes(encoded[: len(encoded) // 2])
    (tmp_path / "03.png").write_bytes(b"not an image")
    (tmp_path / "05.png").write_bytes(b"")
    _save(tmp_path / "07.png", 7, size=(200, 100))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_counted(tmp_path, workers, caplog):
    config = _folder(tmp_path)
    clean = _build(**config, max_image_pixels=10_000)
    names, numbers = [clean.source.name(index)[-6:] for index in range(len(clean))], _numbers(clean)
    _spoil(tmp_path)
    dataset = _build(**config, max_image_pixels=10_000)
    spoiled = {"02.png", "03.png", "05.png", "07.png"} & set(names)
    assert len(spoiled) >= 2
    batches = list(EvalLoader(dataset, 4, num_workers=workers))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(dataset)))
    shown = torch.cat([batch["image"][:, 0].mean((1, 2)) for batch in batches]) * 127.5 + 127.5
    expected = []
    for number in range(len(names)):
        while names[number % len(names)] in spoiled:
            number += 1
        expected.append(numbers[number % len(names)])
    assert shown.round().int().tolist() == expected
    assert dataset.corrupt_count() == len(spoiled)
    assert {name[-6:] for name in dataset.corrupt_names()} == spoiled
    list(EvalLoader(dataset, 4, num_workers=workers))
    assert dataset.corrupt_count() == len(spoiled)  # distinct files, not events
    if not workers:
        assert sum("skipping unreadable image" in record.message for record in caplog.records) == len(spoiled)


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_index_comes_once_beside_an_unreadable_image_whose_substitute_keeps_its_own_label(tmp_path, world_size):
    for label in ("a", "b"):
        for number in range(4):
            _save(tmp_path / "val" / label / f"{number}.png", number)
            _save(tmp_path / "train" / label / f"{number}.png", number)
    (tmp_path / "val" / "a" / "3.png").write_bytes(b"not an image")
    dataset = _build("val", type="folder", root=str(tmp_path))
    batches = [batch for rank in range(world_size) for batch in EvalLoader(dataset, 3, rank, world_size)]
    index, label = (torch.cat([batch[name] for batch in batches]) for name in ("index", "label"))
    assert sorted(index.tolist()) == list(range(8))
    assert dataset.corrupt_count() == 1
    assert label[index.argsort()].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]  # the image shown for number 3 is number 4


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_images(tmp_path, workers):
    config = _folder(tmp_path)
    _spoil(tmp_path)
    dataset = _build(**config, max_corrupt=1, max_image_pixels=10_000)
    with pytest.raises(
        ValueError, match=r"^2 images of folder \(train\) cannot be read, dataset.max_corrupt is 1"
    ) as error:
        list(itertools.islice(TrainLoader(dataset, 4, seed=0, num_workers=workers), 10))
    assert "\n" not in str(error.value)


def test_a_vanished_folder_is_reported(tmp_path):
    dataset = _build(**_folder(tmp_path))
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="images of folder .train. cannot be read.*No such file"):
        dataset[0]


def test_listing_is_sorted_and_skips_hidden_files(tmp_path):
    for name in ("b/2.JPG", "a.png", ".hidden.png", ".git/x.png", "b/1.jpeg", "c.gif", "b/c/ü.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths = list_images(tmp_path)
    assert paths == ["a.png", "b/1.jpeg", "b/2.JPG", "b/c/ü.webp"]
    packed = PackedPaths(tmp_path, paths)
    assert [packed.name(index) for index in range(4)] == [str(tmp_path / path) for path in paths]
