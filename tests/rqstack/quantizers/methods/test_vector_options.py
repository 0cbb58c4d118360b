"""Options of the vector quantizer in closed form: how code vectors learn, affine codebooks, kept lengths, given codes,
k nearest codes, groups."""

import copy
import functools

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers import Grouped, RestartRule, VectorLosses, VectorOptions, VectorQuantizer
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.wrappers.layout import mask_from_lengths
from tests.rqstack.quantizers.quantizer_methods import made

NO_LOSS = VectorLosses(commitment=0, codebook=0)


def with_codes(dim=4, num_codes=9, **settings):
    quantizer = made(VectorQuantizer, VectorOptions, dim, num_codes, **settings)
    for book in quantizer.codebooks:
        book.assign(torch.randn(num_codes, quantizer.codebook_dim), torch.ones(num_codes))
    return quantizer


def distances(codebook, vectors):
    """From every code vector to the nearest vector, without the cancellation of the fast way."""
    return torch.cdist(codebook, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


def sgd(lr):
    return functools.partial(torch.optim.SGD, lr=lr)


def test_synchronised_updates_reach_the_code_vectors_in_the_output():
    quantizer = with_codes(codebook="learned", sync_nu=0.3, losses=NO_LOSS)
    z, upstream = torch.randn(20, 4, requires_grad=True), torch.randn(20, 4)
    out = quantizer(z)
    out.quantized.backward(upstream)
    assert torch.equal(z.grad, upstream)
    expected = torch.zeros(9, 4).index_add_(0, out.codes[:, 0], 0.3 * upstream)
    torch.testing.assert_close(quantizer.codebooks[0].rows.grad, expected)


def test_inplace_steps_happen_in_update_codebook_over_all_forwards():
    quantizer = with_codes(codebook="learned", in_place_optimizer=sgd(0.5))
    before, z = quantizer.codebook(0).clone(), torch.randn(30, 4, requires_grad=True)
    outs = [quantizer(z[:10]), quantizer(z[10:])]
    assert list(outs[0].terms) == ["commitment"]
    assert torch.equal(quantizer.codebook(0), before)
    sum(out.loss for out in outs).backward()
    assert quantizer.codebooks[0].rows.grad is None
    quantizer.update_codebook()
    rows = before.clone().requires_grad_()
    F.mse_loss(rows[torch.cat([out.codes for out in outs])[:, 0]], z.detach()).backward()
    torch.testing.assert_close(quantizer.codebook(0), before - 0.5 * rows.grad)
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


def test_inplace_learning_lowers_the_error_and_has_a_state_to_save():
    adam = functools.partial(torch.optim.Adam, lr=0.05)
    quantizer, x = with_codes(codebook="learned", in_place_optimizer=adam), torch.randn(200, 4)
    losses = []
    for _ in range(40):
        losses.append(quantizer(x).loss.item())
        quantizer.update_codebook()
    assert losses[-1] < 0.8 * losses[0]
    twin = copy.deepcopy(quantizer)
    fresh = with_codes(codebook="learned", in_place_optimizer=adam)
    fresh.load_state_dict(quantizer.state_dict())
    fresh.inplace_optimizer.load_state_dict(copy.deepcopy(quantizer.inplace_optimizer.state_dict()))
    for one in (quantizer, twin, fresh):
        one(x)
        one.update_codebook()
    assert torch.equal(twin.codebook(0), quantizer.codebook(0)), "a copy learns by itself"
    assert torch.equal(fresh.codebook(0), quantizer.codebook(0))


def test_freezing_stops_inplace_learning_and_leaves_its_parameters_alone():
    quantizer = with_codes(codebook="learned", in_place_optimizer=sgd(0.5), affine=AffineRule())
    before = quantizer.codebook(0).clone()
    quantizer.freeze_codebook()
    quantizer(torch.randn(9, 4))
    quantizer.update_codebook()
    assert torch.equal(quantizer.codebook(0), before)
    quantizer.freeze_codebook(False)
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    quantizer(torch.randn(9, 4))
    quantizer.update_codebook()
    assert not torch.equal(quantizer.codebook(0), before)
    assert quantizer.affines[0].bias.any()


@pytest.mark.parametrize("codebook", ["learned", "both"])
def test_orthogonal_regularisation_spreads_the_code_vectors(codebook):
    losses = VectorLosses(codebook=0, orthogonal=1.0)
    quantizer = with_codes(8, 8, codebook=codebook, decay=0.999, losses=losses)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=2.0)
    values = []
    for _ in range(60):
        out = quantizer(torch.randn(16, 8))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        quantizer.update_codebook()
        values.append(out.terms["orthogonal"].item())
    assert values[-1] < 0.3 * values[0]


