"""The residual vector quantizer: laws over its settings, closed forms, dropout, sharing, beam."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rqstack.quantizers import (
    Grouped,
    InLayout,
    NeuralResidualOptions,
    NeuralResidualQuantizer,
    ResidualVectorOptions,
    ResidualVectorQuantizer,
    RestartRule,
    VectorLosses,
    VectorOptions,
    VectorQuantizer,
    codebook_warmup,
)
from tests.rqstack.quantizers.quantizer_methods import made

DIM = 6
quick = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = [(5,), (2, 4), (2, 2, 3)]


@st.composite
def quantizers(draw, random=True):
    """Any residual vector quantizer, with code vectors of some spread. random: may draw codes or directions, and start
    from few vectors, whose residuals vanish."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    beam = {"beam_width": draw(st.sampled_from([1, 3])), "eval_beam_width": draw(st.sampled_from([None, 1, 5]))}
    common = {
        "codebook_dim": draw(st.sampled_from([None, 4])),
        "loss_weights": draw(st.sampled_from([None, [1.0, 0.5, 2.0]])),
        "quantize_dropout": random and draw(st.booleans()),
        **beam,
    }
    sample_temp = draw(st.sampled_from([None, 0.5])) if random else None
    if draw(st.integers(0, 3)) == 0:
        networks = NeuralResidualOptions(hidden=5, depth=2, **common)
        quantizer = NeuralResidualQuantizer(DIM, [9, 12, 7], options=networks, sample_temp=sample_temp)
        for parameter in quantizer.transforms.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    else:
        shared = draw(st.booleans())
        codebook = draw(st.sampled_from(["ema", "learned"]))
        gumbel = sample_temp is not None and draw(st.booleans())
        directional = random and draw(st.booleans())
        options = {
            "distance": draw(st.sampled_from(["euclidean", "cosine"])),
            "codebook": codebook,
            "restart": draw(st.sampled_from([None, RestartRule(0.5, relative=True)])),
            "kmeans_init": random and draw(st.booleans()),
            "sample_temp": sample_temp,
            "losses": VectorLosses(
                commitment=0.25,
                cross_entropy=draw(st.sampled_from([0.0, 0.5])),
                diversity=draw(st.sampled_from([0.0, 0.1])),
                orthogonal=draw(st.sampled_from([0.0, 2.0])) if codebook == "learned" else 0.0,
            ),
        }
        estimator = "directional" if directional else draw(st.sampled_from(["straight_through", "rotation"]))
        estimator = "gumbel" if gumbel else estimator
        options = ResidualVectorOptions(estimator=estimator, **options, **common)
        quantizer = ResidualVectorQuantizer(DIM, 9 if shared else [9, 12, 7], 3, options, shared=shared)
    for level in quantizer.levels:
        level.codebooks[0].assign(torch.randn(level.num_codes[0], level.dim), torch.ones(level.num_codes[0]))
    return quantizer.train(draw(st.booleans()))


def state(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


@quick
@given(quantizers(), st.sampled_from(SHAPES), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_output_is_what_the_codes_decode_to(quantizer, shape, dtype):
    z = torch.randn(*shape, DIM).to(getattr(torch, dtype)).requires_grad_()
    out = quantizer(z)
    assert out.quantized.dtype == z.dtype
    assert torch.equal(out.quantized, quantizer.decode(out.codes).to(z.dtype))
    assert out.codes.shape == (*shape, 3)
    assert out.codes.dtype == torch.int64
    lowest = -1 if quantizer.training and quantizer.options.quantize_dropout else 0
    assert (out.codes >= lowest).all()
    assert (out.codes < torch.tensor(quantizer.num_codes)).all()
    assert out.loss.dtype == torch.float32
    assert out.loss.shape == ()
    torch.testing.assert_close(sum(out.terms.values(), torch.zeros(())), out.loss)
    parts = quantizer.embed_with_depth(out.codes)
    torch.testing.assert_close(parts.sum(-2), quantizer.decode(out.codes), atol=1e-5, rtol=1e-5)
    (out.quantized.float().square().sum() + out.loss).backward()
    assert z.grad.isfinite().all()
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@quick
@given(quantizers(random=False), st.data())
def test_a_masked_padded_input_counts_as_the_unpadded_one(quantizer, data):
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any))
    padding = data.draw(st.sampled_from([0.0, 1e3, float("nan")]))
    rows = [torch.randn(length, DIM) for length in lengths]
    padded = torch.full((len(lengths), 6, DIM), padding)
    mask = torch.zeros(len(lengths), 6, dtype=torch.bool)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
        mask[index, : len(row)] = True
    other = copy.deepcopy(quantizer)
    expected, out = quantizer(torch.cat(rows)), other(padded, mask)
    quantizer.update_codebook()
    other.update_codebook()
    assert torch.equal(out.codes[mask], expected.codes)
    torch.testing.assert_close(out.loss, expected.loss)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, quantizer.state_dict()[name], msg=name)


