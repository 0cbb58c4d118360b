"""The laws of the vector quantizer, over every combination of its settings that hypothesis finds."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqstack.quantizers import VectorOptions
from rqstack.quantizers.arithmetic.code_losses import VectorLosses
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.entry_use import RestartRule
from rqstack.quantizers.methods.vector import VectorQuantizer
from tests.rqstack.quantizers.quantizer_methods import made

DIM, NUM_CODES = 8, 12
RESTARTS = [None, RestartRule(), RestartRule(0.5, relative=True, grace=1), RestartRule(unused_for=1)]
AFFINES = [None, AffineRule("running", batch_decay=0.5)]
SGD = functools.partial(torch.optim.SGD, lr=0.1)
SHAPES = [(5,), (2, 7), (2, 3, 4), (1, 2, 3, 2)]
quick = settings(max_examples=40, deadline=None)


@st.composite
def quantizers(draw, estimators=("straight_through", "rotation", "directional", "gumbel"), sampled=True):
    """A quantizer in train or eval mode, with random code vectors."""
    codebook = draw(st.sampled_from(["ema", "learned", "both"]))
    learned = codebook != "ema"
    learning = draw(st.sampled_from([None, "synchronised", SGD])) if codebook == "learned" else None
    estimator = draw(st.sampled_from(estimators))
    may_sample = sampled and (estimator == "gumbel" or draw(st.booleans()))
    losses = VectorLosses(
        commitment=draw(st.sampled_from([0.0, 0.25])),
        cross_entropy=draw(st.sampled_from([0.0, 0.5])),
        diversity=draw(st.sampled_from([0.0, 0.1])),
        orthogonal=draw(st.sampled_from([0.0, 2.0])) if learned and learning is not SGD else 0.0,
        orthogonal_active=draw(st.booleans()),
        orthogonal_max=draw(st.sampled_from([None, 4])) if sampled else None,
    )
    lengths = draw(st.sampled_from([None, "one", "kept"]))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    quantizer = VectorQuantizer(
        DIM,
        NUM_CODES,
        VectorOptions(
            codebook_dim=draw(st.sampled_from([None, 3])),
            codebook=codebook,
            sync_nu=0.5 if learning == "synchronised" else 0.0,
            affine=draw(st.sampled_from(AFFINES + [AffineRule(groups=3, lr_scale=0.5)] * (codebook == "learned"))),
            restart=draw(st.sampled_from(RESTARTS)),
            kmeans_init=draw(st.booleans()),
            estimator=estimator,
            sample_temp=0.5 if may_sample else None,
            losses=losses,
            distance="cosine" if lengths else "euclidean",
        ),
        heads=draw(st.sampled_from([1, 2])),
        separate_codebooks=draw(st.booleans()),
        keep_length=lengths == "kept",
        in_place_optimizer=SGD if learning is SGD else None,
    )
    for book in quantizer.codebooks:
        book.assign(torch.randn(NUM_CODES, quantizer.codebook_dim), torch.ones(NUM_CODES))
    for affine in quantizer.affines:
        for parameter in affine.parameters():
            parameter.data.normal_()
        if affine_is_running(affine):
            affine.observe(3 + torch.randn(50, quantizer.codebook_dim), quantizer.codebooks[0].weight.detach())
    return quantizer.train(draw(st.booleans()))


def affine_is_running(affine):
    return not list(affine.parameters())


def decoded(quantizer, codes, z):
    return quantizer.decode(codes, quantizer.lengths(z) if quantizer.keep_length else None)


def state(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


@quick
@given(quantizers(), st.sampled_from(SHAPES), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_output_is_what_the_codes_decode_to(quantizer, shape, dtype):
    z = torch.randn(*shape, DIM).to(getattr(torch, dtype)).requires_grad_()
    out = quantizer(z)
    assert out.quantized.dtype == z.dtype
    assert out.quantized.shape == z.shape
    assert torch.equal(out.quantized, decoded(quantizer, out.codes, z).to(z.dtype))
    assert out.codes.shape == (*shape, quantizer.heads)
    assert out.codes.dtype == torch.int64
    assert ((out.codes >= 0) & (out.codes < NUM_CODES)).all()
    assert out.loss.dtype == torch.float32
    assert out.loss.shape == ()
    torch.testing.assert_close(sum(out.terms.values(), torch.zeros(())), out.loss)
    assert quantizer.head_vectors(out.codes).shape == (*out.codes.shape, quantizer.codebook_dim)
    parts = quantizer.embed_with_depth(out.codes)
    assert parts.shape == (*out.codes.shape, DIM)
    torch.testing.assert_close(parts.sum(-2), quantizer.decode(out.codes))
    (out.quantized.float().square().sum() + out.loss).backward()
    assert z.grad.isfinite().all()
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def step(quantizer, z, mask=None):
    """Output and gradients of one step whose upstream gradient is that of the squared output where it counts."""
    out = quantizer(z, mask)
    kept = out.quantized if mask is None else out.quantized[mask]
    quantizer.zero_grad()
    loss = kept.square().sum() + out.loss
    if loss.requires_grad:
        loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in quantizer.parameters()]
    quantizer.update_codebook()
    return out, gradients


@quick
@given(quantizers(sampled=False, estimators=("straight_through", "rotation")), st.data())
def test_a_masked_padded_input_counts_as_the_unpadded_one(quantizer, data):
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any))
    padding = data.draw(st.sampled_from([0.0, 1e3, float("nan"), float("inf")]))
    rows = [torch.randn(length, DIM) for length in lengths]
    padded = torch.full((len(lengths), 6, DIM), padding)
    mask = torch.zeros(len(lengths), 6, dtype=torch.bool)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
        mask[index, : len(row)] = True
    before = state(quantizer)
    expected, expected_gradients = step(quantizer, torch.cat(rows))
    expected_state = state(quantizer)
    quantizer.load_state_dict(before)
    out, gradients = step(quantizer, padded, mask)
    assert torch.equal(out.codes[mask], expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    for name, value in state(quantizer).items():
        torch.testing.assert_close(value, expected_state[name], msg=name)


@quick
@given(quantizers(sampled=False, estimators=("straight_through", "rotation")))
def test_input_precision_and_autocast_change_nothing(quantizer):
    z = torch.randn(3, 5, DIM).bfloat16()
    quantizer.eval()
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [quantizer(z), quantizer(z.float())]
        assert torch.equal(decoded(quantizer, expected.codes, z), expected.quantized)
    for out in outs:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.loss, expected.loss)


@quick
@given(quantizers(sampled=False, estimators=("straight_through",)))
def test_codes_are_the_nearest_code_vectors(quantizer):
    z = torch.randn(9, DIM)
    codes = quantizer.eval()(z).codes
    x_NHE = quantizer._to_heads(z)
    for head in range(quantizer.heads):
        assert torch.equal(codes[:, head], torch.cdist(x_NHE[:, head], quantizer.codebook(head)).argmin(1))


@quick
@given(quantizers())
def test_evaluation_and_frozen_training_change_no_state(quantizer):
    before = state(quantizer)
    quantizer.eval()(torch.randn(20, DIM))
    quantizer.update_codebook()
    quantizer.train().freeze_codebook()
    out = quantizer(torch.randn(20, DIM))
    assert "codebook" not in out.terms
    quantizer.update_codebook()
    for name, value in state(quantizer).items():
        assert torch.equal(value, before[name]), name


@quick
@given(quantizers())
def test_one_bad_vector_does_not_poison_the_codebook(quantizer):
    z = torch.randn(20, DIM)
    z[3, 2] = float("nan")
    quantizer.train()(z)
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"distance": "manhattan"}, "not one of euclidean, cosine"),
        ({"codebook": "none"}, "not one of ema, learned"),
        ({"estimator": "reinforce"}, "not one of straight_through"),
        ({"heads": 3}, "cannot be cut into 3 heads"),
        ({"estimator": "gumbel"}, "needs sample_temp"),
        ({"sample_temp": 0.0}, "temp must be positive"),
        ({"losses": VectorLosses(orthogonal=1.0)}, "needs codebook 'learned' or 'both'"),
        ({"sync_nu": 0.5}, "needs codebook 'learned' or 'both'"),
        ({"in_place_optimizer": SGD, "codebook": "both"}, "needs codebook 'learned', not 'both'"),
        (
            {"in_place_optimizer": SGD, "codebook": "learned", "losses": VectorLosses(orthogonal=1.0)},
            "inplace takes away",
        ),
        ({"in_place_optimizer": SGD, "codebook": "learned", "sync_nu": 1.0}, "choose one of them"),
        ({"codebook": "learned", "sync_nu": -1.0}, "sync_nu must be a number of at least 0"),
        ({"codebook": "learned", "inplace_lr": 0.0}, "inplace_lr must be positive"),
        ({"affine": AffineRule()}, "choose kind 'running'"),
        ({"affine": AffineRule(groups=5), "codebook": "learned"}, "do not split into 5 affine groups"),
        ({"keep_length": True}, "needs distance 'cosine'"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        made(VectorQuantizer, VectorOptions, DIM, NUM_CODES, **wrong)


def test_codes_of_another_depth_are_refused():
    with pytest.raises(ValueError, match="the quantizer has 2"):
        VectorQuantizer(DIM, NUM_CODES, heads=2).decode(torch.zeros(3, 3, dtype=torch.int64))
