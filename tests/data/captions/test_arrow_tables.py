"""Folders of the `datasets` library and parquet files: the same images, classes and captions, and nothing followed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.captions.arrow_tables import files_of_splits
from tests.commands import run_here

CLASSES = ["cat", "dog"]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def features(labels: bool) -> dict[bytes, bytes]:
    said = {"image": {"_type": "Image"}, **({"label": {"names": CLASSES, "_type": "ClassLabel"}} if labels else {})}
    return {b"huggingface": json.dumps({"info": {"features": said}}).encode()}


def table(count: int, start: int = 0, labels: bool = True, **more: object):
    pa = pytest.importorskip("pyarrow")
    cells = [{"bytes": png(start + number), "path": None} for number in range(count)]
    columns = {"image": cells, **({"label": [number % 2 for number in range(count)]} if labels else {}), **more}
    return pa.table(columns).replace_schema_metadata(features(labels))


def parquet(path: Path, rows, group: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(rows, path, row_group_size=group)


def opened(root: Path, split: str = "train", **settings: object):
    return build_dataset(DatasetConfig(type="huggingface", root=str(root), resolution=8, **settings), split)


def reds(dataset) -> list[int]:
    return dataset.fetch(np.arange(len(dataset)), None)["image"][:, 0, 0, 0].tolist()


def test_parquet_files_of_splits(tmp_path):
    parquet(tmp_path / "data" / "train-00000-of-00002.parquet", table(7))
    parquet(tmp_path / "data" / "train-00001-of-00002.parquet", table(4, 7))
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", table(3, 50))
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert reds(train) == list(range(11)) and reds(val) == [50, 51, 52]
    assert train.class_names == tuple(CLASSES) and train.labels_N.tolist() == [0, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    assert train.fetch(np.array([9, 2]), None)["image"][:, 0, 0, 0].tolist() == [9, 2]  # back and forth


def test_without_splits_rows_are_held_out_by_name(tmp_path):
    parquet(tmp_path / "images.parquet", table(20, labels=False, text=[f"number {n}" for n in range(20)]))
    train, val = opened(tmp_path), opened(tmp_path, "val")
    assert sorted(reds(train) + reds(val)) == list(range(20)) and len(val) and train.held_out
    assert train.captions([0]) == [f"number {reds(train)[0]}"] and train.num_classes == 1


@pytest.mark.filterwarnings("ignore")  # of what that library brings
def test_a_folder_that_datasets_saved(tmp_path):
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    kinds = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES), "caption": datasets.Value("string")}
    )

    def made(numbers: list[int]):
        images = [{"bytes": png(number), "path": None} for number in numbers]
        rows = {"image": images, "label": [n % 2 for n in numbers], "caption": [f"a {n}" for n in numbers]}
        return datasets.Dataset(
            pa.table(rows, schema=kinds.arrow_schema), info=datasets.DatasetInfo(features=kinds), fingerprint="any"
        )

    whole = made([0, 1, 2, 3, 4, 5])
    datasets.DatasetDict({"train": whole, "validation": made([4, 1])}).save_to_disk(str(tmp_path / "both"))
    assert set(files_of_splits(tmp_path / "both")) == {"train", "val"}
    train, val = opened(tmp_path / "both"), opened(tmp_path / "both", "val")
    assert reds(train) == list(range(6)) and reds(val) == [4, 1] and train.class_names == tuple(CLASSES)
    assert train.captions([3]) == ["a 3"] and val.labels_N.tolist() == [0, 1]
    whole.save_to_disk(str(tmp_path / "one"))
    assert sorted(reds(opened(tmp_path / "one")) + reds(opened(tmp_path / "one", "val"))) == list(range(6))


def test_it_is_packed_into_shards(tmp_path):
    parquet(tmp_path / "t" / "train-0.parquet", table(7, caption=[["one", "two"]] * 7))
    parquet(tmp_path / "t" / "validation-0.parquet", table(2, 50, caption=[["one"]] * 2))
    with pytest.raises(SystemExit, match="0"):
        run_here("data.prepare", "--dataset", "huggingface", "--data-root", tmp_path / "t", tmp_path / "shards")
    shards = build_dataset(DatasetConfig(type="shards", root=str(tmp_path / "shards"), resolution=8), "train")
    assert reds(shards) == list(range(7)) and shards.class_names == tuple(CLASSES)


def test_what_is_no_image_is_unreadable_and_no_path_is_followed(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(200))
    cells = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(secret)}, {"bytes": b"%!PS", "path": None}]
    parquet(tmp_path / "t" / "train.parquet", table(3, image=cells))
    parquet(tmp_path / "t" / "val.parquet", table(1))
    dataset = opened(tmp_path / "t")
    assert reds(dataset) == [1, 1, 1] and dataset.corrupt_count() == 2


@pytest.mark.parametrize(
    ("more", "settings", "message"),
    [
        ({"label": [0, 1, 5, 0]}, {}, "row 2 has label '5', which is no class"),
        ({"label": [0, 1, None, 0]}, {}, "row 2 has label 'None', which is no class"),
        ({}, {"label_column": "kind"}, "dataset.label_column 'kind' is not in"),
        ({"image": ["a"] * 4}, {}, "has 0 columns that may hold the image"),
        ({"other": [b"x"] * 4}, {}, "has 2 columns that may hold the image"),
    ],
)
def test_wrong_tables(tmp_path, more, settings, message):
    parquet(tmp_path / "train.parquet", table(4, **more))
    with pytest.raises(ValueError, match=message) as told:
        opened(tmp_path, **settings)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["train.parquet", "data-00000-of-00001.arrow"])
@pytest.mark.parametrize("damage", [lambda good: good[: len(good) // 2], lambda good: b"", lambda good: good[::-1]])
def test_damaged_files_are_one_line(tmp_path, name, damage):
    pa = pytest.importorskip("pyarrow")
    rows = table(4)
    if name.endswith(".parquet"):
        parquet(tmp_path / name, rows)
    else:
        with pa.OSFile(str(tmp_path / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows)
        assert len(opened(tmp_path)) + len(opened(tmp_path, "val")) == 4
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match="cannot be read as a table") as told:
        opened(tmp_path)
    assert "\n" not in str(told.value)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="needs a package that is not installed: pip install pyarrow"):
        opened(tmp_path)
