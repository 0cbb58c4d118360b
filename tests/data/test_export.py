"""`python -m data.export`: a split as other tools read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from data.export import export_npz, main, parse

SYNTHETIC = ["--dataset", "synthetic", "--split", "train", "num_samples=70", "resolution=16"]


def images_and_labels(dataset):
    items = [dataset[index] for index in range(len(dataset))]
    image_NCHW = torch.stack([item["image"] for item in items])
    return ((image_NCHW + 1) * 127.5).round().to(torch.uint8), torch.stack([item["label"] for item in items])


def test_npz_holds_the_split_as_evaluation_sees_it(tmp_path, capsys):
    main(parse([*SYNTHETIC, str(tmp_path / "x.npz")]))
    assert "70 images" in capsys.readouterr().out
    image_NCHW, label_N = images_and_labels(
        build_dataset(DatasetConfig(type="synthetic", num_samples=70, resolution=16), "train")
    )
    exported = np.load(tmp_path / "x.npz", allow_pickle=False)
    assert sorted(exported) == ["arr_0", "labels"]
    assert (exported["arr_0"].dtype, exported["labels"].dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal(exported["arr_0"], image_NCHW.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(exported["labels"], label_N)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images; one cannot be read."""
    draws = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    path.write_bytes(b"no image")
    return tmp_path / "data"


def test_files_by_workers_and_without(folder, tmp_path):
    config = DatasetConfig(type="folder", root=str(folder), resolution=16)
    dataset = build_dataset(config, "train")
    for workers, name in ((0, "a.npz"), (2, "b.npz")):
        export_npz(dataset, tmp_path / name, workers)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    image_NCHW, label_N = images_and_labels(dataset)
    exported = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(exported["arr_0"], image_NCHW.permute(0, 2, 3, 1))
    np.testing.assert_array_equal(exported["labels"], label_N)


def test_memory_does_not_grow_with_the_split(tmp_path):
    """Batches are asked for one after another, and none is kept."""
    dataset = build_dataset(DatasetConfig(type="synthetic", num_samples=640, resolution=8), "train")
    sizes, fetch = [], dataset.fetch

    def counted(index_B, noise_key_B):
        sizes.append(len(index_B))
        return fetch(index_B, noise_key_B)

    dataset.fetch = counted
    export_npz(dataset, tmp_path / "x.npz")
    assert (sum(sizes), max(sizes)) == (640, 64)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--dataset", "digits", "--split", "val", "x.zip"], "must end in .npz"),
        (["--dataset", "digits", "--split", "val", "resolutoin=3", "x.npz"], "did you mean 'resolution'"),
        (["--dataset", "digits", "x.npz"], "--split"),
        (["--dataset", "digits", "--split", "test", "x.npz"], "--split 'test' is unknown; choose one of train, val"),
        (
            ["--dataset", "imagenet", "--split", "val", "--data-root", "/nowhere", "resolution=64", "x.npz"],
            "no images found in /nowhere",
        ),
        (["--dataset", "digits", "--split", "val", "/nowhere/x.npz"], "cannot write /nowhere/x.npz"),
    ],
)
def test_command_errors(words, match, command):
    code, out, error = command("data.export", *words)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert match in error