@quick
@given(quantizers(random=False))
def test_input_precision_and_autocast_change_nothing(quantizer):
    z = torch.randn(3, 5, DIM).bfloat16()
    quantizer.eval()
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [quantizer(z), quantizer(z.float())]
        assert torch.equal(quantizer.decode(expected.codes), expected.quantized)
    for out in outs:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.loss, expected.loss)


@quick
@given(quantizers(random=False))
def test_targets_and_soft_codes_follow_the_codes_of_the_forward(quantizer):
    z = torch.randn(4, 3, DIM)
    codes = quantizer.eval()(z).codes
    searched, found = quantizer.targets(z)
    assert torch.equal(found, codes)
    assert searched.shape[:-1] == codes.shape
    probs, found = quantizer.soft_codes(z, temp=0.3)
    assert torch.equal(found, codes)
    torch.testing.assert_close(probs.sum(-1), torch.ones(codes.shape))
    if quantizer.eval_beam_width == 1:
        assert torch.equal(probs.argmax(-1), codes)
    torch.manual_seed(0)
    drawn = quantizer.targets(z, temp=1e-6, stochastic=True)[1]
    quantizer.eval_beam_width = 1
    assert torch.equal(drawn, quantizer(z).codes)


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


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_commitment_gradient_in_closed_form_at_every_level(width, codebook):
    """Level l pulls z towards the sum of the first l + 1 code vectors: 2 w_l (z - sum) / (D * size of z)."""
    weights = [1.0, 0.5, 2.0]
    options = {"codebook": codebook, "losses": VectorLosses(commitment=0.25)}
    z = torch.randn(7, DIM, requires_grad=True)
    for alone in range(3):
        only = [weight if level == alone else 0.0 for level, weight in enumerate(weights)]
        torch.manual_seed(0)
        quantizer = ResidualVectorQuantizer(
            DIM, 11, 3, ResidualVectorOptions(loss_weights=only, beam_width=width, **options)
        )
        out = quantizer(z)
        (gradient,) = torch.autograd.grad(out.loss, z)
        total = quantizer.embed_with_depth(out.codes)[:, : alone + 1].sum(1)
        torch.testing.assert_close(gradient, 0.25 * weights[alone] * 2 * (z - total).detach() / (3 * z.numel()))
        commitment = 0.25 * weights[alone] * (z - total).square().mean() / 3
        torch.testing.assert_close(out.terms["commitment"], commitment)


def test_learned_code_vectors_are_pulled_to_the_residuals():
    quantizer = ResidualVectorQuantizer(DIM, 5, 2, ResidualVectorOptions(codebook="learned"))
    z = torch.randn(9, DIM)
    out = quantizer(z)
    gradients = torch.autograd.grad(out.terms["codebook"], list(quantizer.parameters()))
    residual = z
    for level, gradient in enumerate(gradients):
        codes = out.codes[:, level]
        error = quantizer.codebook(level)[codes] - residual
        expected = torch.zeros(5, DIM).index_add_(0, codes, 2 * error / (2 * z.numel()))
        torch.testing.assert_close(gradient, expected.detach())
        residual = residual - quantizer.codebook(level)[codes]


@pytest.mark.parametrize("estimator", ["straight_through", "rotation", "directional", "gumbel"])
def test_estimators_change_gradients_only(estimator):
    options = {"codebook": "learned", "sample_temp": 1e-4, "kmeans_init": False}
    torch.manual_seed(0)
    base = ResidualVectorQuantizer(DIM, 12, 3, ResidualVectorOptions(**options))
    quantizer = ResidualVectorQuantizer(DIM, 12, 3, ResidualVectorOptions(estimator=estimator, **options))
    quantizer.load_state_dict(base.state_dict())
    z = torch.randn(8, DIM, requires_grad=True)
    out, expected = quantizer(z), base(z)
    assert torch.equal(out.quantized, expected.quantized)
    upstream = torch.randn(8, DIM)
    (gradient,) = torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)
    assert torch.equal(gradient, upstream) == (estimator == "straight_through")
    books = torch.autograd.grad(
        (out.quantized * upstream).sum(), list(quantizer.parameters()), allow_unused=True, retain_graph=True
    )
    assert all((book is not None) == (estimator in ("directional", "gumbel")) for book in books)


