"""SimVQ and ResidualSimVQ as vector-quantize-pytorch offers them."""

import inspect

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat.vector_quantize_pytorch.level_dropout import last_level_kept
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_sim_vq import ResidualSimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.sim_vq import SimVQ


def _mapped(dim=12, **options):
    transform = nn.Sequential(nn.Linear(dim, 20), nn.ReLU(), nn.Linear(20, dim))
    return SimVQ(dim=dim, codebook_size=32, codebook_transform=transform, **options)


@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("shape", [(2,), (2, 7), (2, 4, 5), (2, 3, 4, 5)])
def test_shapes_and_codes(shape, channel_first):
    quantizer = _mapped(channel_first=channel_first)
    x = torch.randn(*shape, 12)
    x = x.movedim(-1, 1) if channel_first else x
    quantized, indices, loss = quantizer(x)
    assert quantized.shape == x.shape and indices.shape == shape and loss.shape == ()
    assert indices.dtype == torch.int64
    assert torch.equal(quantizer.indices_to_codes(indices), quantized)


@pytest.mark.parametrize("training", [True, False])
def test_loss_is_there_with_gradient_in_both_modes(training):
    quantizer = SimVQ(6, 16, input_to_quantize_commit_loss_weight=0.5, commitment_weight=3.0).train(training)
    x = torch.randn(4, 5, 6, requires_grad=True)
    _, indices, loss = quantizer(x)
    book = quantizer.code_transform(quantizer.frozen_codebook)
    assert torch.equal(indices, torch.cdist(x.detach(), book[None]).argmin(-1))
    error = (x - book[indices]).detach()
    torch.testing.assert_close(loss, 3 * 1.5 * error.square().mean())
    loss.backward()
    torch.testing.assert_close(x.grad, 3 * 0.5 * 2 * error / error.numel())
    expected = -3 * 2 / error.numel() * error.flatten(0, 1).T @ quantizer.frozen_codebook[indices.flatten()]
    torch.testing.assert_close(quantizer.code_transform.weight.grad, expected)


def test_estimators_change_only_the_gradient():
    rotating, plain = SimVQ(6, 16), SimVQ(6, 16, rotation_trick=False)
    plain.load_state_dict(rotating.state_dict())
    x, upstream = torch.randn(9, 6, requires_grad=True), torch.randn(9, 6)
    outs = [quantizer(x)[0] for quantizer in (rotating, plain)]
    assert torch.equal(*outs)
    turned, passed = (torch.autograd.grad(out, x, upstream)[0] for out in outs)
    assert torch.equal(passed, upstream) and not torch.allclose(turned, upstream)


def test_init_fn_and_frozen_dim():
    quantizer = SimVQ(6, 16, frozen_codebook_dim=3, init_fn=lambda book: book.sign())
    assert quantizer.frozen_codebook.shape == (16, 3) and quantizer.frozen_codebook.abs().eq(1).all()
    assert quantizer.codebook.shape == (16, 6) and quantizer.codebook_dim == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_arithmetic_is_at_least_fp32(dtype):
    quantizer = SimVQ(6, 64)
    x = torch.randn(3, 11, 6).to(dtype)
    quantized, indices, loss = quantizer(x)
    assert quantized.dtype == dtype
    assert torch.equal(indices, quantizer(x.float())[1])
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x)[1], indices)


def test_a_wrong_input_is_named():
    with pytest.raises(ValueError, match="input has 5 channels; the quantizer takes dim 6"):
        SimVQ(6, 16)(torch.randn(2, 5))


@pytest.mark.parametrize("channel_first", [False, True])
@pytest.mark.parametrize("grid", [(7,), (4, 5)])
def test_residual_levels(grid, channel_first):
    quantizer = ResidualSimVQ(dim=8, num_quantizers=3, codebook_size=16, channel_first=channel_first)
    x = torch.randn(2, *grid, 8)
    x = x.movedim(-1, 1) if channel_first else x
    quantized, indices, losses, codes = quantizer(x, return_all_codes=True)
    assert quantized.shape == x.shape and indices.shape == (2, *grid, 3) and losses.shape == (3,)
    assert codes.shape == (3, *x.shape)
    torch.testing.assert_close(codes.sum(0), quantized)
    torch.testing.assert_close(quantizer.get_output_from_indices(indices), quantized)
    residual = x - codes[0]
    assert torch.equal(quantizer.layers[1](residual)[1], indices[..., 1])
    assert quantizer.codebooks.shape == (3, 16, 8)
    assert (quantizer.codebook_size, quantizer.codebook_dim) == (16, 8)


@pytest.mark.parametrize("channel_first", [False, True])
def test_residual_dropout(channel_first):
    quantizer = ResidualSimVQ(
        dim=8,
        num_quantizers=6,
        codebook_size=16,
        quantize_dropout=True,
        quantize_dropout_cutoff_index=1,
        quantize_dropout_multiple_of=2,
        channel_first=channel_first,
    )
    x = torch.randn(2, 8, 4, 5) if channel_first else torch.randn(2, 4, 5, 8)
    quantized, indices, losses = quantizer(x, rand_quantize_dropout_fixed_seed=3)
    kept = last_level_kept(6, 1, 2, 3) + 1
    assert 0 < kept < 6 and kept % 2 == 0
    assert (indices[..., :kept] >= 0).all() and (indices[..., kept:] == -1).all()
    assert (losses[:kept] > 0).all() and (losses[kept:] == 0).all()
    torch.testing.assert_close(quantizer.get_output_from_indices(indices), quantized)
    torch.testing.assert_close(quantizer.get_output_from_indices(indices[..., :kept]), quantized)
    assert (quantizer.eval()(x)[1] >= 0).all()


def test_dropout_keeps_every_number_of_levels():
    kept = {last_level_kept(4, 1, seed=seed) for seed in range(50)}
    assert kept == {1, 2, 3}


def test_residual_wrong_calls():
    with pytest.raises(ValueError, match="heads must be 1"):
        ResidualSimVQ(dim=8, num_quantizers=2, codebook_size=16, heads=2)
    with pytest.raises(ValueError, match="cutoff_index must be in 0 .. 1, got 2"):
        ResidualSimVQ(dim=8, num_quantizers=2, codebook_size=16, quantize_dropout=True, quantize_dropout_cutoff_index=2)
    quantizer = ResidualSimVQ(dim=8, num_quantizers=2, codebook_size=16)
    with pytest.raises(ValueError, match="indices have 1 levels of 2; fewer need quantize_dropout"):
        quantizer.get_output_from_indices(torch.zeros(1, 4, 1, dtype=torch.int64))


def test_one_random_stream_builds_the_codebook():
    torch.manual_seed(5)
    expected = torch.randn(16, 6) * 6**-0.5
    torch.manual_seed(5)
    assert torch.equal(SimVQ(6, 16).frozen_codebook, expected)
    assert "frozen_codebook" not in dict(SimVQ(6, 16).named_parameters())
    assert list(inspect.signature(SimVQ).parameters)[:3] == ["dim", "codebook_size", "codebook_transform"]
