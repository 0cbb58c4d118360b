"""Every score of one pass: alike over ranks and batch sizes, each under a name of its own, exactly N images."""

from __future__ import annotations

import json

import pytest
import torch

from evaluation.metrics.class_frechet import ClassFrechetDistance
from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import FrechetDistance, frechet_between
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.kid import KernelDistance, KernelSettings, in_their_own_order, kernel_distance
from evaluation.metrics.manifold import ManifoldOverlap, ManifoldSettings, overlap
from evaluation.metrics.recognition import RecognitionAccuracy
from evaluation.metrics.spatial_frechet import SpatialFrechetDistance
from evaluation.scores import metric_value, score_images
from evaluation.statistics import Ranks, statistics_of
from runtime import distributed
from tests.evaluation.pixel_features import PixelFeatures

NUM = 61
KID = KernelSettings(subsets=4, subset_size=20, seed=1)


def images(num, seed, high=256):
    return torch.randint(high, (num, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def references():
    """References of 80 other images, for every metric."""
    other_NCHW = images(80, 1, 230)
    features_NF, _, spatial_NF = PixelFeatures().with_spatial(other_NCHW)
    label_N = torch.arange(80) % 4
    return {
        "moments": {"train": statistics_of([features_NF], 12).gaussian()},
        "spatial": {"train": statistics_of([spatial_NF], 6).gaussian()},
        "features": {"train": features_NF},
        "per_class": {"train": {c: features_NF[label_N == c] for c in range(4)}},
    }


def rank_line(rank, reduce, world_size, batch_size):
    image_NCHW, label_N, extractor, given = images(NUM, 0), torch.arange(NUM) % 4, PixelFeatures(), references()
    shards = zip(image_NCHW[rank::world_size].split(batch_size), label_N[rank::world_size].split(batch_size))
    metrics = [
        FrechetDistance(extractor, given["moments"]),
        SpatialFrechetDistance(extractor, given["spatial"]),
        InceptionScore(extractor, NUM, splits=5),
        RecognitionAccuracy(extractor),
        KernelDistance(extractor, given["features"], KID),
        ManifoldOverlap(extractor, given["features"], ManifoldSettings(2, 4)),
        ClassFrechetDistance(extractor, given["per_class"]),
    ]
    batches = [{"image": i, "label": y} for i, y in shards]
    return score_images(batches, metrics, extractor, num_images=NUM, ranks=Ranks(reduce, rank, world_size))


def score(*metrics, image_NCHW=None, label_N=None):
    """The line of nine images, or of these."""
    image_NCHW = images(9, 3) if image_NCHW is None else image_NCHW
    batch = {"image": image_NCHW} | ({} if label_N is None else {"label": label_N})
    return score_images([batch], metrics, PixelFeatures(), num_images=len(image_NCHW))


@pytest.fixture(scope="module")
def whole():
    return rank_line(0, lambda tensor: None, 1, NUM)


def test_the_scores_are_those_of_the_parts(whole):
    features_NF, _, spatial_NF = PixelFeatures().with_spatial(images(NUM, 0))
    given = references()
    reference_NF = given["features"]["train"]
    kid, kid_std = kernel_distance(in_their_own_order(features_NF), in_their_own_order(reference_NF), KID)
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
    names = score(KernelDistance(PixelFeatures(), references()["features"]))["metrics"]
    assert set(names) == {f"{kind}_pixels12_none_subsets100x9_vs_train" for kind in ("kid", "kid-std")}


def test_classes_that_cannot_be_compared_are_listed():
    features_NF = references()["features"]["train"]
    moments = statistics_of([features_NF[:40]], 12).gaussian()
    classes = {0: moments, 1: features_NF[40:], 2: features_NF[:1], 7: moments}
    image_NCHW, label_N = images(20, 4), torch.tensor([0] * 15 + [1] * 2 + [2] * 2 + [3])
    distance = ClassFrechetDistance(PixelFeatures(), {"val": classes})
    line = score(distance, image_NCHW=image_NCHW, label_N=label_N)
    own = statistics_of([PixelFeatures()(image_NCHW[:15])[0]], 12).gaussian()
    table = line["per_class"]["class-fid_pixels12_none_vs_val"]
    assert set(table) == {0, 1}
    assert table[0] == pytest.approx(frechet_between(own, moments), rel=1e-9)
    assert line["warnings"] == [
        "class-fid_pixels12_none_vs_val: 3 classes left out, under 2 images here or there: 2, 3, 7"
    ]
    with pytest.raises(ValueError, match="needs the class that each image was asked for"):
        score(distance, image_NCHW=image_NCHW)
    with pytest.raises(ValueError, match="no class has 2 images"):
        strangers = ClassFrechetDistance(PixelFeatures(), {"val": {9: moments}})
        score(strangers, image_NCHW=image_NCHW, label_N=label_N)


def test_warnings_of_few_images_and_singular_covariances():
    line = score(FrechetDistance(PixelFeatures(), references()["moments"]), image_NCHW=images(5, 2))
    assert line["warnings"] == [
        "pixels12: only 5 images behind the samples, under 2048: compare with equally many only",
        "pixels12: the covariance of the samples is singular (5 images, 12 features)",
        "fid_pixels12_none_vs_train: only 80 images behind the reference, under 2048: compare with equally many only",
    ]
    many = statistics_of([torch.randn(3000, 12)], 12).gaussian()
    line = score(FrechetDistance(PixelFeatures(), {"train": many}), image_NCHW=images(2048, 2))
    assert line["warnings"] == []


def test_networks_without_classes_have_no_inception_score():
    extractor = PixelFeatures()
    extractor.num_classes = 0
    with pytest.raises(ValueError, match="pixels12 has no classes, which the inception score needs"):
        InceptionScore(extractor, 9)


def test_references_of_other_features_are_errors():
    given = references()
    wrong = [
        (FrechetDistance, given["spatial"], "'train' has 6 features, pixels12 has 12"),
        (SpatialFrechetDistance, given["moments"], "'train' has 12 features, pixels-columns6 has 6"),
        (KernelDistance, {"val": torch.zeros(5, 3)}, r"'val' must hold features \(at least 2, 12\).*\(5, 3\)"),
        (ManifoldOverlap, {"val": torch.zeros(1, 12)}, r"'val' must hold features .*got \(1, 12\)"),
        (ClassFrechetDistance, {"val": {3: torch.zeros(4, 5)}}, "'val' has 5 features for class 3, pixels has 12"),
    ]
    for kind, reference, message in wrong:
        with pytest.raises(ValueError, match=message):
            kind(PixelFeatures(), reference)
    few = KernelDistance(PixelFeatures(), {"train": torch.zeros(9, 12)})
    with pytest.raises(ValueError, match="80 images and for 9"):
        score(FrechetDistance(PixelFeatures(), given["moments"]), few)
    extractor = type("Plain", (), {n: getattr(PixelFeatures, n) for n in ("label", "resize", "dim", "device")})()
    extractor.name = "plain"
    with pytest.raises(ValueError, match="plain has no spatial features: sFID needs"):
        SpatialFrechetDistance(extractor, given["spatial"])


def test_published_moments_may_not_know_their_size():
    given = references()
    unknown = {"train": given["moments"]["train"]._replace(num=0)}
    distance = FrechetDistance(PixelFeatures(), unknown)
    line = score(distance)
    assert line["references"] == {"train": {"num_images": 0}}
    assert all("the samples" in text for text in line["warnings"])
    line = score(FrechetDistance(PixelFeatures(), unknown), KernelDistance(PixelFeatures(), given["features"]))
    assert line["references"] == {"train": {"num_images": 80}}


def test_a_bank_orders_rows_by_index_over_ranks(run_ranks):
    features_NF = torch.randn(20_001, 2)
    order_N = torch.randperm(20_001)

    def of_rank(rank, reduce):
        bank = FeatureBank(2, 20_001)
        for index_B in order_N[rank::3].split(5000):
            bank.store(features_NF[index_B].double(), index_B, index_B % 7)
        bank.all_reduce(reduce)
        return bank

    for bank in run_ranks(3, of_rank):
        assert torch.equal(bank.features_NF, features_NF)
        assert torch.equal(bank.label_N, torch.arange(20_001) % 7)
    bank = FeatureBank(2, 3)
    assert bank.label_N.tolist() == [-1] * 3
    with pytest.raises(ValueError, match=r"\(2, 2\), got \(2, 3\)"):
        bank.store(torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match=r"0\.\.2, got 2\.\.3"):
        bank.store(torch.zeros(2, 2), torch.arange(2, 4))
