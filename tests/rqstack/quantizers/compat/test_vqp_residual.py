"""ResidualVQ and GroupedResidualVQ: the examples of the README they come from, and what does not work there."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers import codebook_warmup
from rqstack.quantizers.compat.vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import UsageError


def small(**settings):
    torch.manual_seed(0)
    return ResidualVQ(**{"dim": 8, "num_quantizers": 3, "codebook_size": 16, **settings})


def test_readme_residual():
    residual_vq = ResidualVQ(dim=256, num_quantizers=8, codebook_size=1024)
    x = torch.randn(1, 1024, 256)
    quantized, indices, commit_loss = residual_vq(x)
    assert (quantized.shape, indices.shape, commit_loss.shape) == ((1, 1024, 256), (1, 1024, 8), (8,))
    quantized, indices, commit_loss, all_codes = residual_vq(x, return_all_codes=True)
    assert all_codes.shape == (8, 1, 1024, 256)
    quantized, indices, _, all_codes = residual_vq.eval()(x, return_all_codes=True)
    assert torch.equal(sum(all_codes), quantized)
    assert torch.equal(residual_vq.get_output_from_indices(indices), quantized)
    assert torch.equal(residual_vq.get_codes_from_indices(indices), all_codes)


def test_readme_shared_and_stochastic():
    residual_vq = ResidualVQ(
        dim=256,
        num_quantizers=8,
        codebook_size=1024,
        stochastic_sample_codes=True,
        sample_codebook_temp=0.1,
        shared_codebook=True,
    )
    quantized, indices, commit_loss = residual_vq(torch.randn(1, 1024, 256))
    assert (quantized.shape, indices.shape, commit_loss.shape) == ((1, 1024, 256), (1, 1024, 8), (8,))
    assert all(layer._codebook is residual_vq.layers[0]._codebook for layer in residual_vq.layers)


def test_readme_grouped():
    residual_vq = GroupedResidualVQ(dim=256, num_quantizers=8, groups=2, codebook_size=1024)
    x = torch.randn(1, 1024, 256)
    quantized, indices, commit_loss = residual_vq(x)
    assert (quantized.shape, indices.shape, commit_loss.shape) == ((1, 1024, 256), (2, 1, 1024, 8), (2, 8))
    quantized, indices, _, all_codes = residual_vq.eval()(x, return_all_codes=True)
    assert isinstance(all_codes, tuple)
    assert all_codes[0].shape == (8, 1, 1024, 128)
    assert torch.equal(residual_vq.get_output_from_indices(indices), quantized)
    assert residual_vq.codebooks.shape == (2, 8, 1024, 128)


def test_readme_kmeans():
    residual_vq = ResidualVQ(dim=256, codebook_size=256, num_quantizers=4, kmeans_init=True, kmeans_iters=10)
    x = torch.randn(1, 1024, 256)
    quantized, indices, commit_loss = residual_vq(x)
    assert (quantized.shape, indices.shape, commit_loss.shape) == ((1, 1024, 256), (1, 1024, 4), (4,))
    assert (quantized - x).square().mean() < 0.5


@pytest.mark.parametrize("settings", [{}, {"codebook_dim": 4}, {"beam_size": 3}, {"implicit_neural_codebook": True}])
def test_image_maps(settings):
    quantizer = small(accept_image_fmap=True, **settings)
    x = torch.randn(2, 8, 4, 5)
    for training in (True, False):
        before = [layer._codebook.embed.clone() for layer in quantizer.train(training).layers]
        quantized, indices, losses = quantizer(x)
        assert (quantized.shape, indices.shape, losses.shape) == (x.shape, (2, 4, 5, 3), (3,))
        after = quantizer.state_dict()
        quantizer.load_state_dict({**after, **{f"layers.{i}._codebook.embed": b for i, b in enumerate(before)}})
        torch.testing.assert_close(quantizer.get_output_from_indices(indices), quantized)
        assert quantizer.get_codes_from_indices(indices).shape == (3, 2, 4, 5, quantizer.codebook_dim)
        tokens = quantizer(x, return_all_codes=True)[3]
        assert tokens.shape == (3, 2, 4, 5, quantizer.codebook_dim)


def test_image_maps_are_sequences():
    image, sequence = small(accept_image_fmap=True).eval(), small().eval()
    x = torch.randn(2, 8, 4, 5)
    quantized, indices, _ = image(x)
    expected, expected_indices, _ = sequence(x.flatten(2).transpose(1, 2))
    assert torch.equal(indices.flatten(1, 2), expected_indices)
    assert torch.equal(quantized.flatten(2).transpose(1, 2), expected)


def test_grouped_image_maps():
    quantizer = GroupedResidualVQ(dim=8, groups=2, num_quantizers=3, codebook_size=16, accept_image_fmap=True).eval()
    x = torch.randn(2, 8, 4, 5)
    quantized, indices, losses = quantizer(x)
    assert (quantized.shape, indices.shape, losses.shape) == (x.shape, (2, 2, 4, 5, 3), (2, 3))
    assert torch.equal(quantizer.get_output_from_indices(indices), quantized)


@pytest.mark.parametrize("implicit", [False, True])
def test_cross_entropy_against_indices(implicit):
    """The sum over levels of -log softmax(-distance) at the given codes, on what those before leave over."""
    quantizer = small(implicit_neural_codebook=implicit).eval()
    x = torch.randn(2, 6, 8, requires_grad=True)
    indices = torch.randint(16, (2, 6, 3))
    quantized, loss = quantizer(x, indices=indices)
    assert quantized.shape == x.shape
    codes = quantizer.get_codes_from_indices(indices).detach()
    expected, total = 0.0, torch.zeros_like(x)
    for level in range(3):
        book = quantizer.codebooks[level]
        if implicit and level:
            book = quantizer.mlps[level - 1](book, total[:, :, None])
        distances = ((x - total)[:, :, None] - book).norm(dim=-1)
        expected = expected + F.cross_entropy(-distances.flatten(0, 1), indices[..., level].flatten())
        total = total + codes[level]
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    assert torch.autograd.grad(loss, x)[0].abs().sum() > 0
    own = quantizer(x)
    again, low = quantizer(x, indices=list(own[1]))
    torch.testing.assert_close(again, own[0])
    assert low < loss


def test_cross_entropy_of_groups_and_dropped_levels():
    quantizer = GroupedResidualVQ(dim=8, groups=2, num_quantizers=3, codebook_size=16).eval()
    x = torch.randn(2, 6, 8)
    quantized, indices, _ = quantizer(x)
    again, loss = quantizer(x, indices=indices)
    assert loss.shape == ()
    torch.testing.assert_close(again, quantized)
    with pytest.raises(UsageError, match="dropped levels"):
        quantizer(x, indices=indices.masked_fill(torch.arange(3) == 2, -1))


@pytest.mark.parametrize("where", ["constructor", "forward"])
@pytest.mark.parametrize("settings", [{}, {"shared_codebook": True, "threshold_ema_dead_code": 2}, {"beam_size": 2}])
def test_frozen_codebooks(where, settings):
    quantizer = small(freeze_codebook=where == "constructor", **settings)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    for _ in range(2):
        quantizer(torch.randn(2, 6, 8), freeze_codebook=where == "forward")
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_beams_of_batches_in_both_modes():
    quantizer = small(beam_size=4, eval_beam_size=8)
    x = torch.randn(3, 20, 8) * 0.3
    whole = quantizer.eval()(x)
    for index in range(3):
        assert torch.equal(quantizer(x[index : index + 1])[1], whole[1][index : index + 1])
    torch.testing.assert_close(quantizer.get_output_from_indices(whole[1]), whole[0])
    greedy = quantizer(x, beam_size=1)
    assert (whole[0] - x).square().mean() < (greedy[0] - x).square().mean()
    assert torch.equal(greedy[1], small().eval()(x)[1])
    before = [layer._codebook.cluster_size.clone() for layer in quantizer.train().layers]
    indices = quantizer(x)[1]
    for level, layer in enumerate(quantizer.layers):
        counts = indices[..., level].flatten().bincount(minlength=16)
        torch.testing.assert_close(layer._codebook.cluster_size[0], 0.8 * before[level][0] + 0.2 * counts)


def test_beam_losses_are_those_of_the_path_taken():
    quantizer = small(beam_size=3, commitment_weight=0.5)
    x = torch.randn(2, 6, 8)
    mask = torch.arange(6) < torch.tensor([[4], [2]])
    codebooks = quantizer.codebooks.clone()
    _, indices, losses = quantizer(x, mask=mask)
    assert (indices[~mask] == -1).all()
    total = torch.zeros_like(x)
    for level in range(3):
        total = total + codebooks[level][indices[..., level].clamp(min=0)]
        torch.testing.assert_close(losses[level], 0.5 * (x - total)[mask].square().mean())


@pytest.mark.parametrize("settings", [{}, {"beam_size": 3}, {"shared_codebook": True}, {"codebook_dim": 4}])
def test_a_masked_padded_input_counts_as_the_unpadded_one(settings):
    padded, alone = small(**settings), small(**settings)
    x = torch.randn(1, 6, 8)
    longer = torch.cat([x, torch.full((1, 3, 8), float("nan"))], 1)
    mask = torch.arange(9)[None] < 6
    quantized, indices, losses = padded(longer, mask=mask)
    expected, expected_indices, expected_losses = alone(x)
    assert torch.equal(indices[:, :6], expected_indices)
    torch.testing.assert_close(quantized[:, :6], expected)
    assert (quantized[:, 6:] == 0).all()
    torch.testing.assert_close(losses, expected_losses)
    for name, value in padded.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], msg=name)


def test_draws_of_beams_and_implicit_codebooks():
    """A beam of one draws like the plain search; implicit neural codebooks draw too."""
    for settings in ({}, {"use_cosine_sim": True}):
        frequencies = []
        for width in (1, 2):  # the first level of a beam of 1 does not pass through the beam search
            quantizer = small(num_quantizers=1, codebook_size=4, stochastic_sample_codes=True, **settings)
            x = F.normalize(torch.ones(1, 20_000, 8), dim=-1)
            book = x[0, 0] + torch.tensor([[0.02], [0.3], [0.8], [2.0]]) * torch.randn(4, 8)
            quantizer.layers[0].codebook = F.normalize(book, dim=-1) if settings else book
            codes = quantizer(x, freeze_codebook=True, beam_size=width)[1]
            frequencies.append(codes.flatten().bincount(minlength=4) / 20_000)
        torch.testing.assert_close(*frequencies, atol=0.02, rtol=0)
    implicit = small(implicit_neural_codebook=True, stochastic_sample_codes=True)
    x = torch.randn(2, 6, 8)
    assert not torch.equal(implicit(x)[1], implicit(x)[1])
    assert torch.equal(implicit(x, sample_codebook_temp=0.0)[1], implicit.eval()(x)[1])


def test_quantize_dropout():
    quantizer = small(quantize_dropout=True, num_quantizers=4)
    x = torch.randn(2, 6, 8)
    quantized, indices, losses = quantizer(x, rand_quantize_dropout_fixed_seed=1)
    kept = int((indices[0, 0] >= 0).sum())
    assert 0 < kept < 4
    assert (indices[..., kept:] == -1).all()
    assert (losses[kept:] == 0).all()
    assert quantizer.eval()(x)[1].min() >= 0
    coarse = quantizer.get_output_from_indices(indices[..., :kept])
    assert torch.equal(coarse, quantizer.get_output_from_indices(indices))
    with pytest.raises(UsageError, match="quantize_dropout=True"):
        small().get_codes_from_indices(indices[..., :2])


@pytest.mark.parametrize("kind", ["kmeans_init", "warm-up"])
@pytest.mark.parametrize(
    "settings", [{}, {"beam_size": 3}, {"implicit_neural_codebook": True}, {"shared_codebook": True}]
)
def test_kmeans_start_and_warm_up(settings, kind):
    torch.manual_seed(1)
    x = torch.randn(4, 100, 8)
    if kind == "warm-up":
        quantizer = small(**settings)
        assert codebook_warmup(quantizer, [x], "kmeans", num_batches=1) == [""]
    else:
        quantizer = small(kmeans_init=True, **settings)
        quantizer(x, freeze_codebook=True)
    nearest = torch.cdist(x.flatten(0, 1), quantizer.codebooks[0]).min(1).values
    assert nearest.square().mean() / 8 < (0.75 if settings == {"shared_codebook": True} else 0.62)
    if "implicit_neural_codebook" not in settings:
        assert (quantizer.eval()(x)[0] - x).square().mean() < 0.42


@pytest.mark.parametrize(("settings", "num_same"), [({"beam_size": 3}, 3), ({"implicit_neural_codebook": True}, 2)])
def test_a_search_over_all_levels_starts_from_the_same_residuals(settings, num_same):
    torch.manual_seed(1)
    x = torch.randn(4, 100, 8)
    plain, searched = small(kmeans_init=True), small(kmeans_init=True, **settings)
    for quantizer in (plain, searched):
        quantizer(x, freeze_codebook=True)
    torch.testing.assert_close(searched.codebooks[:num_same], plain.codebooks[:num_same])
    left = [x.flatten(0, 1)]
    for codebook in plain.codebooks[:2]:
        left.append(left[-1] - codebook[torch.cdist(left[-1], codebook).argmin(1)])
    for residual, codebook in zip(left, plain.codebooks, strict=True):
        assert torch.cdist(residual, codebook).min(1).values.square().mean() < 0.75 * residual.square().sum(1).mean()


def test_levels_of_several_sizes():
    quantizer = small(codebook_size=(16, 4, 8), num_quantizers=None).eval()
    assert [tuple(book.shape) for book in quantizer.codebooks] == [(16, 8), (4, 8), (8, 8)]
    assert isinstance(quantizer.codebooks, tuple)
    assert (quantizer.codebook_size, quantizer.codebook_sizes) == (16, (16, 4, 8))
    quantized, indices, _ = quantizer(torch.randn(2, 50, 8))
    assert [int(indices[..., level].max()) < size for level, size in enumerate((16, 4, 8))] == [True] * 3
    assert torch.equal(quantizer.get_output_from_indices(indices), quantized)
    grouped = GroupedResidualVQ(dim=8, groups=2, codebook_size=(16, 4))
    assert isinstance(grouped.codebooks, tuple)


def test_a_shared_codebook_takes_one_step_from_what_all_levels_saw():
    """Every level searches the codebook of before; the averages take the levels in one after another."""
    quantizer = small(shared_codebook=True)
    book = quantizer.layers[0]._codebook
    before, size, sums = (t[0].clone() for t in (book.embed, book.cluster_size, book.embed_avg))
    x = torch.randn(2, 50, 8)
    _, indices, _ = quantizer(x)
    residual = x.flatten(0, 1)
    for level in range(3):
        codes = torch.cdist(residual, before).argmin(1)
        assert torch.equal(codes, indices[..., level].flatten())
        size = 0.8 * size + 0.2 * codes.bincount(minlength=16)
        sums = 0.8 * sums + 0.2 * torch.zeros_like(before).index_add(0, codes, residual)
        residual = residual - before[codes]
    torch.testing.assert_close(book.cluster_size[0], size)
    torch.testing.assert_close(book.embed_avg[0], sums)
    torch.testing.assert_close(book.embed[0], sums / size[:, None], rtol=1e-4, atol=1e-5)


def test_diveq():
    """The codebook learns through the output; the value is the sum of the codes, the noise is in the gradient alone."""
    quantizer = small(diveq=True)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    x = torch.randn(2, 6, 8, requires_grad=True)
    quantized, indices, losses = quantizer(x)
    torch.testing.assert_close(quantized, quantizer.get_output_from_indices(indices))
    assert (losses == 0).all()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    grads = torch.autograd.grad(quantized.square().sum(), [x, *quantizer.parameters()])
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_alternating_optimizer_of_a_shared_codebook():
    quantizer = small(
        shared_codebook=True,
        learnable_codebook=True,
        ema_update=False,
        in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.5),
    )
    before = quantizer.codebooks[0].clone()
    quantizer(torch.randn(2, 6, 8))
    assert not torch.equal(quantizer.codebooks[0], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision(dtype):
    quantizer = small().eval()
    x = torch.randn(2, 6, 8).to(dtype)
    quantized, indices, losses = quantizer(x)
    assert quantized.dtype == dtype
    assert torch.equal(indices, quantizer(x.float())[1])
    assert quantizer.train()(x)[2].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 2}, "heads must be 1"),
        ({"num_quantizers": None}, "give num_quantizers"),
        ({"codebook_size": (4, 5), "shared_codebook": True, "num_quantizers": 2}, "needs one size"),
        ({"codebook_size": (4, 5)}, "there are 2 sizes"),
        ({"eval_beam_size": 2}, "eval_beam_size needs beam_size"),
        ({"beam_score_quantizer_weights": [1.0, -1.0, 1.0]}, "none negative"),
        ({"quantize_dropout": True, "quantize_dropout_cutoff_index": 3}, "must be in 0 .. 2"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UsageError, match=message):
        small(**wrong)
    with pytest.raises(UsageError, match="does not split evenly"):
        GroupedResidualVQ(dim=8, groups=3, num_quantizers=2, codebook_size=4)
