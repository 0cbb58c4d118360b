"""Nearest training images: equal to brute force, and able to tell copies from samples of the same distribution."""

from __future__ import annotations

import pytest
import torch

from evaluation.metrics import neighbours
from evaluation.metrics.neighbours import closeness, nearest_neighbours, spread, take_images
from runtime.errors import UserError

DIM = 6


def features(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed)) + 100


@pytest.mark.parametrize("tile", [3, 7, 2048])
def test_equal_to_brute_force_in_any_tiling(tile, monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", tile)
    samples_MF, training_NF = features(11, 0), features(20, 1)
    found = nearest_neighbours(samples_MF, training_NF, 4)
    expected = torch.cdist(samples_MF.double(), training_NF.double()).topk(4, largest=False)
    torch.testing.assert_close(found.distance_MK, expected.values)
    torch.testing.assert_close(found.index_MK, expected.indices)


@pytest.mark.parametrize("tile", [3, 2048])
def test_training_images_are_not_their_own_neighbours(tile, monkeypatch):
    monkeypatch.setattr(neighbours, "_TILE", tile)
    training_NF, own_M = features(20, 1), torch.tensor([0, 5, 19])
    found = nearest_neighbours(training_NF[own_M], training_NF, 2, own_M=own_M)
    distance_NN = torch.cdist(training_NF.double(), training_NF.double()).fill_diagonal_(torch.inf)
    torch.testing.assert_close(found.distance_MK, distance_NN[own_M].topk(2, largest=False).values)


def test_copies_are_close_and_fresh_draws_are_not():
    training_NF = features(1500, 1)
    fresh = closeness(nearest_neighbours(features(1500, 2), training_NF, 1), training_NF)
    assert fresh.close_share < 0.03
    assert fresh.median == pytest.approx(fresh.training_median, rel=0.05)
    half_MF = torch.cat([features(500, 3), training_NF[:500] + 1e-4])
    half = closeness(nearest_neighbours(half_MF, training_NF, 1), training_NF)
    assert half.close_share == pytest.approx(0.5, abs=0.02)
    assert half.threshold == fresh.threshold


def test_a_copy_lies_at_no_distance():
    training_NF = 100 + 30 * torch.rand(300, 256, generator=torch.Generator().manual_seed(1))
    found = nearest_neighbours(training_NF[::3], training_NF, 2)
    assert found.index_MK[:, 0].tolist() == list(range(0, 300, 3))
    assert found.distance_MK[:, 0].eq(0).all()
    assert found.distance_MK[:, 1].gt(100).all()


def test_wrong_inputs():
    with pytest.raises(ValueError, match="3 neighbours of 2 training images: choose 1..2"):
        nearest_neighbours(features(4, 0), features(2, 1), 3)
    with pytest.raises(ValueError, match="choose 1..1"):
        nearest_neighbours(features(2, 0), features(2, 0), 2, own_M=torch.arange(2))
    with pytest.raises(ValueError, match="cannot compare 6 features with 5"):
        nearest_neighbours(features(4, 0), features(4, 1)[:, :5], 1)
    assert len(nearest_neighbours(features(0, 0), features(2, 1), 1).index_MK) == 0


def test_spread_is_even_and_complete():
    assert spread(3, 9).tolist() == [0, 3, 6]
    assert spread(9, 4).tolist() == [0, 1, 2, 3]
    assert spread(2, 0).tolist() == []


def test_images_are_taken_by_index_and_the_rest_is_not_read():
    def stream():
        for start in (0, 2, 4):
            index_B = torch.tensor([start + 1, start])
            yield {"image": index_B.to(torch.uint8)[:, None, None, None].expand(2, 3, 1, 1), "index": index_B}
        raise AssertionError("read too far")

    taken = take_images(stream(), [3, 0, 3, 4])
    assert {index: int(found.image_CHW[0, 0, 0]) for index, found in taken.items()} == {0: 0, 3: 3, 4: 4}
    with pytest.raises(UserError, match="1 of 2 images for the report were not found"):
        take_images(iter([{"image": torch.zeros(1, 3, 1, 1), "index": torch.tensor([0])}]), [0, 9])
