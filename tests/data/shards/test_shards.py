"""Shards: read at random, read by and written by webdataset, indexed, ordered, damaged, fetched from URLs."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data import DatasetConfig, EvalLoader, TrainLoader, build_dataset
from data.shards.shard_files import load_index
from data.shards.shard_index import INDEX_SUFFIX, scan_shard

SIZE = 8


def _png(number: int, label: int) -> bytes:
    pixels = np.full((SIZE, SIZE, 3), number, dtype=np.uint8)
    pixels[:2, :, 1], pixels[..., 2] = 10 * label, np.arange(SIZE)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(folder: Path, count: int = 40, per_shard: int = 7, split: str = "train", first: int = 0) -> Path:
    """Shards of `count` images by webdataset's own writer."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/{split}-%06d.tar", maxcount=per_shard, verbose=0) as sink:
        for number in range(first, first + count):
            label = number % 3
            sink.write({"__key__": f"{number:05d}", "png": _png(number, label), "cls": label, "json": {"a": 1}})
    return folder


def build(root, split="train", **settings):
    return build_dataset(
        DatasetConfig(
            type="shards",
            root=str(root) if isinstance(root, Path) else root,
            resolution=SIZE,
            **{"val_fraction": 0.25} | settings,
        ),
        split,
    )


def numbers(dataset, index_N=None):
    return [
        int(round(float(dataset[int(i)]["image"][0].mean()) * 127.5 + 127.5))
        for i in (range(len(dataset)) if index_N is None else index_N)
    ]


def take(loader, count):
    return list(itertools.islice(iter(loader), count))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = write(tmp_path_factory.mktemp("shards"))
    return write(root, count=9, split="val", first=100)


def test_shards_written_by_webdataset_are_read_at_random(folder):
    train, val = build(folder), build(folder, "val")
    assert numbers(train) == list(range(40)) and numbers(val) == list(range(100, 109))
    assert numbers(train, [33, 2, 17]) == [33, 2, 17]
    assert train.labels_N.tolist() == [number % 3 for number in range(40)]
    assert train.class_names == ("0", "1", "2") and train.groups is None
    assert numbers(pickle.loads(pickle.dumps(train)), [5, 20]) == [5, 20]
    assert train.source.name(8).endswith("train-000001.tar:00008")


