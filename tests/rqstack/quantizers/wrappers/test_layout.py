"""Layouts: every shape gives the codes of its channels-last copy, and comes back as it was."""

import pytest
import torch

from rqstack.quantizers import FiniteScalarOptions
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer
from rqstack.quantizers.wrappers.layout import InLayout, layout_of, mask_from_lengths

C = 6
CASES = [
    ("channels_last", (3, C), -1),
    ("channels_last", (3, 5, C), -1),
    ("channels_last", (2, 4, 5, C), -1),
    ("channels_first", (3, C, 5), 1),
    ("channels_first", (2, C, 4, 5), 1),
    ("channels_first", (2, C, 3, 4, 5), 1),
    ("auto", (2, C, 4, 5), 1),
    ("auto", (2, 4, C), -1),
    ("auto", (2, C, C), -1),
    ("auto", (3, C), -1),
    (0, (C, 3, 5), 0),
    (2, (2, 3, C, 5), 2),
    (-2, (2, 3, C, 5), 2),
    (-1, (C,), 0),
]


@pytest.mark.parametrize(("layout", "shape", "dim"), CASES)
@pytest.mark.parametrize(
    "make", [lambda: FiniteScalarQuantizer(C, FiniteScalarOptions([5] * C)), lambda: LookupFreeQuantizer(C, 64)]
)
def test_layouts(layout, shape, dim, make):
    quantizer = make()
    wrapped = InLayout(quantizer, C, layout)
    x = torch.randn(shape, requires_grad=True)
    expected = quantizer(x.movedim(dim, -1))
    out = wrapped(x)
    assert out.quantized.shape == x.shape
    assert torch.equal(out.quantized.movedim(dim, -1), expected.quantized)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(wrapped.decode(out.codes, dim), out.quantized)
    if layout != "auto":
        assert torch.equal(wrapped.decode(out.codes), out.quantized)
    out.quantized.sum().backward()
    assert x.grad.shape == x.shape


def test_masks_from_lengths():
    mask = mask_from_lengths(torch.tensor([0, 2, 4]), 4)
    assert mask.int().tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    quantizer = InLayout(LookupFreeQuantizer(C, 64), C, "channels_first")
    x = torch.randn(3, C, 4)
    rows = torch.cat([x[1, :, :2].T, x[2].T])
    torch.testing.assert_close(quantizer(x, mask).loss, quantizer.quantizer(rows).loss)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        ("first", (2, C), "layout 'first' is not one of auto, channels_last, channels_first"),
        ("channels_first", (2, 5, C), f"has not the {C} channels"),
        (4, (2, 5, C), "names dim 4"),
        ("auto", (C,), "need a batch dim"),
    ],
)
def test_wrong_layouts(layout, shape, message):
    with pytest.raises(ValueError, match=message):
        layout_of(torch.zeros(shape), layout, C)


def test_auto_cannot_decode_and_unknown_names_fail_at_construction():
    with pytest.raises(ValueError, match="codes do not tell their layout"):
        InLayout(LookupFreeQuantizer(C, 64), C).decode(torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="layout 'bcn' is not one of"):
        InLayout(LookupFreeQuantizer(C, 64), C, "bcn")
