"""Codes and tokens in shards that no codebook and no vocabulary has: named by shard and sample, and the run ends."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import numpy as np
import pytest

from data import DatasetConfig, build_dataset
from data.errors import DataError
from data.shards.cached_latents import LatentDataset
from data.shards.shard_manifest import FORMAT, LATENTS, manifest_name
from data.shards.shard_writer import write_shard
from data.tokenizers.caption_tokenizer import WordTokenizer
from rqtransformer.targets import Stage2LossConfig
from training.stages.training_codes import check_tokenizer

CODES_ONLY = Stage2LossConfig(type="cross_entropy", stochastic_codes=False)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def latents(folder, codes=0, token=0, label=0) -> LatentDataset:
    """Two samples, the second of which has this code at one place, and this token and label."""

    def sample(number, code, token, label):
        codes_1HWD = np.zeros((1, 2, 2, 3), dtype=np.int32)
        codes_1HWD[0, 1, 0, 2] = code
        members = {"cls": str(label).encode(), "codes.npy": npy(codes_1HWD)}
        return f"{number:09d}", {**members, "cond.npy": npy(np.full((1, 4), token, dtype=np.int32))}

    samples = [sample(0, 0, 0, 0), sample(1, codes, token, label)]
    entry = write_shard(folder / "train-000000.tar", samples)
    header = {"format": FORMAT, "kind": LATENTS, "split": "train", "dataset": {}, "class_names": ["a", "b"]}
    arrays = {"tokenizer": "0", "resolution": 8, "contents": ["codes"], "crops": 1, "dtype": "float16"}
    arrays |= {"codes_dtype": "int32", "codes_shape": [2, 2, 3], "cond_length": 4, "shards": [asdict(entry)]}
    (folder / manifest_name("train")).write_text(json.dumps({**header, **arrays}))
    WordTokenizer(("", "red", "blue"), 4).save(folder / "tokenizer")
    dataset = build_dataset(DatasetConfig(type="latents", root=str(folder)), "train")
    assert isinstance(dataset, LatentDataset)
    check_tokenizer(dataset, "0", CODES_ONLY, (16, 16, 8))
    return dataset


def test_codes_and_tokens_inside_are_read(tmp_path):
    batch = latents(tmp_path, codes=7, token=2, label=1).__getitems__([0, 1])
    assert (int(batch["codes"][1, 1, 0, 2]), batch["cond"][1].tolist(), batch["label"].tolist()) == (7, [2] * 4, [0, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codes": 8}, r"code of depth 2 8, outside of 0\.\.7"),
        ({"codes": -1}, r"code of depth 2 -1, outside of 0\.\.7"),
        ({"codes": 2_000_000_000}, r"code of depth 2 2000000000, outside of 0\.\.7"),
        ({"token": 3}, r"caption token 3, outside of 0\.\.2"),
        ({"token": -5}, r"caption token -5, outside of 0\.\.2"),
    ],
)
def test_those_outside_end_the_run(wrong, message, tmp_path):
    dataset = latents(tmp_path, **wrong)
    dataset.__getitems__([0])
    with pytest.raises(DataError, match=message) as raised:
        dataset.__getitems__([0, 1])
    assert "train-000000.tar:000000001" in str(raised.value)


def test_labels_outside_the_classes_of_the_manifest(tmp_path):
    with pytest.raises(ValueError, match="none of the 2 classes"):
        latents(tmp_path, label=2)


def test_another_depth(tmp_path):
    dataset = latents(tmp_path)
    check_tokenizer(dataset, "0", CODES_ONLY, (16, 16))
    with pytest.raises(DataError, match="codes of depth 3, the stage-1 model 2"):
        dataset.__getitems__([0])
