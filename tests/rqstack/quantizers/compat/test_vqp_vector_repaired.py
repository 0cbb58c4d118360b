"""`VectorQuantize`: calls that the original gets wrong or refuses, and that must work here."""

import pytest
import torch
from torch import nn

from rqstack.quantizers import codebook_warmup
from rqstack.quantizers.compat.vector_quantize_pytorch import (
    GroupedResidualVQ,
    HierarchicalVQ,
    ResidualVQ,
    VectorQuantize,
)

HEADS = {
    "plain": dict(),
    "projected": dict(codebook_dim=4),
    "shared-heads": dict(heads=2, codebook_dim=4),
    "shared-heads-projected": dict(heads=4, codebook_dim=4),
    "separate-heads": dict(heads=2, codebook_dim=4, separate_codebook_per_head=True),
    "separate-heads-projected": dict(heads=4, codebook_dim=4, separate_codebook_per_head=True),
}
LOSSES = {
    "commitment": dict(),
    "cosine": dict(use_cosine_sim=True),
    "cross-entropy": dict(commitment_use_cross_entropy_loss=True),
    "diversity": dict(codebook_diversity_loss_weight=1.0, codebook_diversity_temperature=2.0),
    "orthogonal-active": dict(orthogonal_reg_weight=1.0, orthogonal_reg_active_codes_only=True),
    "affine": dict(affine_param=True),
    "learned": dict(learnable_codebook=True, ema_update=False),
    "expiry": dict(threshold_ema_dead_code=1.0),
    "kmeans": dict(kmeans_init=True),
}


def made(seed=0, **settings):
    torch.manual_seed(seed)
    return VectorQuantize(**{"dim": 8, "codebook_size": 16, **settings})


