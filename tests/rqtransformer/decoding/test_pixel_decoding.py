"""Code maps to pixels within a memory budget."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from rqtransformer.decoding.pixel_decoding import SAFETY, decode_in_batches


class Decoder:
    """Stands in for a stage-1 model; notes the batch sizes it is asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def decode_code(self, codes_BHWD: Tensor) -> Tensor:
        self.sizes.append(len(codes_BHWD))
        return codes_BHWD.float().sum(-1, keepdim=True).permute(0, 3, 1, 2) * 2


CODES = torch.arange(10 * 2 * 2 * 3).view(10, 2, 2, 3)
# the product of one image reads and writes 4 fp32 numbers each; the conversion reads 12 int64 and writes 12 fp32
LARGEST = 12 * 8 + 12 * 4


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [(1, [1] * 10), (SAFETY * LARGEST * 4, [4, 4, 2]), (SAFETY * LARGEST * 5 - 1, [4, 4, 2]), (2**30, [10])],
)
def test_batches_fit_the_budget(budget, sizes):
    decoder = Decoder()
    parts = list(decode_in_batches(decoder, CODES, memory_budget=budget))
    assert decoder.sizes == [1, *sizes]
    assert torch.equal(torch.cat(parts), Decoder().decode_code(CODES))


def test_an_image_is_measured_once_per_shape_and_type():
    decoder = Decoder()
    for _ in range(2):
        list(decode_in_batches(decoder, CODES))
    assert decoder.sizes == [1, 10, 10]
    list(decode_in_batches(decoder, CODES[:3, :1]))
    with torch.autocast("cpu", torch.bfloat16):
        list(decode_in_batches(decoder, CODES[:3]))
    assert decoder.sizes[3:] == [1, 3, 1, 3]
    list(decode_in_batches(Decoder(), CODES))
    gone = weakref.ref(decoder)
    del decoder
    gc.collect()
    assert gone() is None


def test_a_batch_size_wins_over_the_budget():
    decoder = Decoder()
    assert torch.cat(list(decode_in_batches(decoder, CODES, batch_size=4))).shape == (10, 1, 2, 2)
    assert decoder.sizes == [4, 4, 2]
    assert list(decode_in_batches(decoder, CODES[:0])) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"memory_budget": 0}, "memory_budget must be a whole number of at least 1, got 0"),
    ],
)
def test_sizes_below_one_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_in_batches(Decoder(), CODES, **arguments)
