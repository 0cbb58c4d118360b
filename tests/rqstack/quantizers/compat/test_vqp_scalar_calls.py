"""The scalar quantizers of the drop-in: helper methods, loss terms, what is returned beside vectors and indices."""

import io

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch import (
    FSP,
    FSQ,
    LFQ,
    BinaryMapper,
    LatentQuantize,
    ResidualFSQ,
    ResidualLFQ,
    build_cdf_act,
)


def test_fsq_helpers():
    quantizer = FSQ([8, 5, 4])
    indices = torch.arange(160, dtype=torch.int32)
    book = quantizer.implicit_codebook
    assert torch.equal(quantizer.codes_to_indices(book), indices)
    digits = quantizer.indices_to_level_indices(indices)
    assert torch.equal(digits, torch.stack([indices % 8, indices // 8 % 5, indices // 40], -1))
    assert quantizer._levels.tolist() == [8, 5, 4]
    assert torch.equal((digits * quantizer._basis).sum(-1), indices)
    x = torch.randn(2, 7, 3, requires_grad=True)
    assert torch.equal(quantizer.quantize(x), quantizer(x)[0])
    with pytest.raises(ValueError, match="channels, the quantizer takes 3"):
        quantizer(torch.randn(2, 7, 4))
    with pytest.raises(AssertionError, match="preserve_symmetry"):
        FSQ([2, 5])


def test_fsq_bounds_and_noise():
    """Values of the two grids for scalars (..., C); noise moves a share of them, within [-1, 1], in train mode only."""
    quantizer = FSQ([4, 5], preserve_symmetry=True, noise_dropout=0.5)
    z = torch.linspace(-3, 3, 61)[:, None].expand(61, 2).clone().requires_grad_()
    symmetric, plain = quantizer.symmetry_preserving_bound(z), quantizer.bound(z)
    assert torch.equal(symmetric, quantizer.quantize(z))
    torch.testing.assert_close(symmetric[:, 0].unique(), torch.tensor([-1, -1 / 3, 1 / 3, 1]))
    assert torch.equal(plain[:, 0].unique(), torch.tensor([-1, -0.5, 0, 0.5]))
    assert torch.equal(plain, FSQ([4, 5]).quantize(z))
    assert torch.equal(quantizer.bound(z, hard_clamp=True), FSQ([4, 5], bound_hard_clamp=True).quantize(z))
    wide = quantizer.bound(z, eps=0.9)
    assert (wide != plain).any()
    (gradient,) = torch.autograd.grad(symmetric.sum(), z)
    torch.testing.assert_close(gradient, 1 - z.detach().tanh() ** 2)
    values = symmetric.detach()
    noisy = quantizer.maybe_apply_noise(values)
    assert 0.3 < (noisy != values).float().mean() < 0.6
    assert (noisy - values).abs().max() <= 0.5
    assert noisy.abs().max() <= 1
    assert quantizer.eval().maybe_apply_noise(values) is values


@pytest.mark.parametrize(
    "make",
    [
        lambda: FSQ([5, 4, 3, 8]),
        lambda: FSP([5, 4, 3, 8], act_name="normal"),
        lambda: LFQ(dim=4),
        lambda: LatentQuantize([5, 4, 3, 8], 4),
        lambda: ResidualFSQ(levels=[5, 4, 3, 8], num_quantizers=3),
        lambda: ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3),
        lambda: BinaryMapper(4),
    ],
)
def test_no_vectors_and_whole_modules_in_a_file(make):
    quantizer, x = make(), torch.randn(2, 9, 4)
    for training in (True, False):
        quantized, *rest = quantizer.train(training)(x[:0])
        assert quantized.shape[:2] == (0, 9)
        assert all(part.isfinite().all() for part in rest if torch.is_tensor(part))
    file = io.BytesIO()
    torch.save(quantizer, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    torch.manual_seed(0)
    expected = quantizer(x)
    torch.manual_seed(0)
    assert torch.equal(again(x)[0], expected[0])


def test_lfq_loss_and_breakdown():
    quantizer = LFQ(dim=4, commitment_loss_weight=0.5, diversity_gamma=2.0)
    x = torch.randn(2, 30, 4, requires_grad=True)
    result, parts = quantizer(x, return_loss_breakdown=True)
    total = 0.1 * (parts.per_sample_entropy - 2 * parts.batch_entropy) + 0.5 * parts.commitment
    torch.testing.assert_close(result.entropy_aux_loss, total)
    mask = torch.arange(30).expand(2, 30) < 20
    torch.testing.assert_close(quantizer(x, mask=mask)[2], quantizer(x[:, :20])[2])
    result, parts = quantizer.eval()(x, return_loss_breakdown=True)
    assert result.entropy_aux_loss == 0
    assert not result.quantized.requires_grad
    assert list(parts) == [0, 0, 0]
    assert quantizer(torch.zeros(1, 1, 4))[1].item() == 0
    with pytest.raises(ValueError, match="must be a power of 2, got 1000; try 1024"):
        LFQ(codebook_size=1000)


def test_fsp_results():
    quantizer = FSP([8, 5, 5, 5], quantize_rate=0.5)
    x = torch.randn(2, 30, 4, requires_grad=True)
    quantized, indices, loss, info = quantizer(x)
    assert quantized.shape == x.shape
    assert indices.dtype == torch.int32
    assert info["level_indices"].is_floating_point()
    assert torch.equal(quantizer.level_indices_to_indices(info["level_indices"]), indices)
    assert torch.equal(quantizer.indices_to_level_indices(indices), info["level_indices"].int())
    assert 0.5 < info["p_accept_prob"] <= 1
    assert list(info["norm_info"]) == ["mean", "variance", "skewness", "kurtosis"]
    assert loss.requires_grad
    quantizer.eval()
    assert torch.equal(quantizer.indices_to_codes(indices), quantizer(x)[0])
    quantizer.quantize_rate = 1.0
    assert "p_accept_prob" not in quantizer.train()(x)[3]
    forward, inverse = build_cdf_act("laplace")
    torch.testing.assert_close(inverse(forward(x)), x)
    act = torch.rand(3, 7, 4, requires_grad=True)
    centres, bins = quantizer.quantize_act_value(act, eps=1e-6)
    levels = torch.tensor([8, 5, 5, 5])
    assert torch.equal(bins, (act * levels).floor())
    torch.testing.assert_close(centres, (bins + 0.5) / levels)
    assert torch.equal(torch.autograd.grad(centres.sum(), act)[0], torch.ones_like(act))
    assert torch.equal(quantizer._levels, levels.int())
    with pytest.raises(ValueError, match="act_name 'relu' is not one of tanh, sigmoid"):
        FSP([8, 5], act_name="relu")


def test_binary_mapper_results():
    mapper = BinaryMapper(bits=8)
    logits = torch.randn(3, 4, 8, requires_grad=True)
    one_hot, indices, loss = mapper(logits, return_indices=True, reduce_aux_kl_loss=False)
    assert one_hot.shape == (3, 4, 256)
    assert indices.shape == loss.shape == (3, 4)
    assert torch.equal(one_hot.argmax(-1), indices)
    joint = mapper.log_prob(logits, indices=indices)
    torch.testing.assert_close(joint, mapper.log_prob(logits, one_hot=one_hot))
    torch.testing.assert_close(joint, mapper.log_prob(logits, indices=indices, sum_bits=False).sum(-1))
    (gradient,) = torch.autograd.grad(one_hot[..., 3].sum(), logits)
    three = torch.full((3, 4), 3)
    (expected,) = torch.autograd.grad(mapper.log_prob(logits, indices=three).exp().sum(), logits)
    torch.testing.assert_close(gradient, expected)
    mapper.eval()
    first, second = (mapper(logits, deterministic=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(mapper.codes[first.argmax(-1)], logits > 0)
    assert mapper(logits)[1] == 0