def vectors(*shape, seed=1):
    return torch.randn(shape or (2, 12, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("losses", LOSSES)
def test_masked_training_equals_training_without_the_padding(heads, losses):
    settings = {**HEADS[heads], **LOSSES[losses]}
    masked, plain = made(**settings), made(**settings)
    x = vectors(3, 20, 8)
    inputs = [x.clone(), x[:, :12].clone()]
    inputs[0][:, 12:] = float("nan")
    mask = torch.arange(20).expand(3, 20) < 12
    for step in range(2):
        for own in inputs:
            own.requires_grad_().grad = None
        results = [masked(inputs[0], mask=mask), plain(inputs[1])]
        for quantized, _, loss in results:
            (quantized.square().sum() + loss).backward()
        assert torch.equal(results[0][1][:, :12], results[1][1]), step
        torch.testing.assert_close(results[0][0][:, :12], results[1][0])
        torch.testing.assert_close(results[0][2], results[1][2])
        torch.testing.assert_close(inputs[0].grad[:, :12], inputs[1].grad, rtol=1e-4, atol=1e-5)
        assert torch.all(inputs[0].grad[:, 12:] == 0)
        assert torch.all(results[0][0][:, 12:] == 0)
        torch.testing.assert_close(masked.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (dict(), (2, 12, 8)),
        (dict(), (6, 8)),
        (dict(), (2, 3, 4, 8)),
        (dict(), (2, 2, 3, 2, 8)),
        (dict(channel_last=False), (2, 8, 12)),
        (dict(channel_last=False), (2, 8, 3, 4)),
        (dict(accept_image_fmap=True), (2, 8, 3, 4)),
        (dict(accept_3d_fmap=True), (2, 8, 2, 3, 2)),
    ],
)
def test_every_layout_decodes_to_what_was_returned(heads, layout, shape):
    quantizer, x = made(**HEADS[heads], **layout), vectors(*shape)
    indices = quantizer(x)[1]
    quantized, indices, _ = quantizer.eval()(x)
    grid = (shape[0], *shape[2:]) if layout and len(shape) > 2 else shape[:-1]
    heads = quantizer.heads
    assert indices.shape == (*grid, heads) if heads > 1 else grid
    assert quantized.shape == x.shape
    assert torch.equal(quantizer.get_output_from_indices(indices), quantized)
    if not quantizer.has_projections and (heads == 1 or quantizer.separate_codebook_per_head):
        assert torch.equal(quantizer.get_codes_from_indices(indices), quantized)


@pytest.mark.parametrize("heads", HEADS)
def test_channels_last_maps_are_the_sequences_of_their_positions(heads):
    flat, grid = made(**HEADS[heads]), made(**HEADS[heads])
    x = vectors(2, 12, 8)
    expected, codes, loss = flat(x)
    results = grid(x.view(2, 3, 4, 8))
    assert torch.equal(results[0].view(2, 12, 8), expected)
    assert torch.equal(results[1].view(codes.shape), codes)
    assert torch.equal(results[2], loss)
    assert torch.equal(grid._codebook.embed, flat._codebook.embed)


def test_lengths_count_positions_in_channels_first_layout_too():
    x, lens = vectors(2, 12, 8), torch.tensor([3, 12])
    expected = made()(x, lens=lens)
    results = made(channel_last=False)(x.mT, lens=lens)
    assert torch.equal(results[0].mT, expected[0])
    assert torch.equal(results[1], expected[1])


def test_minus_one_decodes_to_what_masked_positions_return():
    for settings in HEADS.values():
        quantizer, x = made(**settings).eval(), vectors()
        quantized, indices, _ = quantizer(x, lens=torch.tensor([4, 9]))
        assert (indices == -1).any()
        assert torch.equal(quantizer.get_output_from_indices(indices), quantized)
    codes = made().get_codes_from_indices(torch.tensor([[0, -1]]))
    assert torch.all(codes[0, 1] == 0)
    assert not torch.all(codes[0, 0] == 0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("shape", [(2, 8, 3, 4), (2, 12, 8), (5, 8)])
def test_updates_from_indices_equal_the_forward_that_found_them(heads, shape):
    layout = dict(accept_image_fmap=True) if len(shape) == 4 else {}
    learning, given = made(**HEADS[heads], **layout), made(**HEADS[heads], **layout)
    x = vectors(*shape)
    indices = learning(x)[1]
    given.eval().update_indices(x, indices)
    torch.testing.assert_close(given.state_dict(), learning.state_dict())
    assert VectorQuantize.update_ema_indices is VectorQuantize.update_indices


def test_updates_from_indices_leave_out_masked_and_absent_codes():
    x, indices = vectors(), torch.arange(24).view(2, 12) % 16
    mask = torch.arange(12).expand(2, 12) < 7
    by_mask, by_absence, short = made(), made(), made()
    by_mask.update_indices(x, indices, mask=mask)
    by_absence.update_indices(x, indices.masked_fill(~mask, -1))
    short.update_indices(x[:, :7], indices[:, :7])
    torch.testing.assert_close(by_mask.state_dict(), short.state_dict())
    torch.testing.assert_close(by_absence.state_dict(), short.state_dict())


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(use_cosine_sim=True),
        dict(kmeans_init=True, threshold_ema_dead_code=2.0),
        dict(affine_param=True),
        dict(
            learnable_codebook=True,
            ema_update=False,
            in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ),
        dict(heads=2, codebook_dim=4),
    ],
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_vector_that_is_not_finite_leaves_the_codebook_alone(settings, bad):
    quantizer, x = made(**settings), vectors(4, 16, 8)
    x[1, 3] = bad
    for _ in range(3):
        indices = quantizer(x)[1]
        assert 0 <= indices.min() <= indices.max() < 16
    for name, value in quantizer.state_dict().items():
        assert value.isfinite().all(), name
    clean = made(**settings)
    finite = torch.cat([x.flatten(0, 1)[:19], x.flatten(0, 1)[20:]])[None]
    if not settings:
        for _ in range(3):
            clean(finite)
        torch.testing.assert_close(quantizer.state_dict(), clean.state_dict())


def test_an_affine_codebook_decodes_and_can_be_saved():
    quantizer, x = made(affine_param=True), 3 * vectors() + 1
    for _ in range(3):
        quantizer(x)
    again = made(seed=1, affine_param=True)
    again.load_state_dict(quantizer.state_dict(), strict=True)
    for module in (quantizer, again):
        quantized, indices, _ = module.eval()(x)
        assert torch.equal(module.get_output_from_indices(indices), quantized)
    assert torch.equal(again._codebook.batch_mean, quantizer._codebook.batch_mean)
    error = (quantized - x).square().mean()
    assert error < 0.6 * (made().eval()(x)[0] - x).square().mean()


def test_a_bridged_codebook_decodes():
    quantizer = made(vq_bridge=nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    quantized, indices, loss = quantizer(vectors())
    torch.testing.assert_close(quantizer.get_output_from_indices(indices), quantized)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in quantizer.parameters())


def test_gradients_over_all_scores_are_those_of_the_codebook_that_was_searched():
    """The moving averages change the codebook between forward and backward; the gradient must not notice."""
    for settings in (dict(commitment_use_cross_entropy_loss=True), dict(codebook_diversity_loss_weight=1.0)):
        grads = []
        for frozen in (False, True):
            quantizer = made(freeze_codebook=frozen, route_gradients_to_input=False, **settings)
            x = vectors().requires_grad_()
            quantizer(x)[2].backward()
            grads.append(x.grad)
        torch.testing.assert_close(*grads)


def test_indices_of_a_map_or_of_single_tokens_give_a_cross_entropy_in_their_layout():
    x = vectors(2, 8, 3, 4)
    quantizer = made(accept_image_fmap=True, codebook_dim=4).eval()
    expected, indices, _ = quantizer(x)
    quantized, loss = quantizer(x, indices=indices)
    assert torch.equal(quantized, expected)
    flat = made(codebook_dim=4).eval()
    torch.testing.assert_close(flat(x.flatten(2).mT, indices=indices.flatten(1))[1], loss)
    tokens = vectors(6, 8)
    expected, indices, _ = flat(tokens)
    assert torch.equal(flat(tokens, indices=indices)[0], expected)


def test_an_in_place_step_needs_no_gradient_mode_and_nothing_at_all_no_step():
    quantizer = made(
        learnable_codebook=True,
        ema_update=False,
        in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    before = quantizer.codebook.detach().clone()
    quantizer(vectors(), mask=torch.zeros(2, 12, dtype=torch.bool))
    assert torch.equal(quantizer.codebook, before)
    with torch.no_grad():
        *_, terms = quantizer(vectors(), return_loss_breakdown=True)
    assert terms.inplace_optimize > 0
    assert not torch.equal(quantizer.codebook, before)
    quantizer.codebook = before
    assert torch.equal(quantizer.codebook, before)


def test_a_batch_without_a_valid_position_has_loss_zero():
    loss = made()(vectors(), mask=torch.zeros(2, 12, dtype=torch.bool))[2]
    assert loss == 0


def test_the_value_of_directional_reparametrisation_is_the_code():
    quantizer = made(directional_reparam=True, threshold_ema_dead_code=1e-6)
    x = vectors().requires_grad_()
    quantized, indices, loss = quantizer(x)
    assert torch.equal(quantized, quantizer.get_codes_from_indices(indices))
    assert loss == 0
    (quantized - vectors(seed=3)).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert quantizer._codebook.embed.grad.abs().sum() > 0


def test_the_noise_of_directional_reparametrisation_is_in_its_gradient():
    for variance, same in ((0.0, True), (0.1, False)):
        quantizer = made(directional_reparam=True, directional_reparam_variance=variance, threshold_ema_dead_code=1e-6)
        grads = []
        for _ in range(2):
            x = vectors().requires_grad_()
            (quantizer(x)[0] - vectors(seed=3)).square().sum().backward()
            grads.append(x.grad)
        assert torch.allclose(*grads) == same


def test_a_codebook_can_be_warmed_from_data():
    model = nn.Sequential(nn.Linear(5, 8), made(), nn.Identity())
    batches = [(vectors(2, 12, 5, seed=seed),) for seed in range(3)]
    for method in ("data", "kmeans"):
        assert codebook_warmup(model[:2], batches, method) == ["1"]
        rows = torch.cat([model[0](batch) for (batch,) in batches]).flatten(0, 1)
        error = torch.cdist(rows, model[1].codebook).amin(1).square().mean()
        assert error < 0.6 * rows.square().sum(1).mean()
        assert model[1].training
    frozen = made(freeze_codebook=True)
    before = frozen.codebook.clone()
    frozen.initialize_codebook(vectors(30, 8))
    assert torch.equal(frozen.codebook, before)
    with pytest.raises(ValueError, match="kmeans, data"):
        made().initialize_codebook(vectors(30, 8), "median")


class Calls(nn.Module):
    """A model that gives its quantizer further arguments."""

    def __init__(self, quantizer, *args, **kwargs):
        super().__init__()
        self.quantizer, self.args, self.kwargs = quantizer, args, kwargs

    def forward(self, x):
        return self.quantizer(x, *self.args, **self.kwargs)


@pytest.mark.parametrize("method", ["data", "kmeans"])
@pytest.mark.parametrize("given", ["mask", "lens", "position"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: made(heads=2, codebook_dim=4),
        lambda: ResidualVQ(dim=8, num_quantizers=2, codebook_size=16),
        lambda: GroupedResidualVQ(dim=8, groups=2, num_quantizers=2, codebook_size=16),
        lambda: HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 12), channel_first=False, kmeans_init=False),
    ],
)
def test_padding_does_not_reach_a_codebook_that_is_warmed(make, given, method):
    quantizer, lens = make(), torch.tensor([5, 9])
    mask = torch.arange(12) < lens[:, None]
    x = vectors().masked_fill(~mask[..., None], 1e3)
    takes_lens = isinstance(quantizer, (VectorQuantize, HierarchicalVQ))
    if given == "lens" and takes_lens:
        model = Calls(quantizer, lens=lens)
    elif given == "position" and not isinstance(quantizer, GroupedResidualVQ):
        model = Calls(quantizer, *[mask] if isinstance(quantizer, ResidualVQ) else [None, mask])
    else:
        model = Calls(quantizer, mask=mask)
    codebook_warmup(model, [x], method, 1)
    for name, value in quantizer.state_dict().items():
        if name.endswith(".embed"):
            assert value.abs().max() < 20, name
