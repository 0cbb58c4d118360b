from __future__ import annotations

import json

import pytest
import torch

from evaluation.metrics.frechet import FrechetDistance, frechet_between
from evaluation.metrics.inception_score import InceptionScore, inception_score
from evaluation.metrics.recognition import RecognitionAccuracy
from evaluation.networks.classifier import ClassifierConfig
from evaluation.networks.feature_networks import FEATURES, build_features
from evaluation.scores import Origin, metric_value, reference_statistics, score_images
from evaluation.statistics import ALONE, Ranks, statistics_of
from tests.evaluation.pixel_features import PixelFeatures

NUM = 61
QUICK = ClassifierConfig(dim=16, min_presentations=0, epochs=1)


@pytest.fixture
def image_NCHW():
    return torch.randint(256, (NUM, 3, 8, 8), dtype=torch.uint8)


@pytest.fixture
def label_N():
    return torch.arange(NUM) % 4


@pytest.fixture
def reference():
    other_NCHW = torch.randint(128, (50, 3, 8, 8), dtype=torch.uint8)
    return reference_statistics(other_NCHW.split(9), PixelFeatures(), num_images=50)


def inception_scores(batches, num_images):
    extractor = PixelFeatures()
    return score_images(batches, [InceptionScore(extractor, num_images)], extractor, num_images=num_images)["metrics"]


def test_the_line_holds_the_scores_of_the_parts(image_NCHW, label_N, reference):
    batches = [{"image": i, "label": y} for i, y in zip(image_NCHW.split(8), label_N.split(8))]
    references = {"train": reference, "val": reference._replace(mean_F=reference.mean_F + 1)}
    extractor = PixelFeatures()
    metrics = [FrechetDistance(extractor, references), InceptionScore(extractor, NUM), RecognitionAccuracy(extractor)]
    origin = Origin(3, {"top_k": 7}, "abc", {"dataset": "dots"})
    line = score_images(batches, metrics, extractor, num_images=NUM, origin=origin)
    features_NF, logits_NY = PixelFeatures()(image_NCHW)
    own = statistics_of([features_NF], 12).gaussian()
    assert line["metrics"] == pytest.approx(
        {
            "fid_pixels12_none_vs_train": frechet_between(own, references["train"]),
            "fid_pixels12_none_vs_val": frechet_between(own, references["val"]),
            "is_pixels12_none_splits10": inception_score(logits_NY)[0],
            "is-std_pixels12_none_splits10": inception_score(logits_NY)[1],
            "accuracy_pixels12_none": (logits_NY.argmax(1) == label_N).double().mean().item(),
        },
        rel=1e-9,
    )
    assert json.loads(json.dumps(line)) == line
    assert (line["num_images"], line["seed"], line["checkpoint"]) == (NUM, 3, "abc")
    assert line["sampling"] == {"top_k": 7}
    assert line["references"] == {"train": {"num_images": 50}, "val": {"num_images": 50}}
    assert line["features"]["fingerprint"] == "0" * 64
    assert list(line)[-2:] == ["seconds", "dataset"]


def test_metric_values_are_found_by_kind(image_NCHW, reference):
    extractor = PixelFeatures()
    metrics = [FrechetDistance(extractor, {"a": reference, "b": reference}), InceptionScore(extractor, NUM)]
    line = score_images([image_NCHW], metrics, extractor, num_images=NUM)
    assert metric_value(line, "fid", "a") == line["metrics"]["fid_pixels12_none_vs_a"]
    assert metric_value(line, "is") == line["metrics"]["is_pixels12_none_splits10"]
    for arguments in [("fid",), ("rfid", "a"), ("fid", "c")]:
        with pytest.raises(ValueError, match="fid_pixels12_none_vs_a"):
            metric_value(line, *arguments)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_ranks_and_batches_do_not_change_the_line(run_ranks, image_NCHW, label_N, reference, world_size, batch_size):
    def rank_line(batches, ranks):
        extractor = PixelFeatures()
        distance = FrechetDistance(extractor, {"val": reference}, "rfid")
        metrics = [distance, InceptionScore(extractor, NUM), RecognitionAccuracy(extractor)]
        return score_images(batches, metrics, extractor, num_images=NUM, ranks=ranks)

    def of_rank(rank, reduce):
        shards = zip(image_NCHW[rank::world_size].split(batch_size), label_N[rank::world_size].split(batch_size))
        return rank_line([{"image": i, "label": y} for i, y in shards], Ranks(reduce, rank, world_size))

    expected = rank_line([{"image": image_NCHW, "label": label_N}], ALONE)

    for line in run_ranks(world_size, of_rank):
        assert line["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)


def test_given_indices_decide_not_the_order(image_NCHW, reference):
    order_N = torch.randperm(NUM)
    shuffled = [{"image": image_NCHW[index_B], "index": index_B} for index_B in order_N.split(8)]
    expected = inception_scores([image_NCHW], NUM)
    assert inception_scores(shuffled, NUM) == pytest.approx(expected)


def test_few_images_have_few_splits_and_scores_can_be_left_out(image_NCHW):
    assert "is_pixels12_none_splits3" in inception_scores([image_NCHW[:3]], 3)
    assert score_images([image_NCHW], [], PixelFeatures(), num_images=NUM)["metrics"] == {}


def test_the_number_of_images_is_exact(image_NCHW, run_ranks):
    with pytest.raises(ValueError, match="1 missing, 0 more than once"):
        inception_scores([image_NCHW], NUM + 1)
    with pytest.raises(ValueError, match=f"more images than the {NUM - 1}"):
        inception_scores(image_NCHW.split(20), NUM - 1)
    twice = {"image": image_NCHW[:3], "index": torch.tensor([0, 1, 1])}
    with pytest.raises(ValueError, match="1 missing, 1 more than once"):
        inception_scores([twice], 3)
    with pytest.raises(ValueError, match="0 missing, 1 more than once"):
        inception_scores([twice], 2)
    with pytest.raises(ValueError, match="3 missing"):
        run_ranks(
            2,
            lambda rank, reduce: reference_statistics(
                [image_NCHW[rank:6:2]][: 1 - rank],
                PixelFeatures(),
                num_images=6,
                ranks=Ranks(reduce, rank, 2),
            ),
        )


def test_labels_are_asked_for(image_NCHW, label_N):
    with pytest.raises(ValueError, match="label"):
        score_images([image_NCHW], [RecognitionAccuracy(PixelFeatures())], PixelFeatures(), num_images=NUM)
    stranger = PixelFeatures()
    stranger.recognises_labels = False
    with pytest.raises(ValueError, match="pixels does not know"):
        RecognitionAccuracy(stranger)


def test_one_image_has_no_frechet_distance(image_NCHW, reference):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        distance = FrechetDistance(PixelFeatures(), {"train": reference})
        score_images([image_NCHW[:1]], [distance], PixelFeatures(), num_images=1)


def test_features_by_name():
    of_packages = {"clip", "dinov2", "efficientnet-lite0"}
    assert set(FEATURES) == {"inception", "inception64", "inception192", "inception768", "classifier"} | of_packages
    with pytest.raises(ValueError, match="'vgg': choose one of inception, classifier, .*timm:NAME"):
        build_features("vgg")
    with pytest.raises(ValueError, match="training split"):
        build_features("classifier", num_classes=2)
    image_NCHW = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    data = [(image_NCHW, torch.arange(8) % 2)]
    classifier = build_features("classifier", train=lambda: data, validation=lambda: data, num_classes=2, config=QUICK)
    assert classifier.name == "classifier"
    assert 0 <= classifier.accuracy <= 1