def test_a_learned_affine_map_learns_from_the_codebook_loss():
    quantizer = with_codes(codebook="learned", affine=AffineRule(groups=3, lr_scale=0.5))
    z = torch.randn(50, 4)
    out = quantizer(z)
    out.loss.backward()
    affine, rows = quantizer.affines[0], quantizer.codebooks[0].rows.detach()
    codes = out.codes[:, 0]
    pull = torch.zeros(9, 4).index_add_(0, codes, 2 * (rows[codes] - z) / z.numel())
    torch.testing.assert_close(affine.bias.grad, 0.5 * pull.view(3, 3, 4).sum(1))
    torch.testing.assert_close(affine.scale.grad, 0.5 * (pull * rows).view(3, 3, 4).sum(1))


def test_with_running_moments_unused_code_vectors_follow_the_vectors():
    quantizer = with_codes(affine=AffineRule("running", batch_decay=0.5))
    plain = with_codes()
    for model in (quantizer, plain):
        for step in range(30):
            model(10 + step + 3 * torch.randn(300, 4))
            model.update_codebook()
    used = 39 + 3 * torch.randn(300, 4)
    assert (plain.codebook(0).mean(1) < 10).any(), "without it they stay where they were"
    assert (quantizer.codebook(0).mean(1) - 39).abs().max() < 15
    assert len(quantizer(used).codes.unique()) > len(plain(used).codes.unique())


def test_the_moving_average_of_an_affine_codebook_is_that_of_the_placed_vectors():
    quantizer = with_codes(decay=0.0, affine=AffineRule("running", batch_decay=0.5, codebook_decay=0.5))
    affine, z = quantizer.affines[0], torch.randn(60, 4)
    affine.observe(5 + 2 * z, quantizer.codebooks[0].weight)
    twin = copy.deepcopy(affine)
    codes = quantizer(z).codes[:, 0]
    quantizer.update_codebook()
    for code in codes.unique():
        torch.testing.assert_close(
            quantizer.codebooks[0].weight[code], twin.inverse(z[codes == code]).mean(0), rtol=1e-3, atol=1e-3
        )
    twin.observe(z, quantizer.codebooks[0].weight)
    torch.testing.assert_close(affine.state_dict(), twin.state_dict())


@pytest.mark.parametrize("rule", [AffineRule(groups=3), AffineRule("running")])
def test_a_start_from_data_sets_the_searched_vectors(rule):
    quantizer = with_codes(codebook="learned", affine=rule)
    quantizer(5 + torch.randn(50, 4))
    for parameter in quantizer.affines.parameters():
        parameter.data.normal_()
    quantizer.update_codebook()
    z = torch.randn(40, 4)
    quantizer.initialize_codebook(z, method="data")
    assert (distances(quantizer.codebook(0), z) < 1e-5).all()


def test_restarted_entries_of_an_affine_codebook_are_searched_as_vectors_of_the_step():
    for rule in (AffineRule(groups=3), AffineRule("running", batch_decay=1.0, codebook_decay=1.0)):
        quantizer = with_codes(codebook="learned", affine=rule, restart=RestartRule(unused_for=1))
        for parameter in quantizer.affines.parameters():
            parameter.data.uniform_(0.5, 1)
        if rule.kind == "running":
            quantizer.affines[0].observe(3 + 2 * torch.randn(50, 4), quantizer.codebook(0).detach())
        z = 50 + 5 * torch.randn(30, 4)
        chosen = quantizer(z).codes.unique()
        quantizer.update_codebook()
        restarted = [entry for entry in range(9) if entry not in chosen.tolist()]
        assert restarted
        assert (distances(quantizer.codebook(0)[restarted], z) < 1e-3).all()


