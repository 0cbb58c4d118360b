"""SimVQ and ResidualSimVQ beside the installed vector-quantize-pytorch."""

import inspect

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat.vector_quantize_pytorch.residual_sim_vq import ResidualSimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.sim_vq import SimVQ

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer


def _mlp(dim):
    return nn.Sequential(nn.Linear(dim, 20), nn.ReLU(), nn.Linear(20, dim))


SIM = {
    "plain": ({}, (3, 10, 8)),
    "straight through": ({"rotation_trick": False}, (3, 10, 8)),
    "weights": ({"commitment_weight": 2.0, "input_to_quantize_commit_loss_weight": 0.7}, (3, 10, 8)),
    "image": ({"channel_first": True}, (2, 8, 4, 5)),
    "grid": ({}, (2, 4, 5, 8)),
    "single": ({}, (6, 8)),
    "lower": ({"frozen_codebook_dim": 4}, (3, 10, 8)),
    "transform": ({"codebook_transform": 1, "channel_first": True}, (2, 8, 4, 5)),
    "init": ({"init_fn": torch.sign}, (3, 10, 8)),
}


def _pair(ours, theirs, **options):
    if "codebook_transform" in options:
        pair = [kind(**{**options, "codebook_transform": _mlp(8)}) for kind in (ours, theirs)]
    else:
        pair = [kind(**options) for kind in (ours, theirs)]
    pair[0].load_state_dict(pair[1].state_dict(), strict=True)
    return pair


def _gradients(quantizer, x, out, loss, upstream):
    total = (out * upstream).sum() + loss.sum()
    return torch.autograd.grad(total, [x, *quantizer.parameters()])


@pytest.mark.parametrize("name", SIM)
@pytest.mark.parametrize("training", [True, False])
def test_sim(name, training):
    options, shape = SIM[name]
    pair = _pair(SimVQ, peer.SimVQ, dim=8, codebook_size=32, **options)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    (out, indices, loss), (their_out, their_indices, their_loss) = (one.train(training)(x) for one in pair)
    assert torch.equal(indices, their_indices)
    torch.testing.assert_close(out, their_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, their_loss, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(pair[0].indices_to_codes(indices), pair[1].indices_to_codes(indices))
    torch.testing.assert_close(pair[0].codebook, pair[1].codebook)
    found = _gradients(pair[0], x, out, loss, upstream)
    expected = _gradients(pair[1], x, their_out, their_loss, upstream)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


RESIDUAL = {
    "plain": ({}, (3, 10, 8), None),
    "image": ({"channel_first": True}, (2, 8, 4, 5), None),
    "straight through": ({"rotation_trick": False}, (3, 10, 8), None),
    "dropout": ({"quantize_dropout": True}, (3, 10, 8), 7),
    "multiple": ({"quantize_dropout": True, "quantize_dropout_multiple_of": 2}, (3, 10, 8), 1),
    "cutoff": (
        {"quantize_dropout": True, "quantize_dropout_cutoff_index": 2, "channel_first": True},
        (2, 8, 4, 5),
        2,
    ),
}


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("training", [True, False])
def test_residual(name, training):
    options, shape, seed = RESIDUAL[name]
    pair = _pair(ResidualSimVQ, peer.ResidualSimVQ, dim=8, codebook_size=32, num_quantizers=4, **options)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    found, expected = (
        one.train(training)(x, return_all_codes=True, rand_quantize_dropout_fixed_seed=seed) for one in pair
    )
    assert torch.equal(found[1], expected[1])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    mine, theirs = (
        torch.autograd.grad((out[0] * upstream).sum() + out[2].sum(), x, retain_graph=True)[0]
        for out in (found, expected)
    )
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pair[0].get_output_from_indices(found[1]), pair[1].get_output_from_indices(found[1]))
    torch.testing.assert_close(pair[0].codebooks, pair[1].codebooks)


def test_dropout_draws_the_same_levels():
    pair = _pair(ResidualSimVQ, peer.ResidualSimVQ, dim=8, codebook_size=16, num_quantizers=5, quantize_dropout=True)
    x = torch.randn(2, 6, 8)
    for seed in range(20):
        drawn = []
        for one in pair:
            torch.manual_seed(seed)
            drawn.append(one(x)[1])
        assert torch.equal(*drawn)


@pytest.mark.parametrize("ours", [SimVQ, ResidualSimVQ])
def test_signatures(ours):
    theirs = getattr(peer, ours.__name__)
    for method in ("__init__", "forward"):
        found, expected = (inspect.signature(getattr(kind, method)).parameters for kind in (ours, theirs))
        assert [(p.name, p.kind) for p in found.values()] == [(p.name, p.kind) for p in expected.values()]
        for name, parameter in expected.items():
            if name != "init_fn":
                assert found[name].default == parameter.default
