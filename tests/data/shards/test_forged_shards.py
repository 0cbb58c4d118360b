"""Shards, indexes and manifests that somebody forged: one line, or an index that is made again."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest

from data import DatasetConfig, build_dataset
from data.shards.shard_files import load_index
from data.shards.shard_index import IMAGE, INDEX_SUFFIX, index_from_bytes, scan_shard, write_index
from data.shards.shard_manifest import FORMAT, IMAGES, LATENTS, entry_of, manifest_name, read_manifest
from data.shards.tar_members import LONGEST_NAME
from runtime.errors import UserError
from tests.faults.evil_files import png_of


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content.ljust(-(-len(content) // 512) * 512, b"\0")


def sample(**members: bytes) -> bytes:
    return b"".join(header(f"a.{kind}", len(content)) + padded(content) for kind, content in members.items())


END = bytes(1024)
IMAGE_MEMBERS = {"png": png_of(8)}
LONG_NAME = b"x" * 2_000_000 + b".png\0"
PAX = b"30 size=-99999999999999999999\n"

BAD_TARS = {
    "a label of 30 digits": (sample(**IMAGE_MEMBERS, cls=b"1" * 30) + END, "has label 1111"),
    "a label of 2e9": (sample(**IMAGE_MEMBERS, cls=b"2000000000") + END, "has label 2000000000"),
    "a JSON label of 5000 digits": (sample(**IMAGE_MEMBERS, json=b'{"label": ' + b"1" * 5000 + b"}") + END, None),
    "3,000 headers that only announce the next": (
        (header("././@LongLink", 2, b"L") + padded(b"b\0")) * 3000 + sample(**IMAGE_MEMBERS) + END,
        "a damaged header (RecursionError)",
    ),
    "a name of 2 MB": (
        header("././@LongLink", len(LONG_NAME), b"L") + padded(LONG_NAME) + sample(**IMAGE_MEMBERS) + END,
        "a header of 2000384 bytes",
    ),
    "a name of 2 kB": (
        header("././@LongLink", 2005, b"L") + padded(b"x" * 2000 + b".png\0") + sample(**IMAGE_MEMBERS) + END,
        f"has a name of 2004 bytes, at most {LONGEST_NAME}",
    ),
    "a name of 8 GiB": (header("././@LongLink", 8 << 30, b"L") + END, "a header of 8589934592 bytes"),
    "a size below nothing": (header("./PaxHeaders", len(PAX), b"x") + padded(PAX) + sample(**IMAGE_MEMBERS) + END, ""),
    "a pax header that is none": (header("p", 9, b"x") + padded(b"99 size=1") + sample(**IMAGE_MEMBERS) + END, ""),
}


@pytest.mark.parametrize("kind", BAD_TARS)
def test_forged_archives_are_one_line(kind, tmp_path):
    content, message = BAD_TARS[kind]
    shard = tmp_path / "x.tar"
    shard.write_bytes(content)
    if message is None:  # a JSON member may describe neither label nor caption
        assert load_index(str(shard), tmp_path / "cache").label_N.tolist() == [-1]
        return
    with pytest.raises(ValueError) as raised:
        load_index(str(shard), tmp_path / "cache")
    line = str(raised.value)
    assert message in line and str(shard) in line
    assert "\n" not in line and len(line) - len(str(shard)) < 300


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "train.tar"
    path.write_bytes(sample(**IMAGE_MEMBERS, cls=b"1") + END)
    write_index(path)
    return path


def forged(shard, **changes) -> bytes:
    """An index with other arrays, whose digest says that all is well."""
    with open(shard, "rb") as file:
        index = scan_shard(file, str(shard))
    return replace(index, **changes).to_bytes()


FAR = np.full((1, 6), 1 << 62)
INDEXES = {
    "a label of 2e9": {"label_N": np.array([2_000_000_000])},
    "a label below none": {"label_N": np.array([-2])},
    "labels that are no whole numbers": {"label_N": np.array([1.5])},
    "places beyond the end": {"start_NF": FAR},
    "places before the beginning": {"start_NF": -FAR},
    "sizes beyond the end": {"size_NF": FAR},
    "sizes whose sum overflows": {"start_NF": FAR * 2 - 1, "size_NF": FAR * 2 - 1},
    "sizes below none": {"size_NF": np.full((1, 6), -2)},
    "nothing to read": {"size_NF": np.full((1, 6), -1)},
    "fewer fields": {"start_NF": np.zeros((1, 2), dtype=np.int64)},
    "another number of samples": {"label_N": np.array([1, 1])},
    "keys that are numbers": {"keys_N": np.array([1])},
    "keys without end": {"keys_N": np.array([b"x" * 5000])},
    "a grid of labels": {"label_N": np.array([[1]])},
}


@pytest.mark.parametrize("kind", INDEXES)
def test_a_forged_index_is_made_again(kind, shard, tmp_path):
    beside = shard.with_name(shard.name + INDEX_SUFFIX)
    true = beside.read_bytes()
    beside.write_bytes(forged(shard, **INDEXES[kind]))
    assert index_from_bytes(beside.read_bytes()) is None
    index = load_index(str(shard), tmp_path / "cache")
    assert (index.label_N.tolist(), index.size_NF[0, IMAGE]) == ([1], len(IMAGE_MEMBERS["png"]))
    assert beside.read_bytes() == true


def zip_bomb() -> bytes:
    file = io.BytesIO()
    array = io.BytesIO()
    np.save(array, np.zeros(1 << 20))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("keys", "label", "start", "size", "shard", "head", "digest"):
            archive.writestr(f"{name}.npy", array.getvalue())
    return file.getvalue()


def test_an_index_that_unpacks_to_much_more_is_made_again(monkeypatch):
    """It was unpacked whole; nothing of it is now."""
    bomb = zip_bomb()
    monkeypatch.setattr("zipfile.ZipFile.open", lambda *_, **__: pytest.fail("it is unpacked"))
    assert index_from_bytes(bomb) is None


def test_an_index_longer_than_its_shard_explains_is_not_read(shard, tmp_path):
    beside = shard.with_name(shard.name + INDEX_SUFFIX)
    with open(beside, "ab") as file:
        file.truncate(1 << 40)  # a hole in the disk, a terabyte to whoever reads it
    assert len(load_index(str(shard), tmp_path / "cache")) == 1
    assert beside.stat().st_size < 10_000


def test_a_pipe_in_the_place_of_an_index_is_not_waited_for(shard, tmp_path):
    beside = shard.with_name(shard.name + INDEX_SUFFIX)
    beside.unlink()
    os.mkfifo(beside)
    assert len(load_index(str(shard), tmp_path / "cache")) == 1


def manifest(shard, **changes) -> dict:
    entry = asdict(entry_of(shard, 1))
    sound = {"format": FORMAT, "kind": IMAGES, "split": "train", "dataset": {}, "class_names": ["a", "b"]}
    return sound | {"shards": [entry]} | changes


LATENT = {
    "kind": LATENTS,
    "tokenizer": "0",
    "resolution": 8,
    "contents": ["codes"],
    "crops": 1,
    "dtype": "float16",
    "codes_dtype": "uint16",
    "codes_shape": [2, 2, 4],
    "cond_length": None,
}
MANIFESTS = {
    "no kind": {"kind": None},
    "an unknown kind": {"kind": "pickles"},
    "class names that are numbers": {"class_names": [1, 2]},
    "no shards": {"shards": None},
    "shards that are names": {"shards": ["train.tar"]},
    "no crops": LATENT | {"crops": 0},
    "crops that are half": LATENT | {"crops": 1.5},
    "objects": LATENT | {"dtype": "object"},
    "codes of objects": LATENT | {"codes_dtype": "O"},
    "a shape without end": LATENT | {"codes_shape": [1 << 20, 1 << 20, 4]},
    "a shape below nothing": LATENT | {"codes_shape": [-2, 2, 4]},
    "other contents": LATENT | {"contents": ["pickles"]},
    "no shape": LATENT | {"contents": ["latent"]},
    "captions below nothing": LATENT | {"cond_length": -1},
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_forged_manifests_are_one_line(kind, shard):
    place = shard.parent / manifest_name("train")
    place.write_text(json.dumps(manifest(shard, **MANIFESTS[kind])))
    with pytest.raises(UserError, match="train.manifest.json is damaged: ") as raised:
        read_manifest(str(shard.parent), "train")
    assert len(str(raised.value)) - len(str(place)) < 200


@pytest.mark.parametrize(
    "change", [{"name": "../train.tar"}, {"name": "/etc/passwd"}, {"samples": -1}, {"size": "1"}, {"more": 1}]
)
def test_forged_entries_of_shards(change, shard):
    entry = asdict(entry_of(shard, 1)) | change
    (shard.parent / manifest_name("train")).write_text(json.dumps(manifest(shard, shards=[entry])))
    with pytest.raises(UserError, match="'shards' is"):
        read_manifest(str(shard.parent), "train")


def test_sound_ones_are_read(shard):
    place = shard.parent / manifest_name("train")
    place.write_text(json.dumps(manifest(shard)))
    dataset = build_dataset(DatasetConfig(type="shards", root=str(shard.parent), resolution=8), "train")
    assert int(dataset[0]["label"]) == 1
    place.write_text(json.dumps(manifest(shard, **LATENT)))
    assert read_manifest(str(shard.parent), "train") is not None
