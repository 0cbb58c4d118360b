"""`VectorQuantize` as vector-quantize-pytorch offers it: how its codebook changes, draws, and is compiled."""

import copy

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat.vector_quantize_pytorch import VectorQuantize


def made(seed=0, **settings):
    torch.manual_seed(seed)
    return VectorQuantize(**{"dim": 8, "codebook_size": 16, **settings})


def vectors(*shape, seed=1):
    return torch.randn(shape or (2, 12, 8), generator=torch.Generator().manual_seed(seed))


def test_orthogonal_codebook_is_a_parameter_and_keeps_moving_averages():
    quantizer, x = made(orthogonal_reg_weight=1.0), vectors()
    assert isinstance(quantizer._codebook.embed, nn.Parameter)
    before = quantizer.codebook.detach().clone()
    loss = quantizer(x)[2]
    assert not torch.equal(quantizer.codebook, before)
    loss.backward()
    assert quantizer._codebook.embed.grad.abs().sum() > 0


def test_expired_codes_become_raw_vectors_of_the_batch():
    quantizer, x = made(threshold_ema_dead_code=2.0, codebook_size=8), vectors(4, 16, 8)
    indices = quantizer(x)[1]
    sizes = 0.8 + 0.2 * torch.bincount(indices.flatten(), minlength=8)
    expired = sizes < 2
    assert expired.any()
    assert not expired.all()
    book = quantizer._codebook
    torch.testing.assert_close(book.cluster_size[0], torch.where(expired, 2.0, sizes))
    nearest = torch.cdist(quantizer.codebook[expired], x.flatten(0, 1)).amin(1)
    torch.testing.assert_close(nearest, torch.zeros(int(expired.sum())), atol=1e-3, rtol=0)
    torch.testing.assert_close(book.embed_avg[0, expired], 2 * quantizer.codebook[expired])
    assert quantizer.codebook[expired].unique(dim=0).shape[0] == expired.sum()
    quantizer.eval()
    held = quantizer.codebook.clone()
    quantizer.expire_codes_(x)
    assert torch.equal(quantizer.codebook, held)


def test_more_expired_codes_than_vectors_wait_for_later_steps():
    quantizer, x = made(threshold_ema_dead_code=2.0, codebook_size=64), vectors(1, 5, 8)
    quantizer(x)
    restarted = quantizer._codebook.cluster_size[0] == 2.0
    assert restarted.sum() == 5
    assert quantizer.codebook[restarted].unique(dim=0).shape[0] == 5
    assert not torch.equal(restarted.nonzero().flatten(), torch.arange(5))


def test_cosine_loss_is_against_the_normalised_vectors():
    quantizer, x = made(use_cosine_sim=True), vectors()
    before = quantizer.codebook.clone()
    _, indices, loss = quantizer(5 * x)
    unit = nn.functional.normalize(x, dim=-1)
    assert torch.equal(indices, (unit @ before.T).argmax(-1))
    torch.testing.assert_close(loss, (unit - before[indices]).square().mean())
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))


def test_stochastic_codes_follow_the_softmax_of_minus_the_distance():
    quantizer = made(stochastic_sample_codes=True, sample_codebook_temp=0.5, freeze_codebook=True, codebook_size=4)
    x = vectors(1, 1, 8).expand(1, 20000, 8)
    probs = (-torch.cdist(x[0, :1], quantizer.codebook) / 0.5).softmax(1)[0]
    drawn = quantizer(x)[1].flatten().bincount(minlength=4) / 20000
    torch.testing.assert_close(drawn, probs, atol=0.02, rtol=0)
    nearest = quantizer.eval()(x)[1]
    assert (nearest == probs.argmax()).all()
    quantizer.train()
    assert (quantizer(x, sample_codebook_temp=0.0)[1] == nearest).all()
    hot = quantizer(x, sample_codebook_temp=100.0)[1].flatten().bincount(minlength=4) / 20000
    torch.testing.assert_close(hot, torch.full((4,), 0.25), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [dict(), dict(use_cosine_sim=True), dict(heads=2, codebook_dim=4), dict(kmeans_init=True), dict(affine_param=True)],
)
def test_evaluation_compiles_without_a_graph_break(settings):
    quantizer, x = made(**settings), vectors()
    quantizer(x)
    quantizer.eval()
    compiled = torch.compile(quantizer, fullgraph=True, backend="eager")
    for own, other in zip(compiled(x), copy.deepcopy(quantizer)(x), strict=True):
        assert torch.equal(own, other)


