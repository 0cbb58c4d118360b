"""Nested states come back as they were: values, types, sharing and memory layout."""

from __future__ import annotations

import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.checkpoints.state_tree import decode, encode


def round_trip(state):
    tree, tensors = encode(state)
    return decode(json.loads(json.dumps(tree)), tensors)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.sampled_from(["$tensor", "$tuple", "$dict", "$bytes", "$"])
STATES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None)
@given(STATES)
def test_any_plain_state_is_reproduced(state):
    result = round_trip(state)
    assert result == state
    assert repr(result) == repr(state), "types too: True is not 1, a tuple is no list"


def test_infinite_numbers_survive():
    nan, infinite = round_trip([math.nan, -math.inf])
    assert math.isnan(nan)
    assert infinite == -math.inf


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_keep_dtype_and_value(dtype):
    tensor = torch.tensor([[0, 1, 2], [3, 4, 5]]).to(dtype)
    result = round_trip({"a": [tensor, (tensor[0, 0],)]})
    assert torch.equal(result["a"][0], tensor)
    assert result["a"][0].dtype == dtype
    assert result["a"][1][0].shape == ()


def test_a_state_may_be_one_tensor():
    assert round_trip(torch.tensor(3)).item() == 3


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(12.0).view(3, 4).t(),
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        torch.zeros(0, 3),
        torch.arange(4.0).view(1, 4, 1, 1).to(memory_format=torch.channels_last),
    ],
)
def test_dense_layouts_are_kept(tensor):
    result = round_trip([tensor])[0]
    assert torch.equal(result, tensor)
    assert result.stride() == tensor.stride() or tensor.is_contiguous()


def test_views_with_gaps_become_dense():
    tensor = torch.arange(20.0).view(4, 5)[:, ::2]
    result = round_trip([tensor])[0]
    assert torch.equal(result, tensor)
    assert result.is_contiguous()


def test_a_shared_tensor_is_kept_once_and_stays_shared():
    tensor = torch.arange(6.0)
    state = {"a": tensor, "b": {"c": tensor}, "view": tensor.view(2, 3), "empty": [torch.zeros(0), torch.zeros(0)]}
    tree, tensors = encode(state)
    assert len(tensors) == 4
    result = decode(tree, tensors)
    assert result["a"] is result["b"]["c"]
    assert result["view"].data_ptr() != result["a"].data_ptr()
    assert result["empty"][0] is not result["empty"][1]


def test_nothing_kept_shares_memory_with_the_live_state():
    parameter = torch.nn.Parameter(torch.ones(3))
    _, tensors = encode({"p": parameter})
    with torch.no_grad():
        parameter.zero_()
    assert tensors["p"].tolist() == [1, 1, 1]
    assert not tensors["p"].requires_grad


def test_names_that_would_collide_are_kept_apart():
    state = {"a": {"b": torch.tensor(1)}, "a.b": torch.tensor(2), 0: torch.tensor(3), "0": torch.tensor(4)}
    result = round_trip(state)
    assert (result["a"]["b"].item(), result["a.b"].item(), result[0].item(), result["0"].item()) == (1, 2, 3, 4)


def test_numpy_numbers_and_ordered_dicts_become_plain():
    result = round_trip(OrderedDict(a=np.float64(0.5), b=np.int64(3)))
    assert result == {"a": 0.5, "b": 3}
    assert [type(value) for value in result.values()] == [float, int]


def test_what_needs_pickle_is_refused_with_its_place():
    with pytest.raises(TypeError, match=r"'a\.1\.x' is a set"):
        encode({"a": [0, {"x": {1, 2}}]})
