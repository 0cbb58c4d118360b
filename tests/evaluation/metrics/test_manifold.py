from __future__ import annotations

import pytest
import torch

from evaluation.metrics import manifold
from evaluation.metrics.manifold import ManifoldSettings, neighbour_radii, overlap


@pytest.fixture
def features():
    return torch.randn(90, 5) + torch.tensor([2.0, 1, 0, 0, 0]), torch.randn(70, 5)


def by_definition(samples, reals, settings):
    """With the whole matrices of distances."""
    across = torch.cdist(reals.double(), samples.double(), compute_mode="donot_use_mm_for_euclid_dist")

    def radius(x, k):
        own = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
        return own.sort(1).values[:, k]  # column 0 is the point itself

    real_pr, real_dc = radius(reals, settings.pr_k), radius(reals, settings.dc_k)
    return (
        (across <= real_pr[:, None]).any(0).double().mean().item(),
        (across <= radius(samples, settings.pr_k)).any(1).double().mean().item(),
        (across < real_dc[:, None]).sum().item() / settings.dc_k / len(samples),
        (across.amin(1) < real_dc).double().mean().item(),
    )


@pytest.mark.parametrize("settings", [ManifoldSettings(), ManifoldSettings(1, 1), ManifoldSettings(7, 2)])
@pytest.mark.parametrize("tile", [2048, 32, 7])
def test_against_the_definition_in_tiles(features, settings, tile, monkeypatch):
    monkeypatch.setattr(manifold, "_TILE", tile)
    result = overlap(*features, settings)
    assert tuple(result) == pytest.approx(by_definition(*features, settings), rel=1e-12)
    assert 0 < result.precision < 1 and 0 < result.recall < 1 and 0 < result.coverage < 1


def test_points_on_a_line():
    # Reals 0, 1, 2, 3: with k = 1 every ball has radius 1. Samples at 0.5, 9 and 9.25.
    reals = torch.arange(4.0)[:, None]
    samples = torch.tensor([[0.5], [9.0], [9.25]])
    result = overlap(samples, reals, ManifoldSettings(pr_k=1, dc_k=1))
    assert result.precision == pytest.approx(1 / 3)
    # The ball of 0.5 reaches to 9, over all reals.
    assert result.recall == 1
    assert result.density == pytest.approx(2 / 3)  # 0.5 lies in the balls of 0 and 1
    assert result.coverage == 0.5


def test_far_from_the_origin_nothing_changes(features):
    moved = [x.double() + 1e6 for x in features]
    assert tuple(overlap(*moved)) == pytest.approx(tuple(overlap(*features)), abs=0.03)
    exact = [x.double().mul(1024).round().div(1024) for x in features]
    assert overlap(*(x + 2.0**20 for x in exact)) == overlap(*exact)


def test_radii_are_those_of_other_rows_even_of_equal_ones():
    points = torch.tensor([[0.0], [0.0], [3.0]])
    assert neighbour_radii(points, 2).tolist() == [[0, 9], [0, 9], [9, 9]]


def test_disjoint_and_equal_sets(features):
    reals = features[0]
    assert tuple(overlap(reals + 1000, reals)) == (0, 0, 0, 0)
    same = overlap(reals.clone(), reals)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)


def test_memory_does_not_grow_with_the_product(features, monkeypatch):
    sizes = []
    distances = manifold._squared_distances

    def watched(*args):
        tile = distances(*args)
        sizes.append(tile.numel())
        return tile

    monkeypatch.setattr(manifold, "_squared_distances", watched)
    monkeypatch.setattr(manifold, "_TILE", 16)
    overlap(*features)
    assert max(sizes) == 256


def test_wrong_input_is_an_error(features):
    with pytest.raises(ValueError, match="k = 3 .*got 3"):
        overlap(features[0][:3], features[1])
    with pytest.raises(ValueError, match="k = 0"):
        neighbour_radii(features[0], 0)
    with pytest.raises(ValueError, match="5 features with 4"):
        overlap(features[0], features[1][:, :4])
