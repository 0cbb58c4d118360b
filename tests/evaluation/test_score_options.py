"""Every score of one pass: alike over ranks and batch sizes, each under a name of its own, exactly N images."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import frechet_between
from evaluation.metrics.kid import KernelSettings, kernel_distance
from evaluation.metrics.manifold import ManifoldSettings, overlap
from evaluation.scores import metric_value, score_images
from evaluation.statistics import statistics_of
from runtime import distributed
from tests.evaluation.pixel_features import PixelFeatures

NUM = 61
KID = KernelSettings(subsets=4, subset_size=20, seed=1)


def images(num, seed, high=256):
    return torch.randint(high, (num, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def options():
    """References of 80 other images, for every score."""
    other_NCHW = images(80, 1, 230)
    features_NF, _, spatial_NF = PixelFeatures().with_spatial(other_NCHW)
    label_N = torch.arange(80) % 4
    return {
        "references": {"train": statistics_of([features_NF], 12).gaussian()},
        "spatial": {"train": statistics_of([spatial_NF], 6).gaussian()},
        "kid": {"train": features_NF},
        "manifold": {"train": features_NF},
        "per_class": {"train": {c: features_NF[label_N == c] for c in range(4)}},
        "kid_settings": KID,
        "manifold_settings": ManifoldSettings(2, 4),
        "splits": 5,
        "accuracy": True,
    }


def rank_line(rank, reduce, world_size, batch_size, image_NCHW=None):
    image_NCHW = images(NUM, 0) if image_NCHW is None else image_NCHW
    label_N = torch.arange(len(image_NCHW)) % 4
    shards = zip(image_NCHW[rank::world_size].split(batch_size), label_N[rank::world_size].split(batch_size))
    return score_images(
        [{"image": i, "label": y} for i, y in shards], PixelFeatures(), num_images=len(image_NCHW), reduce=reduce,
        rank=rank, world_size=world_size, **options(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return rank_line(0, lambda tensor: None, 1, NUM)


def test_the_scores_are_those_of_the_parts(whole):
    features_NF, _, spatial_NF = PixelFeatures().with_spatial(images(NUM, 0))
    given = options()
    reference_NF = given["kid"]["train"]
    kid, kid_std = kernel_distance(features_NF, reference_NF, KID)
    parts = overlap(features_NF, reference_NF, ManifoldSettings(2, 4))
    label_N = torch.arange(NUM) % 4
    per_class = {
        str(c): frechet_between(
            statistics_of([features_NF[label_N == c]], 12).gaussian(),
            statistics_of([given["per_class"]["train"][c]], 12).gaussian(),
        )
        for c in range(4)
    }
    expected = {
        "sfid_pixels-columns6_none_vs_train": frechet_between(
            statistics_of([spatial_NF], 6).gaussian(), given["spatial"]["train"]
        ),
        "kid_pixels12_none_subsets4x20_vs_train": kid,
        "kid-std_pixels12_none_subsets4x20_vs_train": kid_std,
        "precision_pixels12_none_k2_vs_train": parts.precision,
        "recall_pixels12_none_k2_vs_train": parts.recall,
        "density_pixels12_none_k4_vs_train": parts.density,
        "coverage_pixels12_none_k4_vs_train": parts.coverage,
        "class-fid_pixels12_none_vs_train": sum(per_class.values()) / 4,
    }
    assert {name: whole["metrics"][name] for name in expected} == pytest.approx(expected, rel=1e-9)
    others = {
        "fid_pixels12_none_vs_train",
        "is_pixels12_none_splits5",
        "is-std_pixels12_none_splits5",
        "accuracy_pixels12_none",
    }
    assert set(whole["metrics"]) == set(expected) | others
    line = json.loads(json.dumps(whole))
    assert line["per_class"]["class-fid_pixels12_none_vs_train"] == pytest.approx(per_class, rel=1e-7)
    assert (line["kid_seed"], line["references"]) == (1, {"train": {"num_images": 80}})
    assert metric_value(whole, "kid", "train") == kid
    assert metric_value(whole, "fid") != metric_value(whole, "class-fid") != metric_value(whole, "sfid")


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ranks_and_batches_change_nothing(run_ranks, whole, world_size, batch_size):
    lines = run_ranks(world_size, lambda rank, reduce: rank_line(rank, reduce, world_size, batch_size))
    for line in lines:
        assert line["metrics"] == pytest.approx(whole["metrics"], rel=1e-9)
        assert line["per_class"]["class-fid_pixels12_none_vs_train"] == pytest.approx(
            whole["per_class"]["class-fid_pixels12_none_vs_train"], rel=1e-9
        )
        assert line["warnings"] == whole["warnings"]
        assert line["num_images"] == NUM


def line_of(rank):
    return json.dumps(rank_line(rank, distributed.all_reduce_sum_, 2, 7))


def test_two_processes_with_gloo(whole, on_ranks):
    lines = [json.loads(line) for line in on_ranks(line_of)]
    for line in lines:
        assert line["metrics"] == pytest.approx(whole["metrics"], rel=1e-9)
    assert lines[0]["metrics"] == lines[1]["metrics"]


def test_small_sets_lower_the_subsets_and_the_name_says_so():
    given = {"kid": options()["kid"], "splits": None}
    names = score_images([images(9, 3)], PixelFeatures(), num_images=9, **given)["metrics"]
    assert set(names) == {f"{kind}_pixels12_none_subsets100x9_vs_train" for kind in ("kid", "kid-std")}


def test_classes_that_cannot_be_compared_are_listed():
    features_NF = options()["kid"]["train"]
    moments = statistics_of([features_NF[:40]], 12).gaussian()
    classes = {0: moments, 1: features_NF[40:], 2: features_NF[:1], 7: moments}
    image_NCHW, label_N = images(20, 4), torch.tensor([0] * 15 + [1] * 2 + [2] * 2 + [3])
    line = score_images(
        [{"image": image_NCHW, "label": label_N}],
        PixelFeatures(),
        num_images=20,
        splits=None,
        per_class={"val": classes},
    )
    own = statistics_of([PixelFeatures()(image_NCHW[:15])[0]], 12).gaussian()
    table = line["per_class"]["class-fid_pixels12_none_vs_val"]
    assert set(table) == {0, 1}
    assert table[0] == pytest.approx(frechet_between(own, moments), rel=1e-9)
    assert line["warnings"] == [
        "class-fid_pixels12_none_vs_val: 3 classes left out, under 2 images here or there: 2, 3, 7"
    ]
    with pytest.raises(ValueError, match="needs the class that each image was asked for"):
        score_images([image_NCHW], PixelFeatures(), num_images=20, splits=None, per_class={"val": classes})
    with pytest.raises(ValueError, match="no class has 2 images"):
        score_images(
            [{"image": image_NCHW, "label": label_N}],
            PixelFeatures(),
            num_images=20,
            splits=None,
            per_class={"val": {9: moments}},
        )


def test_warnings_of_few_images_and_singular_covariances():
    reference = options()["references"]["train"]
    line = score_images([images(5, 2)], PixelFeatures(), num_images=5, references={"train": reference}, splits=None)
    assert line["warnings"] == [
        "pixels12: only 5 images behind the samples, under 2048: compare with equally many only",
        "pixels12: the covariance of the samples is singular (5 images, 12 features)",
        "fid_pixels12_none_vs_train: only 80 images behind the reference, under 2048: compare with equally many only",
    ]
    many = statistics_of([torch.randn(3000, 12)], 12).gaussian()
    line = score_images([images(2048, 2)], PixelFeatures(), num_images=2048, references={"train": many}, splits=None)
    assert line["warnings"] == []


def test_networks_without_classes_have_no_inception_score():
    extractor = PixelFeatures()
    extractor.num_classes = 0
    assert score_images([images(9, 3)], extractor, num_images=9)["metrics"] == {}


def test_references_of_other_features_are_errors():
    given = options()
    wrong = [
        ({"references": {"train": given["spatial"]["train"]}}, "'train' has 6 features, pixels12 has 12"),
        ({"spatial": given["references"]}, "'train' has 12 features, pixels-columns6 has 6"),
        ({"kid": {"val": torch.zeros(5, 3)}}, r"'val' must hold features \(at least 2, 12\).*\(5, 3\)"),
        ({"manifold": {"val": torch.zeros(1, 12)}}, r"'val' must hold features .*got \(1, 12\)"),
        ({"per_class": {"val": {3: torch.zeros(4, 5)}}}, "'val' has 5 features for class 3, pixels has 12"),
        ({"references": given["references"], "kid": {"train": torch.zeros(9, 12)}}, "80 images and for 9"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            score_images([images(9, 3)], PixelFeatures(), num_images=9, splits=None, **arguments)
    extractor = type("Plain", (), {n: getattr(PixelFeatures, n) for n in ("label", "resize", "dim", "device")})()
    extractor.name = "plain"
    with pytest.raises(ValueError, match="plain has no spatial features: sFID needs"):
        score_images([images(9, 3)], extractor, num_images=9, spatial=given["spatial"])


def test_published_moments_may_not_know_their_size():
    given = options()
    unknown = {"train": given["references"]["train"]._replace(num=0)}
    line = score_images([images(9, 3)], PixelFeatures(), num_images=9, references=unknown, splits=None)
    assert line["references"] == {"train": {"num_images": 0}}
    assert all("the samples" in text for text in line["warnings"])
    line = score_images([images(9, 3)], PixelFeatures(), num_images=9, references=unknown, kid=given["kid"])
    assert line["references"] == {"train": {"num_images": 80}}


def test_a_bank_orders_rows_by_index_over_ranks(run_ranks):
    features_NF = torch.randn(20_001, 2)
    order_N = torch.randperm(20_001)

    def of_rank(rank, reduce):
        bank = FeatureBank(2, 20_001)
        for index_B in order_N[rank::3].split(5000):
            bank.update(features_NF[index_B].double(), index_B, index_B % 7)
        bank.all_reduce(reduce)
        return bank

    for bank in run_ranks(3, of_rank):
        assert torch.equal(bank.features_NF, features_NF)
        assert torch.equal(bank.label_N, torch.arange(20_001) % 7)
    bank = FeatureBank(2, 3)
    assert bank.label_N.tolist() == [-1] * 3
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(2, 3\)"):
        bank.update(torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match=r"0\.\.2, got 2\.\.3"):
        bank.update(torch.zeros(2, 2), torch.arange(2, 4))