def test_models_made_or_run_in_inference_mode():
    x = vectors()
    with torch.inference_mode():
        inside = made(kmeans_init=True)
        first, second = inside(x, freeze_codebook=True)[1], inside(x, freeze_codebook=True)[1]
    assert torch.equal(first, second)
    outside = made(kmeans_init=True)
    with torch.inference_mode():
        outside(x)
    assert outside(x)[2].requires_grad


def test_manual_steps_of_the_codebook():
    quantizer, x = made(manual_ema_update=True), vectors()
    before = quantizer.codebook.clone()
    quantizer(x)
    assert torch.equal(quantizer.codebook, before)
    quantizer._codebook.update_ema()
    automatic = made()
    automatic(x)
    assert torch.equal(quantizer.codebook, automatic.codebook)


def test_gathered_averages():
    gathered, at_once = made(), made()
    x = vectors(4, 12, 8)
    gathered(x[:2], accum_ema_update=True)
    assert torch.equal(gathered.codebook, at_once.codebook)
    gathered(x[2:])
    at_once(x)
    torch.testing.assert_close(gathered.state_dict(), at_once.state_dict())


def test_a_codebook_set_by_hand():
    quantizer, codes = made(), vectors(16, 8)
    quantizer.codebook = codes
    assert torch.equal(quantizer.codebook, codes)
    assert quantizer._codebook.embed.shape == (1, 16, 8)
    assert torch.equal(quantizer.eval()(codes[None])[1], torch.arange(16)[None])


@pytest.mark.parametrize("form", ["number", "tensor", "function"])
def test_the_step_of_the_moving_averages_can_be_weighted(form):
    """A weight w of a code makes its step (1 - decay) w; with 0 the code stays."""
    quantizer, x = made(), vectors()
    book = quantizer._codebook
    before, sums_before = book.cluster_size.clone(), book.embed_avg.clone()
    weight_K = torch.linspace(0, 1, 16) if form != "number" else torch.full((16,), 0.25)
    given = {"number": 0.25, "tensor": weight_K, "function": lambda sums, counts: weight_K.expand_as(counts)}[form]
    indices = quantizer(x, ema_update_weight=given)[1].flatten()
    step_K = 0.2 * weight_K
    counts_K = torch.bincount(indices, minlength=16).float()
    sums_KE = torch.zeros(16, 8).index_add(0, indices, x.flatten(0, 1))
    torch.testing.assert_close(book.cluster_size, before + step_K * (counts_K - before))
    torch.testing.assert_close(book.embed_avg, sums_before + step_K[:, None] * (sums_KE - sums_before))


def test_moving_averages_can_be_turned_off_for_a_call_and_in_the_constructor():
    x = vectors()
    off, free = made(ema_update=False), made()
    before = {name: value.clone() for name, value in free.state_dict().items()}
    off(x)
    free(x, ema_update=False)
    for quantizer in (off, free):
        assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    off(x, ema_update=True)
    free(x)
    assert torch.equal(off.codebook, free.codebook)
    assert not torch.equal(free.codebook, before["_codebook.embed"][0])


@pytest.mark.parametrize("settings", [dict(), dict(threshold_ema_dead_code=2.0), dict(affine_param=True)])
def test_a_batch_without_vectors_only_ages_the_averages(settings):
    quantizer, x = made(**settings), vectors()
    quantizer(x)
    book = quantizer._codebook
    before, sizes = quantizer.codebook.clone(), book.cluster_size.clone()
    quantized, indices, loss = quantizer(x[:0])
    assert (quantized.shape, indices.shape) == ((0, 12, 8), (0, 12))
    assert loss == 0
    torch.testing.assert_close(book.cluster_size, 0.8 * sizes)
    torch.testing.assert_close(quantizer.codebook, before, rtol=1e-3, atol=1e-4)
    assert quantizer(x)[2].isfinite()
