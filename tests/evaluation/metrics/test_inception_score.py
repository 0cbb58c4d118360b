from __future__ import annotations

import pytest
import torch

from evaluation.metrics.inception_score import StreamingInceptionScore, inception_score


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
