"""ResidualVQ and GroupedResidualVQ beside the installed vector-quantize-pytorch."""

import inspect

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer

STEPS = 3
SEQUENCE = (2, 12, 8)
# Where the original differs from itself, it is compared as far as it is right:
# - losses over all scores are differentiated with the code vectors of after the update (decay 1: there is none);
# - with affine_param the codes it returns are not those it adds up, and nothing is defined before the first step;
# - after a beam search in training only the first level is updated.
SETTINGS = {
    "plain": {},
    "straight through": {"rotation_trick": False},
    "two sizes": {"codebook_size": (16, 32), "num_quantizers": None},
    "one level": {"num_quantizers": 1},
    "projection": {"codebook_dim": 4},
    "shared": {"shared_codebook": True},
    "shared, projection": {"shared_codebook": True, "codebook_dim": 5, "rotation_trick": False},
    "cosine": {"use_cosine_sim": True},
    "cosine, shared": {"use_cosine_sim": True, "shared_codebook": True},
    "decay, weight": {"decay": 0.99, "commitment_weight": 0.25, "eps": 1e-3},
    "no commitment": {"commitment_weight": 0.0},
    "learnable": {"learnable_codebook": True, "ema_update": False},
    "learnable, shared": {"learnable_codebook": True, "ema_update": False, "shared_codebook": True},
    "orthogonal": {"orthogonal_reg_weight": 10.0},
    "diversity": {"codebook_diversity_loss_weight": 0.3, "codebook_diversity_temperature": 2.0, "decay": 1.0},
    "cross entropy": {"commitment_use_cross_entropy_loss": True, "decay": 1.0},
    "affine": {"affine_param": True},
    "sync update": {"learnable_codebook": True, "ema_update": False, "sync_update_v": 0.2},
    "dropout": {"quantize_dropout": True},
    "dropout, multiple": {"quantize_dropout": True, "quantize_dropout_multiple_of": 2, "num_quantizers": 5},
    "dropout, cutoff": {"quantize_dropout": True, "quantize_dropout_cutoff_index": 2, "shared_codebook": True},
    "gradient share": {"quant_grad_frac": 0.3},
    "gradient share, learnable": {"quant_grad_frac": 1.0, "learnable_codebook": True, "ema_update": False},
    "frozen": {"freeze_codebook_forward": True},
    "masked": {"masked": True},
    "masked, input kept": {"masked": True, "return_zeros_for_masked_padding": False},
    "masked, shared": {"masked": True, "shared_codebook": True},
    "implicit": {"implicit_neural_codebook": True},
    "implicit, network": {"implicit_neural_codebook": True, "mlp_kwargs": {"dim_hidden": 5, "depth": 2}},
    "implicit, share": {"implicit_neural_codebook": True, "quant_grad_frac": 1.0, "rotation_trick": False},
    "implicit, sizes": {"implicit_neural_codebook": True, "codebook_size": (16, 8, 12), "num_quantizers": None},
    "implicit, entropy": {"implicit_neural_codebook": True, "commitment_use_cross_entropy_loss": True},
    "beam": {"beam_size": 3, "one": True},
    "beam, weights": {"beam_size": 3, "one": True, "beam_score_quantizer_weights": [1.0, 0.5, 0.25]},
    "beam, cosine": {"beam_size": 4, "one": True, "use_cosine_sim": True},
    "beam, shared": {"beam_size": 2, "one": True, "shared_codebook": True},
    "beam, masked": {"beam_size": 3, "one": True, "masked": True},
    "beam, learnable": {"beam_size": 3, "one": True, "learnable_codebook": True, "ema_update": False},
}
TESTS_ONLY = ("masked", "one", "freeze_codebook_forward")


def _options(name):
    options = {"dim": 8, "codebook_size": 16, "num_quantizers": 3, **SETTINGS[name]}
    return {key: value for key, value in options.items() if key not in TESTS_ONLY}


