"""A split of a data set as images to score: `dataset:NAME:SPLIT`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from runtime.errors import UserError
from scoring.image_source import open_source


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten images; one cannot be read."""
    draws = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "data" / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    (tmp_path / "data" / "a" / "02.png").write_bytes(b"no image")
    return tmp_path / "data"


def images_and_labels(dataset):
    items = [dataset[index] for index in range(len(dataset))]
    image_NCHW = torch.stack([item["image"] for item in items])
    return ((image_NCHW + 1) * 127.5).round().to(torch.uint8), torch.stack([item["label"] for item in items])


def test_a_split_as_a_source_of_scores(folder, capfd):
    """As evaluation sees it, in any number of parts, with a report of what could not be read."""
    config = DatasetConfig(root=str(folder), resolution=16, val_fraction=0.2, split_seed=1)
    source = open_source("dataset:folder:train", dataset=config)
    expected = DatasetConfig(type="folder", root=str(folder), resolution=16, val_fraction=0.2, split_seed=1)
    image_NCHW, label_N = images_and_labels(build_dataset(expected, "train"))
    assert len(source) == len(image_NCHW) == 16
    abandoned = source.batches(5)
    assert torch.equal(next(abandoned)["image"], image_NCHW[:5])
    abandoned.close()
    capfd.readouterr()
    batches = [batch for rank in range(3) for batch in source.batches(2, rank, 3)]
    index_N = torch.cat([batch["index"] for batch in batches])
    assert index_N.tolist() == [index for rank in range(3) for index in range(rank, 16, 3)]
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), image_NCHW[index_N])
    assert torch.equal(torch.cat([batch["label"] for batch in batches]), label_N[index_N])
    assert {batch["image"].dtype for batch in batches} == {torch.uint8}
    unreadable = f"warning: 1 unreadable train images were replaced: {folder}/a/02.png\n"
    assert capfd.readouterr().err.count(unreadable) == 1  # of three parts


def test_more_unreadable_images_than_allowed_are_one_line(folder):
    source = open_source("dataset:folder:train", dataset=DatasetConfig(root=str(folder), resolution=16, max_corrupt=0))
    with pytest.raises(
        UserError, match="^dataset:folder:train: 1 images of folder .* dataset.max_corrupt is 0"
    ) as error:
        list(source.batches(4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("dataset:digit:val", "^dataset:digit:val: .*did you mean 'digits'"),
        ("dataset:digits:test", "^dataset:digits:test: split 'test' is unknown; choose one of train, val"),
        ("dataset:digits", "must be dataset:NAME:SPLIT, such as dataset:cifar10:train"),
        ("dataset:imagenet:val", "^dataset:imagenet:val: dataset.resolution is missing"),
    ],
)
def test_what_a_data_set_refuses_is_one_line(spec, match):
    with pytest.raises(UserError, match=match) as error:
        open_source(spec)
    assert "\n" not in str(error.value)
