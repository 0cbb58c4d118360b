"""Cached references: read only for the very same images, network and protocol; any damage means measuring again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evaluation.references.reference_cache import cached_reference
from evaluation.statistics import Ranks, no_reduce
from tests.evaluation.image_files import random_images
from tests.evaluation.small_features import SmallFeatures


def cached(
    directory, image_NCHW, extractor, label_N=None, rank=0, world_size=1, batch_size=5, reduce=no_reduce, **settings
):
    def batches():
        for index_B in torch.arange(rank, len(image_NCHW), world_size).split(batch_size):
            label = {} if label_N is None else {"label": label_N[index_B]}
            yield {"image": image_NCHW[index_B], "index": index_B, **label}

    return cached_reference(
        directory,
        "x",
        batches,
        extractor,
        num_images=len(image_NCHW),
        ranks=Ranks(reduce, rank, world_size),
        **settings,
    )


def same(first, second):
    return torch.equal(first.moments.mean_F, second.moments.mean_F) and torch.equal(
        first.moments.covariance_FF, second.moments.covariance_FF
    )


def test_the_second_time_the_network_does_not_run(tmp_path):
    extractor, image_NCHW = SmallFeatures(), random_images(20)
    first = cached(tmp_path / "c", image_NCHW, extractor, source="a folder")
    assert extractor.seen == 20
    again = cached(tmp_path / "c", image_NCHW.flip(0), extractor, batch_size=3)
    assert extractor.seen == 20
    assert same(first, again)
    assert (again.digest, again.moments.num, again.source) == (first.digest, 20, "a folder")
    cached(None, image_NCHW, extractor)
    assert extractor.seen == 40


@pytest.mark.parametrize("change", ["value", "fewer", "weights", "resize", "features", "spatial"])
def test_nothing_stale_is_read(tmp_path, change):
    image_NCHW, settings = random_images(20), {}
    cached(tmp_path, image_NCHW, SmallFeatures())
    extractor = SmallFeatures(seed=1) if change == "weights" else SmallFeatures()
    if change == "value":
        image_NCHW = image_NCHW.clone()
        image_NCHW[19, 2, 11, 11] ^= 1
    elif change == "fewer":
        image_NCHW = image_NCHW[:-1]
    elif change == "resize":
        extractor.resize = "mean5"
    elif change in ("features", "spatial"):
        settings = {"keep_features": True} if change == "features" else {"spatial": True}
    reference = cached(tmp_path, image_NCHW, extractor, **settings)
    assert extractor.seen == len(image_NCHW)
    assert len(list(tmp_path.iterdir())) == 2
    assert same(reference, cached(None, image_NCHW, SmallFeatures(seed=int(change == "weights"))))
    assert (reference.features_NF is not None) == (change == "features")
    assert (reference.spatial is not None) == (change == "spatial")


def test_kept_features_know_their_order_and_labels(tmp_path):
    extractor, image_NCHW, label_N = SmallFeatures(), random_images(20), torch.arange(20) % 4
    cached(tmp_path, image_NCHW, extractor, label_N, keep_features=True)
    for images, labels in ((image_NCHW.flip(0), label_N), (image_NCHW, label_N.flip(0)), (image_NCHW, None)):
        before = extractor.seen
        reference = cached(tmp_path, images, extractor, labels, keep_features=True)
        assert extractor.seen == before + 20
        assert torch.equal(reference.features_NF, SmallFeatures()(images)[0])
        assert reference.label_N is None if labels is None else torch.equal(reference.label_N, labels)
    again = cached(tmp_path, image_NCHW, extractor, label_N, keep_features=True)
    assert torch.equal(again.label_N, label_N)
    assert extractor.seen == 80


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_damaged_file_is_measured_again(tmp_path, damage):
    image_NCHW = random_images(20)
    first = cached(tmp_path, image_NCHW, SmallFeatures())
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-300], "empty": b"", "foreign": b"PK not a zip" * 50}[damage])
    extractor = SmallFeatures()
    with pytest.warns(UserWarning, match="ignoring the cached reference"):
        again = cached(tmp_path, image_NCHW, extractor)
    assert extractor.seen == 20
    assert same(first, again)
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_or_forbidden_disk_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="the reference is not kept"):
        reference = cached(tmp_path / "file", random_images(20), SmallFeatures())
    assert reference.moments.num == 20


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_one_file_with_a_single_process(tmp_path, run_ranks, world_size):
    image_NCHW, label_N = random_images(20), torch.arange(20) % 4
    first = cached(tmp_path, image_NCHW, SmallFeatures(), label_N, keep_features=True)

    def of_rank(rank, reduce):
        extractor = SmallFeatures()
        reference = cached(
            tmp_path, image_NCHW, extractor, label_N, rank, world_size, keep_features=True, reduce=reduce
        )
        fresh = cached(
            tmp_path / "new", image_NCHW, extractor, label_N, rank, world_size, keep_features=True, reduce=reduce
        )
        return extractor.seen, reference, fresh

    results = run_ranks(world_size, of_rank)
    assert sum(seen for seen, _, _ in results) == 20  # the new folder's
    for _, reference, fresh in results:
        assert same(first, reference)
        assert torch.equal(first.features_NF, fresh.features_NF)
        torch.testing.assert_close(fresh.moments.covariance_FF, first.moments.covariance_FF, rtol=1e-12, atol=1e-14)
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_a_rank_that_does_not_see_the_file_makes_all_measure(tmp_path, run_ranks):
    """Else it would wait for sums that the others never take part in."""
    image_NCHW = random_images(20)
    cached(tmp_path / "0", image_NCHW, SmallFeatures())

    def of_rank(rank, reduce):
        extractor = SmallFeatures()
        cached(tmp_path / str(rank), image_NCHW, extractor, None, rank, 2, reduce=reduce)
        return extractor.seen

    assert run_ranks(2, of_rank) == [10, 10]


def test_a_reference_of_other_images_is_not_taken_for_these(tmp_path):
    """Copied under the name that these have, it fits the network and is sound."""
    image_NCHW, extractor = random_images(20), SmallFeatures()
    first = cached(tmp_path / "a", image_NCHW, extractor)
    cached(tmp_path / "b", image_NCHW.flip(2), extractor)
    (mine,), (other,) = (tmp_path / "a").iterdir(), (tmp_path / "b").iterdir()
    sound = mine.read_bytes()
    mine.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match="it is of other images"):
        again = cached(tmp_path / "a", image_NCHW, extractor)
    assert same(first, again)
    assert mine.read_bytes() == sound


def _described(network):
    return np.asarray(json.dumps({"format": "rq-reference-1", "network": network}))


DAMAGES = {
    "description of another kind": {"meta": np.asarray("[1, 2]")},
    "nested description": {"meta": np.asarray("[" * 100_000)},
    "network is a list": {"meta": _described([1])},
    "network of numbers": {"meta": _described({"fingerprint": 1, "label": 2, "resize": 3})},
    "count of another shape": {"num_images": np.zeros(3, int)},
    "count of NaN": {"num_images": np.asarray(np.nan)},
    "negative count": {"num_images": np.asarray(-20)},
    "features of NaN": {"features": np.full((20, 6), np.nan, np.float32)},
    "whole features": {"features": np.zeros((20, 6), np.int64)},
    "labels that are no numbers": {"labels": np.full(20, 0.5)},
    "moments of NaN": {"mu": np.full(6, np.nan)},
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
def test_a_file_whose_content_cannot_be_is_measured_again(tmp_path, change):
    image_NCHW, label_N = random_images(20), torch.arange(20) % 4
    first = cached(tmp_path, image_NCHW, SmallFeatures(), label_N, keep_features=True)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, **change})
    with pytest.warns(UserWarning, match="ignoring the cached reference") as caught:
        again = cached(tmp_path, image_NCHW, SmallFeatures(), label_N, keep_features=True)
    assert all("\n" not in str(warning.message) for warning in caught)
    assert same(first, again)
    assert path.read_bytes() == sound
