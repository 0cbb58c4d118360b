"""Semantic IDs: similar items share their first codes, every item has an ID of its own."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from examples import semantic_ids
from examples.semantic_ids import Settings, assign, break_ties, read_embeddings, train


def items_of_groups(number: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of 6 far groups, and the group of each."""
    draw = np.random.default_rng(0)
    group = draw.integers(6, size=number)
    return (4 * draw.normal(size=(6, 16))[group] + draw.normal(size=(number, 16))).astype("f4"), group


def test_first_codes_follow_the_groups_and_ids_are_unique(tmp_path):
    values, group = items_of_groups()
    np.save(tmp_path / "items.npy", values)
    items_NF = read_embeddings(tmp_path / "items.npy")
    torch.testing.assert_close(items_NF.mean(0), torch.zeros(16), atol=1e-5, rtol=0)
    ids, report = assign(train(items_NF, Settings(num_codes=8, steps=150, batch_size=128, hidden=32)), items_NF)
    assert len(ids.unique(dim=0)) == len(ids) == report.items
    # all items of a first code are of one group, nearly always
    counts = np.zeros((8, 6))
    np.add.at(counts, (ids[:, 0].numpy(), group), 1)
    assert counts.max(axis=1).sum() > 0.95 * len(group)
    assert report.explained > 0.6 and min(report.usage) > 0.5
    shared = (ids[:, :3].unique(dim=0, return_inverse=True, return_counts=True)[2]).max()
    assert report.largest_collision == shared == ids[:, 3].max() + 1


def test_ties_are_counted_in_the_order_of_the_items():
    codes_ND = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])
    tie_N, sizes = break_ties(codes_ND)
    assert tie_N.tolist() == [0, 0, 1, 2, 0]
    assert sorted(sizes.tolist()) == [1, 1, 3]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(3), "one array of numbers"),
        (np.zeros((1, 4)), "at least two items"),
        (np.array([["a", "b"], ["c", "d"]]), "one array of numbers"),
        (np.full((2, 2), np.nan), "not finite"),
        (np.array([[None], [None]], dtype=object), "no .npy file of numbers"),
    ],
    ids=["flat", "one item", "words", "nan", "objects"],
)
def test_files_that_are_no_embeddings(values, said, tmp_path):
    np.save(tmp_path / "items.npy", values)
    with pytest.raises(ValueError, match=said):
        read_embeddings(tmp_path / "items.npy")


def test_the_command_writes_ids_and_one_line(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "items.npy", items_of_groups(60)[0])
    words = [str(tmp_path / "items.npy"), str(tmp_path / "ids.npy"), "--steps", "2", "--num-codes", "4", "--depth", "2"]
    monkeypatch.setattr(sys, "argv", ["semantic_ids", *words])
    semantic_ids.main()
    assert json.loads(capsys.readouterr().out)["items"] == 60
    ids = np.load(tmp_path / "ids.npy")
    assert ids.shape == (60, 3) and ids.dtype == np.int64


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.npy", "ids.npy"], "no.npy is no .npy file"),
        (["no.npy", "nowhere/ids.npy"], "in a folder that exists"),
        (["no.npy", "ids.txt"], "ending in .npy"),
        (["no.npy", "ids.npy", "--depth", "0"], "--depth=0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["semantic_ids", *words])
    with pytest.raises(SystemExit) as ended:
        semantic_ids.main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