@pytest.mark.parametrize("heads", [1, 2])
def test_kept_lengths(heads):
    quantizer = with_codes(distance="cosine", keep_length=True, heads=heads)
    z, upstream = 5 * torch.randn(20, 4, requires_grad=True), torch.randn(20, 4)
    z.retain_grad()
    out = quantizer(z)
    parts, vectors = z.view(20, heads, -1), quantizer.head_vectors(out.codes)
    torch.testing.assert_close(out.quantized.view_as(parts), parts.norm(dim=-1, keepdim=True) * vectors)
    assert torch.equal(quantizer.decode(out.codes, quantizer.lengths(z)), out.quantized)
    torch.testing.assert_close(quantizer.decode(out.codes), vectors.flatten(1))
    torch.testing.assert_close(out.loss, (F.normalize(parts, dim=-1) - vectors).square().mean())
    out.quantized.backward(upstream)
    assert torch.equal(z.grad, upstream), "straight through to the vector itself, not to its direction"


def test_gumbel_with_kept_lengths_has_the_gradient_of_the_mean_times_the_length():
    torch.manual_seed(1)
    quantizer = with_codes(distance="cosine", keep_length=True, estimator="gumbel", sample_temp=0.5, losses=NO_LOSS)
    z, upstream = 5 * torch.randn(20, 4), torch.randn(20, 4)
    z.requires_grad_()
    quantizer(z).quantized.backward(upstream)
    unit, weight = F.normalize(z, dim=1), quantizer.codebook(0)
    mean = (-torch.cdist(unit, weight).square() / 0.5).softmax(1) @ weight
    (expected,) = torch.autograd.grad(z.detach().norm(dim=1, keepdim=True) * mean, z, upstream)
    torch.testing.assert_close(z.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", [AffineRule(groups=3), AffineRule("running")])
def test_cosine_code_vectors_of_an_affine_codebook_have_length_one(rule):
    quantizer = with_codes(codebook="learned", distance="cosine", affine=rule)
    for parameter in quantizer.affines.parameters():
        parameter.data.normal_()
    quantizer(torch.randn(50, 4))
    quantizer.update_codebook()
    torch.testing.assert_close(quantizer.codebook(0).norm(dim=1), torch.ones(9))


def test_seeds_and_heads_have_restart_draws_of_their_own():
    z, rows = torch.randn(60, 4), {}
    for seed in (0, 1):
        torch.manual_seed(0)
        quantizer = VectorQuantizer(
            4,
            9,
            VectorOptions(restart=RestartRule(unused_for=1), seed=seed, kmeans_init=False),
            heads=2,
            separate_codebooks=True,
        )
        for book in quantizer.codebooks:
            book.assign(torch.full((9, 2), 100.0) + torch.arange(9)[:, None], torch.ones(9))
        quantizer(z)
        quantizer.update_codebook()
        for head in range(2):
            distance = torch.cdist(quantizer.codebook(head)[1:], z[:, 2 * head : 2 * head + 2])
            rows[seed, head] = distance.argmin(1).tolist()
    assert rows[0, 0] != rows[1, 0]
    assert rows[0, 0] != rows[0, 1]


@pytest.mark.parametrize("settings", [{}, {"distance": "cosine"}, {"heads": 2, "separate_codebooks": True}])
def test_top_codes_begin_with_the_code_of_the_forward(settings):
    quantizer = with_codes(codebook="learned", **settings)
    z = torch.randn(3, 7, 4)
    top = quantizer.top_codes(z, 4)
    heads = quantizer.heads
    assert top.codes.shape == top.distances.shape == (3, 7, heads, 4)
    assert torch.equal(top.codes[..., 0], quantizer(z).codes)
    assert (top.distances.diff(dim=-1) >= 0).all()
    for place in range(4):
        assert torch.equal(top.vectors[..., place, :], quantizer.head_vectors(top.codes[..., place]))
    searched = quantizer.targets(z)[0][..., None, :]
    torch.testing.assert_close(top.distances, (searched - top.vectors).square().sum(-1))
    top.vectors.sum().backward()
    assert quantizer.codebooks[0].rows.grad.any()


@pytest.mark.parametrize("codebook", ["ema", "both"])
@pytest.mark.parametrize("settings", [{}, {"heads": 2}, {"distance": "cosine", "codebook_dim": 3}])
def test_an_update_from_the_found_codes_is_the_update_after_a_forward(settings, codebook):
    quantizer = with_codes(codebook=codebook, affine=AffineRule("running"), **settings)
    twin, z = copy.deepcopy(quantizer), torch.randn(4, 6, 4)
    mask = mask_from_lengths(torch.tensor([6, 0, 3, 1]), 6)
    codes = quantizer(z, mask).codes
    quantizer.update_codebook()
    twin.update_from_codes(z, codes.masked_fill(~mask[..., None], -1))
    torch.testing.assert_close(twin.state_dict(), quantizer.state_dict(), rtol=0, atol=0)
    twin.update_from_codes(z, codes, mask)
    quantizer(z)
    quantizer.update_from_codes(z, codes, mask)
    torch.testing.assert_close(twin.state_dict(), quantizer.state_dict(), rtol=0, atol=0)
    before = quantizer.codebook(0).clone()
    quantizer.update_codebook()
    assert not torch.equal(quantizer.codebook(0), before), "what the forward has gathered is still there"


def test_updates_from_codes_are_refused_where_nothing_is_averaged_or_shapes_differ():
    z, codes = torch.randn(5, 4), torch.zeros(5, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="needs codebook 'ema' or 'both'"):
        with_codes(codebook="learned").update_from_codes(z, codes)
    quantizer = with_codes()
    with pytest.raises(ValueError, match="1 codes per vector"):
        quantizer.update_from_codes(z, codes[:, 0])
    quantizer.freeze_codebook()
    before = quantizer.codebook(0).clone()
    quantizer.update_from_codes(z, codes)
    assert torch.equal(quantizer.codebook(0), before)


@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_groups_are_quantizers_of_their_own_channels(codebook):
    torch.manual_seed(0)
    settings = {"codebook": codebook, "heads": 2, "affine": AffineRule("running")}
    alone = [with_codes(4, **settings), with_codes(4, distance="cosine", **settings)]
    grouped = Grouped(8, copy.deepcopy(alone))
    z = torch.randn(3, 5, 8)
    for _ in range(2):
        out = grouped(z)
        parts = [quantizer(part) for quantizer, part in zip(alone, z.chunk(2, -1))]
        assert torch.equal(out.quantized, torch.cat([part.quantized for part in parts], -1))
        assert torch.equal(out.codes, torch.cat([part.codes for part in parts], -1))
        torch.testing.assert_close(out.loss, sum(part.loss for part in parts) / 2)
        assert torch.equal(grouped.decode(out.codes), out.quantized)
        torch.testing.assert_close(grouped.embed_with_depth(out.codes).sum(-2), out.quantized)
        searched, codes = grouped.targets(z)
        assert torch.equal(codes, out.codes)
        assert searched.shape == (3, 5, 4, 2)
        for quantizer in (grouped, *alone):
            quantizer.update_codebook()
    assert torch.equal(grouped.codebook(2), alone[1].codebook(0))


def test_a_masked_bad_vector_leaves_no_trace_in_any_gradient():
    quantizer = with_codes(codebook_dim=3, distance="cosine", codebook="learned")
    z, mask = torch.randn(6, 4), torch.arange(6) < 5
    z[5] = float("nan")
    z.requires_grad_()
    out = quantizer(z, mask)
    (out.quantized.square().sum() + out.loss).backward()
    assert all(parameter.grad.isfinite().all() for parameter in quantizer.parameters())
    assert z.grad.isfinite().all()
