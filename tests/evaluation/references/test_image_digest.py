from __future__ import annotations

import pytest
import torch

from evaluation.references.image_digest import ImageDigest


def digest_of(image_NCHW, index_N=None, label_N=None, batch_size=7, **settings):
    digest = ImageDigest(**settings)
    index_N = torch.arange(len(image_NCHW)) if index_N is None else index_N
    for rows in torch.arange(len(image_NCHW)).split(batch_size):
        digest.update(image_NCHW[rows], index_N[rows], None if label_N is None else label_N[rows])
    return digest.hexdigest()


@pytest.fixture
def image_NCHW():
    return torch.randint(256, (20, 3, 5, 4), dtype=torch.uint8)


def test_order_and_batch_size_do_not_matter(image_NCHW):
    expected = digest_of(image_NCHW)
    assert digest_of(image_NCHW.flip(0), batch_size=3) == expected
    assert digest_of(image_NCHW.contiguous(memory_format=torch.channels_last)) == expected
    assert len(expected) == 64


@pytest.mark.parametrize("change", ["value", "twice", "fewer", "shape"])
def test_any_change_of_the_images_matters(image_NCHW, change):
    other = image_NCHW.clone()
    if change == "value":
        other[13, 2, 4, 3] ^= 1
    elif change == "twice":
        other[3] = other[4]
    elif change == "fewer":
        other = other[:-1]
    else:
        other = image_NCHW.permute(0, 2, 3, 1).reshape(20, 4, 5, 3).permute(0, 3, 1, 2)
    assert digest_of(other) != digest_of(image_NCHW)


def test_order_and_labels_matter_when_asked_for(image_NCHW):
    label_N = torch.arange(20) % 3
    ordered = digest_of(image_NCHW, ordered=True)
    assert ordered != digest_of(image_NCHW)
    assert ordered != digest_of(image_NCHW.flip(0), ordered=True)
    assert ordered == digest_of(image_NCHW.flip(0), torch.arange(20).flip(0), ordered=True)
    labelled = digest_of(image_NCHW, label_N=label_N, labelled=True)
    assert labelled not in (
        digest_of(image_NCHW, label_N=label_N.flip(0), labelled=True),
        digest_of(image_NCHW, labelled=True),
    )
    assert digest_of(image_NCHW, label_N=label_N) == digest_of(image_NCHW)


def test_a_grey_image_is_the_colour_image_it_stands_for(image_NCHW):
    assert digest_of(image_NCHW[:, :1]) == digest_of(image_NCHW[:, :1].repeat(1, 3, 1, 1))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_add_up(image_NCHW, run_ranks, world_size):
    def of_rank(rank, reduce):
        mine = torch.arange(rank, 20, world_size)
        digest = ImageDigest(ordered=True)
        digest.update(image_NCHW[mine], mine)
        digest.all_reduce(reduce)
        return digest.hexdigest(), digest.count

    assert set(run_ranks(world_size, of_rank)) == {(digest_of(image_NCHW, ordered=True), 20)}


def test_a_rank_without_images(image_NCHW, run_ranks):
    def of_rank(rank, reduce):
        digest = ImageDigest()
        if rank == 0:
            digest.update(image_NCHW)
        digest.all_reduce(reduce)
        return digest.hexdigest()

    assert set(run_ranks(2, of_rank)) == {digest_of(image_NCHW)}
