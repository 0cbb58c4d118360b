"""`python -m data.prepare`: the same images as from the data set itself, resumable, verified, never overwriting."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from data import DatasetConfig, build_dataset
from data.prepare import main, parse
from data.shards.packing import pack
from data.shards.shard_index import INDEX_SUFFIX
from data.tokenizers.bpe_training import train_bpe
from runtime.errors import UserError, exit_on_user_error
from tests.commands import run as run_process


def run(*words) -> int:
    return main(parse([str(word) for word in words]))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of JPEG and PNG files of two classes, one of which is no image."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = root / ("train" if number < 18 else "val") / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.{'jpg' if number % 3 else 'png'}")
    (root / "train" / "a" / "05x.jpg").write_bytes(b"no image")
    return root


@pytest.fixture(scope="module")
def shards(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert run("--dataset", "folder", "--data-root", images, "--samples-per-shard", 5, out) == 0
    return out


def assert_same_items(ours, theirs):
    assert len(ours) == len(theirs) > 0 and ours.class_names == theirs.class_names
    for index in range(len(ours)):
        for key in (None, 7 * len(ours) + index):
            left, right = (dataset[index] if key is None else dataset[index, key] for dataset in (ours, theirs))
            assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_give_the_images_of_the_folder(images, shards, split, tmp_path):
    readable = shutil.copytree(images, tmp_path / "copy")
    (readable / "train" / "a" / "05x.jpg").unlink()
    ours, theirs = (
        build_dataset(DatasetConfig(type=kind, root=str(root), resolution=16), split, seed=3)
        for kind, root in (("shards", shards), ("folder", readable))
    )
    assert_same_items(ours, theirs)
    manifest = json.loads((shards / f"{split}.manifest.json").read_text())
    assert manifest["num_samples"] == len(theirs) and manifest["source_samples"] == len(theirs) + (split == "train")
    assert manifest["dataset"]["root"] == str(images) and not list(shards.glob("*.plan.json"))


def test_webdataset_reads_our_shards(shards, images):
    pattern = str(shards / "train-{000000..000003}.tar")
    read = list(webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("jpg;png", "cls"))
    ours = build_dataset(DatasetConfig(type="shards", root=str(shards), resolution=16), "train")
    assert [label for _, label in read] == ours.labels_N.tolist() and len(read) == 18
    first = Image.open(io.BytesIO(ours.source.read(0))).convert("RGB")
    assert np.array_equal(np.asarray(read[0][0].convert("RGB")), np.asarray(first))


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_drawn_and_bundled_images_are_packed_without_loss(name, tmp_path):
    words = ["--dataset", name, "--split", "val", "--samples-per-shard", 100, "resolution=8", "num_samples=30"]
    assert run(*words, tmp_path) == 0
    ours = build_dataset(DatasetConfig(type="shards", root=str(tmp_path), transforms="none", resolution=8), "val")
    theirs = build_dataset(DatasetConfig(type=name, resolution=8, num_samples=30), "val")
    batches = [dataset.fetch(np.arange(len(theirs)), None) for dataset in (ours, theirs)]
    assert torch.equal(batches[0]["image"], batches[1]["image"])
    assert torch.equal(batches[0]["label"], batches[1]["label"]) and ours.class_names == theirs.class_names
    if name == "synthetic":
        assert ours.source.field(2, 1).decode() == theirs.captions([2])[0]


def test_the_same_images_give_the_same_bytes_also_after_an_interruption(images, shards, tmp_path):
    dataset = build_dataset(DatasetConfig(type="folder", root=str(images), resolution=256), "train")
    settings = json.loads((shards / "train.manifest.json").read_text())["dataset"]
    read, calls = dataset.source.read, []

    def failing(index):
        calls.append(index)
        if index == 12:
            raise RuntimeError("killed")
        return read(index)

    dataset.source.read = failing
    with pytest.raises(RuntimeError, match="killed"):
        pack(dataset, settings, tmp_path, 5)
    assert [(tmp_path / f"train-00000{number}.tar").exists() for number in range(3)] == [True, True, False]
    with pytest.raises(UserError, match="the train split is not complete; run the command that writes it again"):
        build_dataset(DatasetConfig(type="shards", root=str(tmp_path), resolution=16), "train")
    with pytest.raises(UserError, match=r"begun with other settings \(samples_per_shard\)"):
        pack(dataset, settings, tmp_path, 6)
    Path(f"{tmp_path}/train-000001.tar{INDEX_SUFFIX}").unlink()  # killed before the shard was complete
    calls.clear()
    dataset.source.read = lambda index: calls.append(index) or read(index)
    pack(dataset, settings, tmp_path, 5, threads=3)
    assert min(calls) == 5
    for path in shards.glob("train*"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_nothing_is_overwritten(images, shards, tmp_path):
    with pytest.raises(UserError, match="already holds the train split; nothing is overwritten"):
        run("--dataset", "folder", "--data-root", images, shards)
    (tmp_path / "train-000000.tar").write_bytes(b"mine")
    with pytest.raises(UserError, match="train-000000.tar is in the way; nothing is overwritten"):
        run("--dataset", "folder", "--data-root", images, tmp_path)
    assert (tmp_path / "train-000000.tar").read_bytes() == b"mine"


def test_verify(shards, tmp_path, capsys):
    copy = shutil.copytree(shards, tmp_path / "copy")
    assert run("--verify", copy) == 0 and "6 of 6 shards are as" in capsys.readouterr().out
    content = bytearray((copy / "train-000001.tar").read_bytes())
    content[700] ^= 1
    (copy / "train-000001.tar").write_bytes(content)
    (copy / "train-000002.tar").write_bytes(content[:-512])
    (copy / "train-000003.tar").unlink()
    Path(f"{copy}/val-000000.tar{INDEX_SUFFIX}").write_bytes(b"")
    assert run("--verify", copy) == 2
    printed = capsys.readouterr()
    assert "2 of 6" in printed.out
    lines = sorted(printed.err.splitlines())
    for line, part in zip(
        lines, ("001.tar has other content", "002.tar has", "003.tar: [Errno 2]", "npz has other"), strict=True
    ):
        assert part in line
    with pytest.raises(UserError, match="has no manifest"):
        run("--verify", tmp_path)


def test_too_many_unreadable_images_and_full_disks_stop(images, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"1 images cannot be read, dataset.max_corrupt is 0; .* is .*05x.jpg"):
        run("--dataset", "folder", "--data-root", images, tmp_path, "max_corrupt=0")
    assert not list(tmp_path.glob(".partial*"))

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.shards.shard_writer.flush_to_disk", full)
    with pytest.raises(UserError, match="cannot write .*train-000000.tar: .*No space left"):
        run("--dataset", "folder", "--data-root", images, tmp_path / "full")
    assert not list((tmp_path / "full").glob("*.tar")) and not list((tmp_path / "full").glob(".partial*"))


def test_check_finds_damaged_files(images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    victim = sorted((copy / "val" / "a").glob("*.jpg"))[0]
    victim.write_bytes(victim.read_bytes()[:-100])
    for flags, count in ([], 6), (["--check"], 5):
        out = tmp_path / f"out{count}"
        run("--dataset", "folder", "--data-root", copy, "--split", "val", *flags, out)
        assert json.loads((out / "val.manifest.json").read_text())["num_samples"] == count


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out"], "give either --dataset NAME, to pack it, or --verify"),
        (["--dataset", "digits", "--verify", "out"], "give either"),
        (["--dataset", "digits", "--samples-per-shard", "0", "out"], "--samples-per-shard must be at least 1, not 0"),
        (["--dataset", "digit", "out"], "dataset.type 'digit' is unknown (did you mean 'digits'?)"),
        (["--dataset", "imagenet", "--data-root", "nowhere", "out"], "no images found in nowhere"),
        (["--dataset", "latents", "--data-root", "nowhere", "out"], "has no manifest of the train split"),
    ],
)
def test_wrong_commands_end_in_one_line(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended, exit_on_user_error(ValueError, OSError):
        run(*words)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and message in printed and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_its_code(tmp_path):
    done = run_process("-m", "data.prepare", "--verify", tmp_path)
    assert done.code == 2
    assert done.err == f"error: {tmp_path} has no manifest (train.manifest.json, val.manifest.json)\n"


def test_captions_are_packed_and_chosen_like_those_of_the_folder(images, tmp_path):
    tokenizer = train_bpe(["a red dog", "one blue cat"] * 4, 280, 10).save(tmp_path / "tokenizer")
    root = tmp_path / "pairs"
    for number, path in enumerate(sorted((images / "val").rglob("*.*g"))):
        root.mkdir(exist_ok=True)
        shutil.copy(path, root / f"{number}{path.suffix}")
        (root / f"{number}.txt").write_text("a red dog\none blue cat\ncaf\u00e9\n"[: 9 + 13 * (number % 3)])
    words = ["resolution=8", f"tokenizer={tokenizer}", "val_fraction=0.4"]
    assert run("--dataset", "caption-folder", "--data-root", root, tmp_path / "out", *words) == 0
    settings = {"resolution": 8, "tokenizer": str(tokenizer), "bpe_dropout": 0.3, "transforms": "dalle-vqvae"}
    ours, theirs = (
        build_dataset(DatasetConfig(type=kind, root=str(place), val_fraction=0.4, **settings), "train")
        for kind, place in (("shards", tmp_path / "out"), ("caption-folder", root))
    )
    assert ours.captions(range(len(ours))) == theirs.captions(range(len(theirs)))
    for key in (None, *(np.arange(len(ours)) + epoch * len(ours) for epoch in range(6))):
        batches = [dataset.fetch(np.arange(len(ours)), key) for dataset in (ours, theirs)]
        assert all(torch.equal(batches[0][name], batches[1][name]) for name in ("image", "cond", "index"))


def test_validation_images_are_not_cut_from_shards_that_are_trained_on_as_a_whole(images, tmp_path):
    main(parse(["--dataset", "folder", "--data-root", str(images), "--split", "train", str(tmp_path / "out")]))
    config = DatasetConfig(type="shards", root=str(tmp_path / "out"), resolution=8)
    assert len(build_dataset(config, "train")) > 0
    with pytest.raises(UserError, match="has a manifest of the train split alone"):
        build_dataset(config, "val")
