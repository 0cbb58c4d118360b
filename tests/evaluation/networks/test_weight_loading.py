"""What can be a network's weights, and what `load_state_dict` would have cast or taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from evaluation.networks.weight_loading import load_exactly


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))


WRONG = {
    "whole": ("0.weight", lambda tensor: tensor.long(), "whole numbers"),
    "bool": ("0.weight", lambda tensor: tensor > 0, "yes and no"),
    "complex": ("0.weight", lambda tensor: tensor.to(torch.complex64), "complex numbers"),
    "sparse": ("0.bias", lambda tensor: tensor.to_sparse(), "sparse"),
    "meta": ("0.bias", lambda tensor: tensor.to("meta"), "without numbers"),
    "NaN": ("0.bias", lambda tensor: tensor * float("nan"), "not finite"),
    "infinite": ("1.weight", lambda tensor: tensor / 0, "not finite"),
    "negative variance": ("1.running_var", lambda tensor: -tensor, "negative variances"),
    "float count": ("1.num_batches_tracked", lambda tensor: tensor.float(), "holds floats"),
    "no tensor": ("0.bias", lambda tensor: [0.0, 0.0], "is no tensor"),
}


@pytest.mark.parametrize(("name", "change", "match"), WRONG.values(), ids=WRONG)
def test_refused_by_name(name, change, match):
    state, target = network().state_dict(), network()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=match) as refused:
        load_exactly(target, state | {name: change(state[name])})
    assert name in str(refused.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_half_precision_is_taken():
    state, target = network().half().state_dict(), network()
    load_exactly(target, state)
    assert torch.equal(target[0].weight, state["0.weight"].float())
