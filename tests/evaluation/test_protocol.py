from __future__ import annotations

import pytest
import torch

from evaluation.protocol import (
    balanced_conditions,
    check_uint8_images,
    from_uint8,
    metric_name,
    proportional_conditions,
    shard_indices,
    to_uint8,
    with_detail,
)


def test_every_uint8_value_survives_the_round_trip():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)
    assert from_uint8(values).aminmax() == (-1, 1)


def test_to_uint8_rounds_to_nearest_and_clamps():
    step = 2 / 255
    image = torch.tensor([-5.0, -1.0, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.51 * step, 1 - 0.49 * step, 1.0, 3.0])
    assert to_uint8(image).tolist() == [0, 0, 0, 1, 254, 255, 255, 255]


def test_to_uint8_leaves_its_input_alone_and_computes_in_float32():
    image = torch.linspace(-1, 1, 33, dtype=torch.bfloat16)
    before = image.clone()
    assert torch.equal(to_uint8(image), to_uint8(image.float()))
    assert torch.equal(image, before)
    single = torch.linspace(-1, 1, 33)
    before = single.clone()
    to_uint8(single)
    assert torch.equal(single, before)


def test_wrong_types_are_errors():
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        from_uint8(torch.zeros(2))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        check_uint8_images(torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"\(2, 5, 5, 3\)"):
        check_uint8_images(torch.zeros(2, 5, 5, 3, dtype=torch.uint8))


def test_grey_images_get_three_channels():
    grey = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(check_uint8_images(grey), grey.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("num_samples", [0, 1, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_shards_partition_the_samples(num_samples, world_size):
    shards = [shard_indices(num_samples, rank, world_size) for rank in range(world_size)]
    assert sorted(i for shard in shards for i in shard) == list(range(num_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("arguments", [(-1, 0, 1), (5, 2, 2), (5, -1, 2)])
def test_wrong_shards_are_errors(arguments):
    with pytest.raises(ValueError, match="must"):
        shard_indices(*arguments)


@pytest.mark.parametrize(("num_samples", "num_classes"), [(100, 10), (103, 10), (7, 10), (0, 3), (5, 1)])
def test_conditions_are_balanced_and_depend_on_the_index_alone(num_samples, num_classes):
    labels = balanced_conditions(num_samples, num_classes)
    sizes = torch.bincount(labels, minlength=num_classes)
    assert labels.shape == (num_samples,)
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(balanced_conditions(num_samples + 13, num_classes)[:num_samples], labels)


def test_wrong_conditions_are_errors():
    with pytest.raises(ValueError, match="num_classes"):
        balanced_conditions(5, 0)
    with pytest.raises(ValueError, match="num_samples"):
        balanced_conditions(-1, 5)


def test_metric_names_carry_the_protocol():
    assert metric_name("fid", "inception2048", "bilinear299", "train") == "fid_inception2048_bilinear299_vs_train"
    names = {metric_name("is", f, r, splits=s) for f in "ab" for r in "cd" for s in (5, 10)}
    assert len(names) == 8


@pytest.mark.parametrize("counts", [[6, 3, 1], [0, 5, 0, 5], [1], [1, 999], [7] * 10])
@pytest.mark.parametrize("num_samples", [0, 1, 10, 137])
def test_proportional_conditions_have_the_shares_of_the_counts_in_every_prefix(counts, num_samples):
    labels = proportional_conditions(num_samples, torch.tensor(counts))
    assert len(labels) == num_samples and labels.dtype == torch.int64
    for length in range(num_samples + 1):
        for label, count in enumerate(counts):
            drawn = int((labels[:length] == label).sum())
            assert abs(drawn - length * count / sum(counts)) <= 1 and (count or not drawn)
    assert torch.equal(proportional_conditions(num_samples + 13, torch.tensor(counts))[:num_samples], labels)


def test_equal_counts_give_every_class_in_turn():
    assert torch.equal(proportional_conditions(25, torch.tensor([4] * 10)), balanced_conditions(25, 10))
    for counts, num_samples in (([], 5), ([0, 0], 5), ([1, -1], 5), ([1], -1)):
        with pytest.raises(ValueError, match="class frequencies need|must not be negative"):
            proportional_conditions(num_samples, torch.tensor(counts))


def test_a_detail_stands_before_what_a_metric_compares_with():
    assert with_detail("fid_x_bilinear299_vs_train", "d") == "fid_x_bilinear299_d_vs_train"
    assert with_detail("is_x_splits10", "d") == "is_x_splits10_d"