def test_beam_leaves_less_than_the_greedy_search_in_train_and_eval_mode():
    torch.manual_seed(0)
    quantizer = ResidualVectorQuantizer(DIM, 32, 4, ResidualVectorOptions(beam_width=4, eval_beam_width=8))
    z = torch.randn(300, DIM)
    errors = {}
    for training, width in ((True, 4), (False, 8), (False, 1)):
        quantizer.train(training).eval_beam_width = width
        errors[width] = (quantizer(z).quantized - z).square().mean().item()
    assert errors[8] < errors[4] < errors[1]


def test_evaluation_with_a_beam_draws_nothing():
    quantizer = ResidualVectorQuantizer(DIM, 32, 4, ResidualVectorOptions(beam_width=3, sample_temp=5.0))
    z = torch.randn(50, DIM)
    assert not torch.equal(quantizer(z).codes, quantizer(z).codes)
    quantizer.eval()
    assert torch.equal(quantizer(z).codes, quantizer(z).codes)
    assert torch.equal(quantizer(z).codes, quantizer.targets(z)[1])


@pytest.mark.parametrize("width", [1, 3])
def test_masked_vectors_that_are_no_numbers_harm_no_gradient(width):
    quantizer = ResidualVectorQuantizer(DIM, 9, 2, ResidualVectorOptions(codebook_dim=4, beam_width=width))
    z = torch.randn(4, DIM)
    z[1] = float("nan")
    out = quantizer(z, torch.tensor([True, False, True, True]))
    (out.loss + out.quantized[[0, 2, 3]].sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())


def test_levels_see_the_residuals_of_the_beam():
    """EMA updates follow the codes of the best sum."""
    quantizer = made(ResidualVectorQuantizer, ResidualVectorOptions, DIM, 10, 2, beam_width=3)
    books = [quantizer.codebook(level).clone() for level in range(2)]
    z = torch.randn(40, DIM)
    codes = quantizer(z).codes
    quantizer.update_codebook()
    residual = z
    for level, book in enumerate(books):
        sums = torch.zeros(10, DIM).index_add_(0, codes[:, level], residual)
        counts = codes[:, level].bincount(minlength=10)
        found = quantizer.levels[level].codebooks[0]
        torch.testing.assert_close(found.embed_ema, 0.99 * book + 0.01 * sums)
        torch.testing.assert_close(found.cluster_size_ema, 0.99 + 0.01 * counts)
        residual = residual - book[codes[:, level]]


def test_a_shared_codebook_is_one_and_updated_once_over_all_levels():
    shared = made(ResidualVectorQuantizer, ResidualVectorOptions, DIM, 10, 3, shared=True)
    assert len(shared.levels) == 1
    book = shared.levels[0].codebooks[0]
    z = torch.randn(40, DIM)
    codes = shared(z).codes
    shared.update_codebook()
    assert book.num_updates == 1
    counts = codes.flatten().bincount(minlength=10)
    torch.testing.assert_close(book.cluster_size_ema, 0.99 + 0.01 * counts)


def test_dropped_levels_have_codes_of_minus_one_and_learn_nothing():
    quantizer = ResidualVectorQuantizer(
        DIM, 8, 4, ResidualVectorOptions(quantize_dropout=True, dropout_cutoff=1, dropout_multiple=2)
    )
    z, seen = torch.randn(10, DIM), set()
    for seed in range(20):
        torch.manual_seed(seed)
        before = [int(level.codebooks[0].num_updates) for level in quantizer.levels]
        out = quantizer(z)
        kept = int((out.codes[0] >= 0).sum())
        seen.add(kept)
        decoded = quantizer.decode(out.codes[:, :kept])
        assert torch.equal(decoded, out.quantized)
        quantizer.update_codebook()
        after = [int(level.codebooks[0].num_updates) for level in quantizer.levels]
        assert [b - a for a, b in zip(before, after)] == [1] * kept + [0] * (4 - kept)
    assert seen == {2, 4}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", ["kmeans_init", "warmup"])
