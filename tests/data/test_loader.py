"""The loaders: the same batches for any number of workers, exact evaluation, resuming."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch

from data import DatasetConfig, EvalLoader, TrainLoader, build_dataset
from data.placing import one_ahead


@pytest.fixture(scope="module")
def digits():
    return build_dataset(DatasetConfig(type="digits", random_shift=2, hflip=True, resolution=16), "train", seed=3)


@pytest.fixture(scope="module")
def shapes():
    return build_dataset(DatasetConfig(type="synthetic", resolution=16, num_samples=50, hflip=True), "train")


def _take(loader, count):
    return list(itertools.islice(iter(loader), count))


def _assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs):
        assert left.keys() == right.keys()
        for key in left:
            assert torch.equal(left[key], right[key]), key


def test_batch_is_the_stacked_items(digits):
    batch = _take(TrainLoader(digits, 8, seed=1), 1)[0]
    assert batch["image"].shape == (8, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    order = TrainLoader(digits, 8, seed=1).order
    items = [digits[pair] for pair in next(iter(order))]
    _assert_equal([batch], [{key: torch.stack([item[key] for item in items]) for key in batch}])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(shapes, workers):
    _assert_equal(
        _take(TrainLoader(shapes, 16, seed=1, num_workers=workers), 8), _take(TrainLoader(shapes, 16, seed=1), 8)
    )
    _assert_equal(list(EvalLoader(shapes, 16, num_workers=workers)), list(EvalLoader(shapes, 16)))


def test_ranks_join_to_the_global_batch(digits):
    whole = _take(TrainLoader(digits, 12, seed=1), 4)
    ranks = [_take(TrainLoader(digits, 2, seed=1, rank=r, world_size=2, accumulation=3), 12) for r in range(2)]
    joined = [
        {
            key: torch.cat([ranks[rank][3 * step + micro][key] for micro in range(3) for rank in range(2)])
            for key in whole[0]
        }
        for step in range(4)
    ]
    _assert_equal(joined, whole)


def test_resuming_continues(digits):
    _assert_equal(
        _take(TrainLoader(digits, 8, seed=1, start_image=40), 3), _take(TrainLoader(digits, 8, seed=1), 8)[5:]
    )


def test_iterating_leaves_the_global_generator_alone(shapes):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    _take(TrainLoader(shapes, 8, seed=1, num_workers=1), 2)
    _take(TrainLoader(shapes, 8, seed=1), 2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_augmentation_depends_on_seed_and_key_alone(digits):
    other = build_dataset(DatasetConfig(type="digits", random_shift=2, hflip=True, resolution=16), "train", seed=4)
    keys = range(20)
    first = [digits[0, key]["image"] for key in keys]
    assert all(torch.equal(image, digits[0, key]["image"]) for key, image in zip(keys, first))
    assert len({image.numpy().tobytes() for image in first}) > 5
    assert any(not torch.equal(image, other[0, key]["image"]) for key, image in zip(keys, first))
    assert torch.equal(digits[0]["image"], other[0]["image"])  # without a key: as for evaluation


@pytest.mark.parametrize("limit", [None, 1, 100, 10_000])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_every_image_once(digits, limit, ranks):
    loaders = [EvalLoader(digits, 64, rank, ranks, limit=limit) for rank in range(ranks)]
    seen = [torch.cat([batch["index"] for batch in loader]).tolist() if len(loader) else [] for loader in loaders]
    expected = min(limit or len(digits), len(digits))
    assert loaders[0].num_samples == expected
    merged = [seen[position % ranks][position // ranks] for position in range(expected)]
    assert sum(map(len, seen)) == expected == len(set(merged))
    assert merged == sorted(merged)
    assert all(len(list(loader)) == len(loader) for loader in loaders)
    if limit == 100:  # spread over the split, not its first images
        assert max(np.diff(merged)) <= np.ceil(len(digits) / 100)
        assert merged[-1] > len(digits) * 0.98


def test_evaluation_order_of_ranks(digits):
    assert next(iter(EvalLoader(digits, 3, rank=1, world_size=4)))["index"].tolist() == [1, 5, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(batch_size=2, rank=1), r"rank must be in \[0, 1\)"),
        (dict(batch_size=2, limit=0), "limit must be at least 1, not 0"),
    ],
)
def test_wrong_evaluation_settings(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        EvalLoader(digits, **arguments)


def test_batches_can_be_put_on_a_device(digits):
    placed = _take(TrainLoader(digits, 8, seed=1, device="cpu"), 2)
    _assert_equal(placed, _take(TrainLoader(digits, 8, seed=1), 2))
    if torch.cuda.is_available():
        for loader in (TrainLoader(digits, 8, seed=1, device="cuda"), EvalLoader(digits, 8, device="cuda")):
            batch = next(iter(loader))
            assert {value.device.type for value in batch.values()} == {"cuda"}
        pinned = _take(TrainLoader(digits, 8, seed=1, pin_memory=True), 2)
        assert pinned[0]["image"].is_pinned()
        _assert_equal(pinned, placed)


def test_a_batch_is_under_way_before_the_one_in_front_of_it_is_given_out():
    events = []
    batches = one_ahead(
        iter(range(3)),
        lambda number: events.append(f"start {number}") or number,
        lambda number: events.append(f"finish {number}") or number,
    )
    assert list(batches) == [0, 1, 2]
    assert events == ["start 0", "start 1", "finish 0", "start 2", "finish 1", "finish 2"]
    endless = one_ahead(itertools.count(), lambda number: number, lambda number: number)
    assert list(itertools.islice(endless, 4)) == [0, 1, 2, 3]
    assert list(one_ahead([], str, str)) == []


def test_batches_of_data_workers_can_be_put_on_a_device(shapes):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = _take(TrainLoader(shapes, 8, seed=1), 6)
    placed = _take(TrainLoader(shapes, 8, seed=1, num_workers=2, device=device), 6)
    _assert_equal([{name: value.cpu() for name, value in batch.items()} for batch in placed], plain)


def test_data_sets_survive_pickling(digits, shapes):
    for dataset in (digits, shapes):
        copy = pickle.loads(pickle.dumps(dataset))
        _assert_equal([copy[4, 9]], [dataset[4, 9]])


def test_validation_images_are_never_augmented(digits):
    val = build_dataset(DatasetConfig(type="digits", random_shift=2, hflip=True, resolution=16), "val")
    assert all(torch.equal(val[0, key]["image"], val[0]["image"]) for key in range(20))


def test_data_sets_in_memory_get_no_data_workers(digits, shapes, monkeypatch):
    started = []
    monkeypatch.setattr("data.loader.usable_cores", lambda: 8)
    monkeypatch.setattr("data.loader.DataLoader", lambda *args, **settings: started.append(settings) or iter([]))
    assert len(_take(TrainLoader(digits, 8, seed=1, num_workers=2), 2)) == 2
    assert not started
    assert not _take(TrainLoader(shapes, 8, seed=1, num_workers=2), 2) and started[0]["num_workers"] == 2


def test_no_more_data_workers_than_cores(shapes, monkeypatch):
    monkeypatch.setattr("data.loader.usable_cores", lambda: 1)
    started = []
    monkeypatch.setattr("data.loader.DataLoader", lambda *args, **settings: started.append(settings) or iter([]))
    _take(TrainLoader(shapes, 8, seed=1, num_workers=64), 1)
    assert started[0]["num_workers"] == 1


def test_index_out_of_range(digits):
    for index in (-1, len(digits)):
        with pytest.raises(IndexError, match="out of range for digits"):
            digits[index]
