"""COCO's captions as they come: null and blank ones, ids of mixed types, 2017, Karpathy's splits."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from data import DatasetConfig, build_dataset
from data.captions.coco import read_annotations
from tests.data.captions.coco_files import save_image, write_annotations


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_null_and_blank_captions_are_left_out_and_counted(tmp_path, caplog, encoding):
    images = [(2, "b.jpg"), (1, "a.jpg"), (3, "c.jpg"), (4, "d.jpg")]
    given = [(1, None), (1, "a\u2028dog"), (2, " \n"), (2, "None"), (3, None), (3, "  ")]
    with caplog.at_level(logging.WARNING):
        pairs = read_annotations(write_annotations(tmp_path / "a.json", images, given, encoding))
    assert pairs == [("a.jpg", ["a\u2028dog"]), ("b.jpg", ["None"])]
    (record,) = caplog.records
    assert record.getMessage().endswith("a.json: 4 of 6 captions are null or blank and are left out")


def test_ids_are_the_same_as_numbers_and_as_their_digits(tmp_path):
    path = write_annotations(
        tmp_path / "a.json", [("10", "a"), (9, "b"), ("x", "c")], [(10, "A"), ("9", "B"), ("x", "C")]
    )
    assert read_annotations(path) == [("b", ["B"]), ("a", ["A"]), ("c", ["C"])]


@pytest.mark.parametrize(
    ("images", "annotations", "says"),
    [
        ([(None, "a")], [(1, "A")], "an id must be a whole number or a string, not None"),
        ([(True, "a")], [(1, "A")], "not True"),
        ([([1], "a")], [(1, "A")], r"not \[1\]"),
        ([(1, None)], [(1, "A")], "file_name must be a string, not None"),
        ([(1, "a")], [(1, 5)], "caption must be a string, not 5"),
        ([(1, "a")], [(1.5, "A")], "not 1.5"),
        ([(1, "a"), ("1", "b")], [(1, "A")], "id 1 is that of a and of b"),
        ([(1, "a")], [(1, None)], "holds no captions of its images"),
        ([(1, "a")], [], "holds no captions of its images"),
    ],
)
def test_what_is_no_caption_file_is_refused_in_one_line(tmp_path, images, annotations, says):
    with pytest.raises(ValueError, match=says) as caught:
        read_annotations(write_annotations(tmp_path / "a.json", images, annotations))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_coco_2017(tmp_path):
    for split in ("train", "val"):
        write_annotations(
            tmp_path / "annotations" / f"captions_{split}2017.json", [(1, "1.jpg")], [(1, f"a {split} dog")]
        )
    save_image(tmp_path / "train2017" / "1.jpg", 3)
    save_image(tmp_path / "images" / "val2017" / "1.jpg", 5)
    for name in ("coco-2017", "coco_2017val"):
        for split, value in (("train", 3), ("val", 5)):
            data = build_dataset(DatasetConfig(type=name, root=str(tmp_path), resolution=8), split)
            assert data.captions([0]) == [f"a {split} dog"]
            assert int(data.fetch(np.array([0]), None)["image"][0, 0, 0, 0]) == value
    with pytest.raises(FileNotFoundError, match="captions_train2014.json"):
        build_dataset(DatasetConfig(type="coco", root=str(tmp_path), resolution=8), "train")


def test_karpathy(tmp_path):
    splits = ["train", "restval", "val", "test", "train"]
    images = [
        {
            "filepath": "train2014" if split == "train" else "val2014",
            "filename": f"{number}.jpg",
            "split": split,
            "sentences": [{"raw": f"{split} {number}."}, {"raw": "second"}, {"raw": None}],
            "cocoid": number,
        }
        for number, split in enumerate(splits)
    ]
    (tmp_path / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    for image in images:
        save_image(tmp_path / image["filepath"] / image["filename"], image["cocoid"])

    def build(split, **more):
        config = DatasetConfig(type="coco-karpathy", root=str(tmp_path), resolution=8, **more)
        data = build_dataset(config, split)
        pixels = data.fetch(np.arange(len(data)), None)["image"][:, 0, 0, 0].tolist()
        return pixels, data.captions(range(len(data)))

    assert build("train") == ([0, 1, 4], ["train 0.", "restval 1.", "train 4."])
    assert build("val") == ([2], ["val 2."])
    assert build("val", val_captions="test") == ([3], ["test 3."])
    with pytest.raises(ValueError, match="dataset.val_captions of coco-karpathy must be val or test, not 'tset'"):
        build("val", val_captions="tset")
    for content in ("[]", "{}", '{"images": [{"split": "train"}]}', '{"images": 3}', "{"):
        (tmp_path / "dataset_coco.json").write_text(content)
        with pytest.raises(ValueError, match=r"dataset_coco.json is no (file of Karpathy's splits|JSON file)"):
            build("train")
    (tmp_path / "dataset_coco.json").unlink()
    with pytest.raises(FileNotFoundError, match="dataset_coco.json; expected dataset_coco.json and images"):
        build("train")