def test_levels_start_from_the_residuals_they_will_see(shared, kind):
    torch.manual_seed(0)
    z = torch.randn(400, DIM)
    options = {"kmeans_init": kind == "kmeans_init"}
    quantizer = ResidualVectorQuantizer(DIM, 16, 3, ResidualVectorOptions(beam_width=2, **options), shared=shared)
    if kind == "warmup":
        assert codebook_warmup(torch.nn.Sequential(quantizer), [z], "kmeans", num_batches=1) == ["0"]
    else:
        quantizer(z)
    residual, errors = z, []
    for level in range(3):
        nearest = torch.cdist(residual, quantizer.codebook(level)).argmin(1)
        residual = residual - quantizer.codebook(level)[nearest]
        errors.append(residual.square().mean().item())
    assert errors[0] < 0.55
    assert errors[2] < 0.75 * errors[1] < 0.75**2 * errors[0] * 1.1 or shared
    assert errors[2] < 0.8 * errors[1]


@pytest.mark.parametrize("shared", [False, True])
def test_the_start_ignores_masked_vectors(shared):
    z, mask = torch.randn(8, 30, DIM), torch.arange(30) < torch.randint(1, 30, (8, 1))
    quantizer = ResidualVectorQuantizer(DIM, 12, 2, ResidualVectorOptions(kmeans_init=True), shared=shared)
    other = copy.deepcopy(quantizer)
    quantizer(z[mask])
    other(torch.where(mask[..., None], z, torch.nan), mask)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, quantizer.state_dict()[name], msg=name)


def test_one_level_is_a_vector_quantizer():
    torch.manual_seed(0)
    options = {"distance": "cosine", "restart": RestartRule(0.5, relative=True)}
    residual = ResidualVectorQuantizer(DIM, 10, 1, ResidualVectorOptions(**options))
    plain = VectorQuantizer(DIM, 10, VectorOptions(**options))
    plain.load_state_dict(residual.levels[0].state_dict())
    for _ in range(3):
        z = torch.randn(30, DIM)
        one, other = residual(z), plain(z)
        assert torch.equal(one.quantized, other.quantized)
        assert torch.equal(one.loss, other.loss)
        residual.update_codebook()
        plain.update_codebook()
    for name, value in plain.state_dict().items():
        assert torch.equal(residual.levels[0].state_dict()[name], value), name


def test_groups_and_layouts():
    groups = [ResidualVectorQuantizer(3, 7, 2, ResidualVectorOptions(beam_width=2)) for _ in range(2)]
    quantizer = InLayout(Grouped(DIM, groups), DIM, "channels_first").eval()
    z = torch.randn(2, DIM, 4, 4)
    out = quantizer(z)
    assert out.codes.shape == (2, 4, 4, 4)
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    assert torch.equal(out.codes[..., 2:], groups[1](z[:, 3:].movedim(1, -1)).codes)


def test_cosine_levels_subtract_unit_vectors():
    quantizer = ResidualVectorQuantizer(DIM, 10, 2, ResidualVectorOptions(distance="cosine")).eval()
    z = torch.randn(20, DIM)
    out = quantizer(z)
    left = z
    for level in range(2):
        codes = (F.normalize(left, dim=1) @ quantizer.codebook(level).T).argmax(1)
        assert torch.equal(codes, out.codes[:, level])
        left = left - quantizer.codebook(level)[codes]
    torch.testing.assert_close(out.quantized, z - left)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_quantizers": None}, "num_quantizers is missing"),
        ({"num_codes": [4, 5], "num_quantizers": 3}, "num_codes has 2 sizes"),
        ({"num_codes": [4, 5, 5], "shared": True}, "needs one size"),
        ({"loss_weights": []}, "3 levels need as many loss_weights"),
        ({"beam_width": 0}, "beam_width must be a whole number of at least 1"),
        ({"estimator": "reinforce"}, "not one of straight_through"),
        ({"estimator": "gumbel"}, "needs sample_temp"),
        ({"groups": 2}, "groups 2: this is one stack"),
        ({"quantize_dropout": True, "dropout_cutoff": 3}, "dropout_cutoff must be in"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        made(ResidualVectorQuantizer, ResidualVectorOptions, DIM, **{"num_codes": 4, "num_quantizers": 3, **wrong})
