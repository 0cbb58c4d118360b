"""Rejection sampling: which candidates there are, which are kept, and that batches and ranks do not matter."""

import time
from types import SimpleNamespace

import pytest
import torch

from evaluation.protocol import balanced_conditions
from sampling import rejection
from sampling.conditions import ClassConditions
from sampling.rejection import RejectionPlan, RejectionSampler
from sampling.sampler import SamplingSettings


class BrightnessJudge:
    """Scores an image by its mean: what `fake_decode` makes of the candidate's number."""

    label = "brightness"

    def __call__(self, image_BCHW, label_B):
        return image_BCHW.float().mean((1, 2, 3))


def brightness(number: torch.Tensor) -> torch.Tensor:
    """A hash of the number on the 255 levels of a pixel."""
    return (number * 7919 + 13) % 251


def fake_draw(number_B, label_B, rows):
    assert len(number_B) <= rows
    assert torch.equal(label_B, number_B % 3)
    return number_B[:, None, None, None].expand(-1, 2, 2, 1)


def fake_decode(codes_BHWD):
    level_B = brightness(codes_BHWD[:, 0, 0, 0])
    return (level_B / 127.5 - 1)[:, None, None, None].expand(-1, 3, 4, 4)


def sampler(plan: RejectionPlan, batch_size: int = 5) -> RejectionSampler:
    fake = SimpleNamespace(
        draw=fake_draw,
        decode=fake_decode,
        conditions=ClassConditions(plan.num_classes),
        settings=SamplingSettings(batch_size=batch_size),
    )
    return RejectionSampler(plan, fake, BrightnessJudge())


def gathered(batches) -> dict[int, tuple[int, int]]:
    """index -> (label, brightness)."""
    found = {}
    for batch in batches:
        for index, label, image in zip(batch["index"].tolist(), batch["label"].tolist(), batch["image"], strict=True):
            assert index not in found
            found[index] = (label, int(image[0, 0, 0]))
    return found


@pytest.mark.parametrize(
    ("num_samples", "keep", "per_class"),
    [(9, 0.5, [6, 6, 6]), (10, 0.3, [14, 10, 10]), (3, 0.05, [20, 20, 20]), (4, 1.0, [2, 1, 1])],
)
def test_every_class_gets_its_candidates(num_samples, keep, per_class):
    candidates = RejectionPlan(num_samples, 3, keep).candidates()
    assert torch.bincount(candidates % 3).tolist() == per_class
    assert len(candidates.unique()) == len(candidates)
    assert torch.equal(candidates, candidates.sort().values)


def test_the_best_of_every_class_are_kept():
    plan = RejectionPlan(10, 3, 0.25)
    found = gathered(sampler(plan).images())
    assert sorted(found) == list(range(10))
    assert [found[index][0] for index in range(10)] == balanced_conditions(10, 3).tolist()
    candidates = plan.candidates()
    for label, kept in enumerate([4, 3, 3]):
        best = brightness(candidates[candidates % 3 == label]).sort(descending=True).values[:kept].tolist()
        assert [found[label + 3 * place][1] for place in range(kept)] == best


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_batches_do_not_matter(batch_size):
    plan = RejectionPlan(10, 3, 0.25)
    assert gathered(sampler(plan, batch_size).images()) == gathered(sampler(plan).images())


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_ranks_do_not_matter(world_size, monkeypatch):
    plan = RejectionPlan(10, 3, 0.25)
    expected = gathered(sampler(plan).images())
    candidates, found = plan.candidates(), {}
    scores = brightness(candidates).float()
    for rank in range(world_size):
        # the collectives as the other ranks would answer them: numbers, then scores, in the order of the ranks
        order = torch.cat([torch.arange(len(candidates))[other::world_size] for other in range(world_size)])
        answers = iter([candidates[order], scores[order]])
        monkeypatch.setattr(rejection.distributed, "gather_rows", lambda own, answers=answers: [next(answers)])
        mine = gathered(sampler(plan).images(rank, world_size))
        assert not found.keys() & mine.keys()
        found |= mine
    assert found == expected


def test_equal_scores_keep_the_lower_numbers():
    plan = RejectionPlan(4, 2, 0.5)
    candidates = plan.candidates()
    chosen, index = plan.select(candidates.flip(0), torch.zeros(len(candidates)))
    assert chosen[index.argsort()].tolist() == [0, 1, 2, 3]


def test_scores_that_are_no_numbers_come_last():
    plan = RejectionPlan(4, 2, 0.5)
    candidates = plan.candidates()
    scores = torch.zeros(len(candidates))
    scores[:2] = torch.nan
    scores[2:4] = -torch.inf
    chosen, index = plan.select(candidates, scores)
    assert chosen[index.argsort()].tolist() == [4, 5, 6, 7]


def test_a_million_candidates_of_a_thousand_classes():
    plan = RejectionPlan(50_003, 1000, 0.05)
    candidates = plan.candidates()
    scores = torch.rand(len(candidates), generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    chosen, index = plan.select(candidates[shuffled], scores[shuffled])
    assert time.process_time() - start < 5  # a search of all candidates for every class takes longer
    assert torch.equal(index.sort().values, torch.arange(50_003))
    assert torch.equal(chosen % 1000, index % 1000)
    for label in (0, 2, 3, 999):
        mine = candidates % 1000 == label
        kept = 51 if label < 3 else 50
        best = candidates[mine][scores[mine].argsort(descending=True)[:kept]]
        assert torch.equal(chosen[index % 1000 == label], best)


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_settings_that_cannot_work(keep):
    with pytest.raises(ValueError, match=f"--reject-keep {keep} must be above 0 and at most 1"):
        RejectionPlan(4, 10, keep)


def test_one_condition_takes_the_best_of_all():
    chosen, index = RejectionPlan(3, 1, 0.3).select(torch.arange(10), brightness(torch.arange(10)).float())
    assert torch.equal(chosen, brightness(torch.arange(10)).argsort(descending=True)[:3])
    assert index.tolist() == [0, 1, 2]