def test_patterns_lists_and_held_out_samples(folder, tmp_path):
    assert numbers(build(f"{folder}/train-{{000001..000002}}.tar", "train", val_fraction=0.3)) != []
    listed = [f"{folder}/train-000002.tar", f"file://{folder}/train-000000.tar", f"{folder}/val-{{000000..000001}}.tar"]
    assert numbers(build(listed)) == [*range(14, 21), *range(7)]
    assert numbers(build(listed, "val")) == list(range(100, 109))
    write(tmp_path / "plain", split="images")
    train, val = build(tmp_path / "plain"), build(tmp_path / "plain", "val")
    assert sorted(numbers(train) + numbers(val)) == list(range(40)) and 4 <= len(val) <= 16
    assert build(tmp_path / "plain", shuffle="shards").groups.sizes == tuple(
        np.bincount(np.array(numbers(train)) // 7).tolist()
    )


@pytest.mark.parametrize("shuffle", ["samples", "shards"])
@pytest.mark.parametrize("workers", [0, 2])
def test_training_resumes_in_the_middle_of_an_epoch(folder, shuffle, workers):
    dataset = build(folder, shuffle=shuffle, shuffle_window=2)
    straight = take(TrainLoader(dataset, 6, seed=1), 14)
    resumed = TrainLoader(dataset, 6, seed=1, start_image=5 * 6, num_workers=workers)
    assert_equal(take(resumed, 9), straight[5:])
    ranks = [take(TrainLoader(dataset, 3, seed=1, rank=rank, world_size=2, start_image=30), 9) for rank in range(2)]
    assert [torch.cat([a["index"], b["index"]]).tolist() for a, b in zip(*ranks)] == [
        batch["index"].tolist() for batch in straight[5:]
    ]
    assert sorted(torch.cat([batch["index"] for batch in straight[:7]])[:40].tolist()) == list(range(40))


def test_index_is_kept_checked_and_made_again(folder, tmp_path):
    shard = write(tmp_path, count=5) / "train-000000.tar"
    beside = Path(f"{shard}{INDEX_SUFFIX}")
    first = load_index(str(shard), tmp_path / "cache")
    stored = beside.read_bytes()
    assert [bytes(key) for key in first.keys_N] == [b"0000%d" % number for number in range(5)]
    for damaged in (stored[:-60], stored[:200] + b"x" + stored[201:], b""):
        beside.write_bytes(damaged)
        again = load_index(str(shard), tmp_path / "cache")
        assert beside.read_bytes() == stored and np.array_equal(again.start_NF, first.start_NF)
    other = write(tmp_path / "other", count=5, first=50) / "train-000000.tar"
    Path(f"{other}{INDEX_SUFFIX}").write_bytes(stored)  # of a shard of the same size
    assert other.stat().st_size == shard.stat().st_size
    assert load_index(str(other), tmp_path / "cache").keys_N[0] == b"00050"


def test_index_of_a_folder_that_cannot_be_written_goes_to_the_cache(folder, tmp_path, monkeypatch):
    shard = write(tmp_path / "data", count=5) / "train-000000.tar"
    (tmp_path / "data" / "blocked").mkdir()
    # whoever tests as root may write everywhere: a folder in the index's place stops everyone
    Path(f"{shard}{INDEX_SUFFIX}").mkdir()
    Path(f"{shard}{INDEX_SUFFIX}/x").touch()
    load_index(str(shard), tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr("data.shards.shard_files.scan_shard", None)  # not needed again
    assert len(load_index(str(shard), tmp_path / "cache")) == 5 and kept.name.endswith(INDEX_SUFFIX)


def _tar(path: Path, members: list[tarfile.TarInfo], content: bytes = b"") -> Path:
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def _member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([_member("../a.png")], r"refused: its member '../a.png' has a name that leads out"),
        ([_member("a/../../b.png")], "leads out of the archive"),
        ([_member("/etc/passwd.png")], "leads out of the archive"),
        ([_member("a.png", tarfile.SYMTYPE, "/etc/passwd")], "is not a plain file"),
        ([_member("a.png", tarfile.LNKTYPE, "b.png")], "is not a plain file"),
        ([_member("a.txt")], "holds no samples with an image, latents or codes"),
        ([_member("a.png"), _member("a.cls")], "a.cls is no label"),
    ],
)
def test_tars_that_are_refused(members, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(_tar(tmp_path / "x.tar", members, b"dog").parent)


def test_shards_cut_short_or_compressed_are_refused(folder, tmp_path):
    whole = (folder / "train-000000.tar").read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in (0, 100, 700, 5 * 512, end + 512 - end % 512):
        (tmp_path / "train-000000.tar").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"train-000000.tar is not a whole uncompressed tar file"):
            build(tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar", "w:gz") as tar:
        tar.add(folder / "train-000001.tar", "a.png")
    with pytest.raises(ValueError, match="not a whole uncompressed tar file"):
        build(tmp_path)


def test_damaged_images_are_replaced_and_counted(tmp_path):
    write(tmp_path, count=12, per_shard=6)
    write(tmp_path, count=4, split="val")
    shard = tmp_path / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    start = int(load_index(str(shard), tmp_path).start_NF[2, 0])
    content[start : start + 30] = bytes(30)
    shard.write_bytes(content)
    dataset = build(tmp_path, max_corrupt=3)
    assert_equal(list(EvalLoader(dataset, 4, num_workers=1)), list(EvalLoader(build(tmp_path), 4)))
    assert dataset.corrupt_count() == 1 and dataset.corrupt_names()[0].endswith("train-000001.tar:00008")
    assert torch.equal(dataset[8]["image"], dataset[9]["image"]) and dataset[8]["index"] == 8
    assert dataset[8]["label"] == dataset[9]["label"]
    shard.write_bytes(content[: start - 2000])  # while training
    with pytest.raises(ValueError, match="4 images of shards .train. cannot be read, dataset.max_corrupt is 3"):
        list(EvalLoader(dataset, 4))


def test_missing_shards_labels_and_wrong_patterns(folder, tmp_path):
    for root, message in [
        (f"{folder}/train-{{000004..000007}}.tar", r"there is no .*train-000006.tar \(2 of 4 are missing\)"),
        (str(tmp_path), "no shards found in"),
    ]:
        with pytest.raises(FileNotFoundError, match=message):
            build(root)
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as sink:
        sink.write({"__key__": "a", "png": _png(1, 1), "cls": 1})
        sink.write({"__key__": "b", "png": _png(1, 1)})
    with pytest.raises(ValueError, match="1 of 2 samples in .* have no label"):
        build(tmp_path)
    for settings, message in [
        ({"shuffle": "no"}, "dataset.shuffle 'no' is unknown"),
        ({"root": 3}, "must be a path"),
        ({"shuffle_window": 0}, "dataset.shuffle_window must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_dataset(DatasetConfig(**{"type": "shards", "root": "x", "resolution": 8} | settings), "train")
    with pytest.raises(ValueError, match="only shards take a list"):
        build_dataset(DatasetConfig(type="folder", root=["a"], resolution=8), "train")


@pytest.fixture
def remote(folder):
    system = fsspec.filesystem("memory")
    system.put(str(folder), "/shards", recursive=True)
    for path in system.find("/shards"):
        if path.endswith(INDEX_SUFFIX):
            system.rm(path)
    yield "memory://shards"
    system.rm("/shards", recursive=True)


def test_urls_give_the_same_images_through_a_bounded_cache(folder, remote, tmp_path):
    cache = {"shard_cache": str(tmp_path / "cache"), "shard_cache_size": 3}
    train = build(remote, **cache)
    assert train.groups.window == 8  # by default, shard by shard
    local = build(folder)
    assert_equal([train[i] for i in (0, 39, 20)], [local[i] for i in (0, 39, 20)])
    straight = take(TrainLoader(build(folder, shuffle="shards"), 6, seed=1), 14)
    assert_equal(take(TrainLoader(train, 6, seed=1), 14), straight)
    assert_equal(take(TrainLoader(train, 6, seed=1, num_workers=2), 14), straight)
    assert 1 <= len(list((tmp_path / "cache").glob("*.tar"))) <= 3
    assert len(list((tmp_path / "cache").glob(f"*{INDEX_SUFFIX}"))) == 8
    assert len(build(f"{remote}/train-{{000000..000002}}.tar", val_fraction=0.3, **cache)) > 0


def test_what_else_lies_in_the_cache_folder_stays(remote, tmp_path):
    mine = [tmp_path / f"train-{number:06d}.tar" for number in range(4)]
    for path in mine:
        path.write_bytes(b"mine")
        os.utime(path, (1, 1))
    train = build(remote, shard_cache=str(tmp_path), shard_cache_size=2)
    assert len([train[index] for index in range(0, 40, 5)]) == 8
    assert all(path.read_bytes() == b"mine" for path in mine)
    assert len(list(tmp_path.glob("*.tar"))) == len(mine) + 2


@pytest.mark.parametrize("place", ["a link", "open to others"])
def test_a_folder_of_others_below_the_temporary_one_is_not_used(place, remote, tmp_path, monkeypatch):
    cache, elsewhere = tmp_path / "rq-shards", tmp_path / "elsewhere"
    monkeypatch.setattr("data.shards.shard_files.default_cache", lambda: cache)
    elsewhere.mkdir(mode=0o700)
    if place == "a link":
        cache.symlink_to(elsewhere)
    else:
        cache.mkdir()
        cache.chmod(0o777)
    with pytest.raises(ValueError, match="set dataset.shard_cache"):
        build(remote, shard_cache=str(cache))[0]
    assert list(elsewhere.iterdir()) == [] and list(cache.glob("*.tar")) == []


def test_a_url_that_stops_answering_ends_in_one_line_and_marks_nothing(remote, tmp_path, monkeypatch):
    monkeypatch.setattr("data.shards.shard_files._PAUSE_SECONDS", 0.0)
    train = build(remote, shard_cache=str(tmp_path))
    fsspec.filesystem("memory").rm("/shards/train-000000.tar")
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"train-000000.tar cannot be fetched: .*") as caught:
            list(EvalLoader(train, 4, num_workers=workers))
        assert "\n" not in str(caught.value)
    assert train.corrupt_count() == 0
    fsspec.filesystem("memory").touch("/shards/train-000000.tar")


def test_protocols_without_a_package_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nosuch://bucket/x.tar cannot be opened: .*nosuch"):
        build("nosuch://bucket/x.tar")


def test_scanning_reads_no_content(folder):
    class Counting(io.FileIO):
        count = 0

        def read(self, size=-1):
            content = super().read(size)
            self.count += len(content)
            return content

    with Counting(folder / "train-000000.tar") as file:
        index = scan_shard(file, "x")
        assert len(index) == 7 and index.shard_size == (folder / "train-000000.tar").stat().st_size
        assert file.count < 2**16 + 512 * 60