def _pair(kind, **options):
    torch.manual_seed(0)
    theirs = getattr(peer, kind.__name__)(**options)
    ours = kind(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    return ours, theirs


def _inputs(name):
    shape = (1, *SEQUENCE[1:]) if SETTINGS[name].get("one") else SEQUENCE
    x, upstream = torch.randn(shape), torch.randn(shape)
    forward = {}
    if SETTINGS[name].get("masked"):
        forward["mask"] = torch.arange(shape[1]) < torch.tensor([[9], [5]])[: shape[0]]
    if SETTINGS[name].get("freeze_codebook_forward"):
        forward["freeze_codebook"] = True
    if SETTINGS[name].get("quantize_dropout"):
        forward["rand_quantize_dropout_fixed_seed"] = int(torch.randint(100, ()))
    return x.requires_grad_(), upstream, forward


@pytest.mark.parametrize("name", SETTINGS)
def test_training(name):
    """Outputs, indices, losses, gradients and state over some steps."""
    pair = _pair(ResidualVQ, **_options(name))
    for step in range(STEPS):
        torch.manual_seed(step)
        x, upstream, forward = _inputs(name)
        outs, grads = [], []
        for one in pair:
            torch.manual_seed(9)
            out = one(x, return_all_codes=True, **forward)
            parameters = [x, *one.parameters()]
            total = (out[0] * upstream).sum() + out[2].sum()
            grads.append(torch.autograd.grad(total, parameters, allow_unused=True))
            outs.append(out)
        assert torch.equal(outs[0][1], outs[1][1])
        num_same = 3 if "beam" in name or name == "affine" else 4
        for mine, theirs in zip(*(out[:num_same] for out in outs), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(*grads, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
        for key, value in pair[1].state_dict().items():
            if "beam" not in name or (key.startswith("layers.0") and "shared" not in name):
                torch.testing.assert_close(pair[0].state_dict()[key], value, atol=1e-5, rtol=1e-5, msg=key)
        pair[0].load_state_dict(pair[1].state_dict())


@pytest.mark.parametrize("name", [name for name in SETTINGS if "beam" not in name and name != "affine"])
def test_evaluation(name):
    ours, theirs = (one.eval() for one in _pair(ResidualVQ, **_options(name)))
    x, _, forward = _inputs(name)
    forward.pop("rand_quantize_dropout_fixed_seed", None)
    found, expected = (one(x, return_all_codes=True, **forward) for one in (ours, theirs))
    assert torch.equal(found[1], expected[1])
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    decoded = theirs.get_output_from_indices(expected[1])
    torch.testing.assert_close(ours.get_output_from_indices(found[1]), decoded, atol=1e-6, rtol=1e-6)
    assert type(ours.codebooks) is type(theirs.codebooks)
    for mine, other in zip(ours.codebooks, theirs.codebooks, strict=True):
        assert torch.equal(mine, other)


GROUPED = {
    "plain": {},
    "shared": {"shared_codebook": True},
    "dropout": {"quantize_dropout": True},
    "masked": {"masked": True},
    "cosine": {"use_cosine_sim": True, "codebook_dim": 3},
    "implicit": {"implicit_neural_codebook": True},
}


@pytest.mark.parametrize("name", GROUPED)
def test_groups(name):
    options = {key: value for key, value in GROUPED[name].items() if key not in TESTS_ONLY}
    pair = _pair(GroupedResidualVQ, dim=8, groups=2, codebook_size=16, num_quantizers=4, **options)
    mask = torch.arange(12) < torch.tensor([[9], [5]]) if GROUPED[name].get("masked") else None
    for step in range(STEPS):
        x, upstream = torch.randn(SEQUENCE, requires_grad=True), torch.randn(SEQUENCE)
        outs = []
        for one in pair:
            torch.manual_seed(step)
            outs.append(one(x, return_all_codes=True, mask=mask))
        assert torch.equal(outs[0][1], outs[1][1])
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
        grads = [torch.autograd.grad((out[0] * upstream).sum() + out[2].sum(), x)[0] for out in outs]
        torch.testing.assert_close(*grads, atol=5e-5, rtol=1e-3)
        for key, value in pair[1].state_dict().items():
            torch.testing.assert_close(pair[0].state_dict()[key], value, atol=1e-5, rtol=1e-5, msg=key)
    indices = torch.randint(16, (2, *SEQUENCE[:2], 4))
    for method in ("get_codes_from_indices", "get_output_from_indices"):
        found, expected = (getattr(one.eval(), method)(indices) for one in pair)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(pair[0].codebooks, pair[1].codebooks, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ResidualVQ, GroupedResidualVQ])
def test_dropout_draws_the_same_levels(kind):
    pair = _pair(kind, dim=8, codebook_size=16, num_quantizers=6, quantize_dropout=True)
    x = torch.randn(SEQUENCE)
    for seed in range(20):
        drawn = []
        for one in pair:
            torch.manual_seed(seed)
            drawn.append(one(x)[1] < 0)
        assert torch.equal(*drawn)


def test_diveq(monkeypatch):
    """Without the noise, which the original adds to the value too."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    for options in ({}, {"codebook_dim": 4}, {"shared_codebook": True}):
        pair = _pair(ResidualVQ, dim=8, codebook_size=16, num_quantizers=3, diveq=True, **options)
        x, upstream = torch.randn(SEQUENCE, requires_grad=True), torch.randn(SEQUENCE)
        outs = [one(x) for one in pair]
        assert torch.equal(outs[0][1], outs[1][1])
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-5)
        grads = [
            torch.autograd.grad((out[0] * upstream).sum(), [x, *one.parameters()])
            for out, one in zip(outs, pair, strict=True)
        ]
        torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [ResidualVQ, GroupedResidualVQ])
def test_signatures(kind):
    theirs = getattr(peer, kind.__name__)
    for method in ("__init__", "forward"):
        found, expected = (inspect.signature(getattr(one, method)).parameters for one in (kind, theirs))
        assert [(p.name, p.kind, p.default) for p in found.values()] == [
            (p.name, p.kind, p.default) for p in expected.values()
        ]
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public <= set(dir(kind))
