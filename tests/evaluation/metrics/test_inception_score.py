from __future__ import annotations

import pytest
import torch

from evaluation.metrics.inception_score import (
    InceptionScore,
    MixedInceptionScore,
    StreamingInceptionScore,
    inception_score,
)
from evaluation.scores import score_images
from evaluation.statistics import ALONE, Ranks
from tests.evaluation.small_features import SmallFeatures


@pytest.fixture
def logits_NY():
    return 3 * torch.randn(103, 12)


def test_sure_and_balanced_logits_score_the_number_of_classes():
    logits_NY = 1e4 * torch.eye(10).repeat(20, 1)
    assert inception_score(logits_NY, splits=10) == pytest.approx((10.0, 0.0), abs=1e-9)


def test_equal_logits_score_one():
    assert inception_score(torch.zeros(50, 7), splits=5) == pytest.approx((1.0, 0.0), abs=1e-12)


@pytest.mark.parametrize("splits", [1, 4, 10])
def test_against_the_definition(logits_NY, splits):
    scores = []
    for j in range(splits):
        probability_NY = logits_NY[j * 103 // splits : (j + 1) * 103 // splits].softmax(1).double()
        ratio_NY = probability_NY.log() - probability_NY.mean(0).log()
        scores.append((probability_NY * ratio_NY).sum(1).mean().exp())
    scores = torch.stack(scores)
    mean, std = inception_score(logits_NY, splits)
    assert mean == pytest.approx(scores.mean().item(), rel=1e-12)
    assert std == pytest.approx(scores.std().item() if splits > 1 else 0.0, rel=1e-9)


def test_any_order_and_any_ranks_give_the_score_of_the_ordered_set(logits_NY, run_ranks):
    order_N = torch.randperm(103)

    def rank_score(rank, reduce):
        score = StreamingInceptionScore(103, 12, splits=10)
        for index_B in order_N[rank::3].split(8):
            score.update(logits_NY[index_B], index_B)
        score.all_reduce(reduce)
        return score.result()

    for result in run_ranks(3, rank_score):
        assert result == pytest.approx(inception_score(logits_NY, splits=10), rel=1e-12)


def test_an_iterable_of_batches_is_taken(logits_NY):
    assert inception_score(iter(logits_NY.split(9))) == inception_score(logits_NY)


def test_wrong_input_is_an_error(logits_NY):
    for splits in (0, 104):
        with pytest.raises(ValueError, match=f"got {splits}"):
            inception_score(logits_NY, splits)
    with pytest.raises(ValueError, match="images, classes"):
        inception_score(logits_NY[0])


def _mixed(image_NCHW, index_N=None, splits=10, ranks=ALONE):
    extractor = SmallFeatures()
    index_N = torch.arange(len(image_NCHW)) if index_N is None else index_N
    mine = slice(ranks.rank, None, ranks.world_size)
    batches = [
        {"image": image_BCHW, "index": index_B}
        for image_BCHW, index_B in zip(image_NCHW[mine].split(7), index_N[mine].split(7))
    ]
    metric = MixedInceptionScore(extractor, len(image_NCHW), splits)
    return score_images(batches, [metric], extractor, num_images=len(image_NCHW), ranks=ranks)["metrics"]


@pytest.fixture
def classes_NCHW():
    """60 images of five classes, sorted by class, each unlike the others."""
    image_NCHW = torch.randint(0, 30, (60, 3, 8, 8), dtype=torch.uint8)
    for label in range(5):
        image_NCHW[12 * label : 12 * (label + 1), label % 3, :, 4 * (label // 3) :] += 200
    return image_NCHW


def test_the_same_images_have_one_score_in_any_order(classes_NCHW, run_ranks):
    by_class = _mixed(classes_NCHW)
    shuffled = [_mixed(classes_NCHW[torch.randperm(60)]) for _ in range(3)]
    for other in shuffled:
        assert other == pytest.approx(by_class, rel=1e-12)
    assert [name.endswith("_splits10_mixed") for name in by_class] == [True, True]
    extractor = SmallFeatures()
    logits_NY = extractor(classes_NCHW)[1]
    mixed, sorted_by_class = inception_score(logits_NY[torch.randperm(60)])[0], inception_score(logits_NY)[0]
    score = next(iter(by_class.values()))
    assert abs(score - mixed) < 0.5 * abs(score - sorted_by_class), "sorted by class, a split holds one class"
    for result in run_ranks(3, lambda rank, reduce: _mixed(classes_NCHW, ranks=Ranks(reduce, rank, 3))):
        assert result == pytest.approx(by_class, rel=1e-12)


def test_equal_images_are_spread_over_the_splits(classes_NCHW):
    """Ten copies of six images: gathered, every split would hold one image and score 1."""
    copies_NCHW = classes_NCHW[::12].repeat_interleave(12, 0)
    score = next(iter(_mixed(copies_NCHW, splits=4).values()))
    logits_NY = SmallFeatures()(classes_NCHW[::12])[1]
    assert score == pytest.approx(inception_score(logits_NY, splits=1)[0], rel=0.05)
    assert next(iter(_mixed(copies_NCHW[torch.randperm(60)], splits=4).values())) == pytest.approx(score, rel=1e-12)


def test_names_tell_the_orders_apart(classes_NCHW):
    published = InceptionScore(SmallFeatures(), 60).names
    mixed = MixedInceptionScore(SmallFeatures(), 60).names
    assert not set(published) & set(mixed) and [f"{name}_mixed" for name in published] == mixed
