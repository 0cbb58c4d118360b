"""The laws of the residual quantizer."""

import pytest
import torch
from torch import nn

from rqstack.quantizers import NullQuantizer, ResidualQuantizer
from rqvae.bottleneck import build_quantizer

SETTINGS = [
    {"num_codes": (16, 16, 16), "shared": True},
    {"num_codes": (16, 8, 12)},
    {"num_codes": (16, 16), "shared": True, "patch": (2, 1), "restart_unused_codes": True},
    {"num_codes": (5,), "decay": 0.5},
]


def make(**settings):
    return ResidualQuantizer(6, **settings)


def state(quantizer):
    return {name: value.clone() for name, value in quantizer.state_dict().items()}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_is_what_the_codes_decode_to(settings, training, dtype):
    quantizer = make(**settings).train(training)
    z = torch.randn(2, 4, 4, 6).to(dtype).requires_grad_()
    out = quantizer(z)
    assert out.quantized.dtype == z.dtype
    assert out.quantized.shape == z.shape
    assert torch.equal(out.quantized, quantizer.decode(out.codes).to(dtype))
    rows, columns = quantizer.patch
    assert out.codes.shape == (2, 4 // rows, 4 // columns, len(quantizer.num_codes))
    assert out.codes.dtype == torch.int64
    assert (out.codes >= 0).all()
    assert (out.codes < torch.tensor(quantizer.num_codes)).all()
    assert out.loss.dtype == torch.float32
    assert torch.equal(sum(out.terms.values()), out.loss)
    vectors = quantizer.embed_with_depth(out.codes)
    assert vectors.shape == (*out.codes.shape, 6 * rows * columns)
    depths = sum(quantizer.decode_depth(out.codes, d) for d in range(len(quantizer.num_codes)))
    torch.testing.assert_close(depths, quantizer.decode(out.codes))


@pytest.mark.parametrize("settings", SETTINGS)
def test_input_precision_and_autocast_change_nothing(settings):
    quantizer = make(**settings).eval()
    z = torch.randn(2, 4, 4, 6).bfloat16()
    expected = quantizer(z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [quantizer(z), quantizer(z.float())]
        soft = quantizer.soft_codes(z)[0]
    for out in outs:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.loss, expected.loss)
    assert torch.equal(soft, quantizer.soft_codes(z.float())[0])


def test_every_further_code_is_the_nearest_to_what_is_left():
    quantizer = make(num_codes=(16, 16, 16), shared=True).eval()
    z = torch.randn(3, 6)
    codes = quantizer(z).codes
    left = z.clone()
    for depth in range(3):
        distance = (left[:, None] - quantizer.codebook(depth)).square().sum(-1)
        assert torch.equal(codes[:, depth], distance.argmin(1))
        left = left - quantizer.codebook(depth)[codes[:, depth]]


def test_gradients_in_closed_form():
    """Identity through the output; the commitment loss pulls z to the mean of the running sums."""
    quantizer = make(num_codes=(16, 8, 12)).eval()
    z = torch.randn(5, 6, requires_grad=True)
    out = quantizer(z)
    upstream = torch.randn_like(z)
    (through,) = torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)
    assert torch.equal(through, upstream)
    (commit,) = torch.autograd.grad(out.loss, z)
    sums = quantizer.embed_with_depth(out.codes).cumsum(-2)
    torch.testing.assert_close(commit, 2 * (z.detach() - sums.mean(-2)) / z.numel())
    torch.testing.assert_close(out.loss.detach(), (z.detach()[:, None] - sums).square().mean())


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("update", ["deferred", "per_depth"])
@pytest.mark.parametrize("padding_value", [0.0, float("nan")])
def test_padding_with_a_mask_changes_nothing(restart, update, padding_value):
    plain = make(num_codes=(16, 8), restart_unused_codes=restart, codebook_update=update)
    padded = make(num_codes=(16, 8), restart_unused_codes=restart, codebook_update=update)
    padded.load_state_dict(plain.state_dict())
    z, padding = torch.randn(3, 5, 6), torch.full((3, 4, 6), padding_value)
    mask = torch.arange(9).expand(3, 9) < 5
    one = plain(z)
    two = padded(torch.cat([z, padding], 1).requires_grad_(), mask)
    for quantizer in (plain, padded):
        quantizer.update_codebook()
    assert torch.equal(one.codes, two.codes[:, :5])
    torch.testing.assert_close(one.loss, two.loss.detach())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, padded.state_dict()[name]), name


def test_deferred_changes_the_codebook_only_when_told():
    quantizer = make(num_codes=(16, 16), shared=True)
    before = state(quantizer)
    quantizer(torch.randn(20, 6))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    quantizer.update_codebook()
    after = state(quantizer)
    assert not torch.equal(after["codebooks.0.weight"], before["codebooks.0.weight"])
    assert after["codebooks.0.num_updates"] == 1
    quantizer.update_codebook()
    assert all(torch.equal(value, after[name]) for name, value in quantizer.state_dict().items()), "nothing gathered"
    quantizer(torch.randn(20, 6))
    quantizer.discard_codebook_update()
    quantizer.update_codebook()
    assert all(torch.equal(value, after[name]) for name, value in quantizer.state_dict().items()), "discarded"


@pytest.mark.parametrize("shared", [False, True])
def test_deferred_micro_batches_equal_the_whole_batch(shared):
    z = torch.randn(12, 4, 6)
    settings = {"num_codes": (16, 16), "shared": shared, "restart_unused_codes": True}
    whole, parts = make(**settings), make(**settings)
    parts.load_state_dict(whole.state_dict())
    whole(z)
    for part in z.split([5, 3, 4]):
        parts(part)
    for quantizer in (whole, parts):
        quantizer.update_codebook()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, msg=name)


def test_per_depth_updates_at_every_depth_of_every_train_forward():
    quantizer = make(num_codes=(16, 16, 16), shared=True, codebook_update="per_depth")
    with torch.no_grad():
        quantizer(torch.randn(20, 6))
    assert quantizer.codebooks[0].num_updates == 3
    quantizer.eval()(torch.randn(20, 6))
    quantizer.update_codebook()
    assert quantizer.codebooks[0].num_updates == 3


@pytest.mark.parametrize("update", ["deferred", "per_depth"])
def test_codes_and_targets_never_change_the_codebook(update):
    quantizer = make(num_codes=(16, 8), codebook_update=update)
    before = state(quantizer)
    quantizer.targets(torch.randn(20, 6), stochastic=True)
    quantizer.soft_codes(torch.randn(20, 6))
    quantizer.update_codebook()
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_one_bad_vector_does_not_poison_the_codebook():
    quantizer = make(num_codes=(16, 16), shared=True, restart_unused_codes=True)
    z = torch.randn(20, 6)
    z[3, 2], z[7] = float("nan"), float("inf")
    out = quantizer(z)
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    assert (out.codes < 16).all()
    assert (out.codes >= 0).all()


def test_soft_codes_follow_the_drawn_path():
    quantizer = make(num_codes=(16, 8), patch=(2, 2)).eval()
    z = torch.randn(2, 4, 4, 6)
    hard = quantizer(z).codes
    probs, codes = quantizer.soft_codes(z, temp=0.3)
    assert torch.equal(codes, hard)
    assert probs.shape == (2, 2, 2, 2, 16)
    assert (probs[..., 1, 8:] == 0).all()
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 2, 2, 2))
    residual, drawn = quantizer.targets(z, temp=5.0, stochastic=True, generator=torch.Generator().manual_seed(0))
    again = quantizer.soft_codes(z, temp=5.0, stochastic=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again[1])
    assert not torch.equal(drawn, hard)
    step = quantizer.embed_with_depth(drawn)[..., 0, :]
    torch.testing.assert_close(residual[..., 1, :], residual[..., 0, :] - step)
    expected = (-(residual[..., 1, None, :] - quantizer.codebook(1)).square().sum(-1) / 5.0).softmax(-1)
    torch.testing.assert_close(again[0][..., 1, :8], expected)


def test_space_to_depth_joins_neighbours():
    """With a codebook that holds the joined vectors, quantization is lossless: every latent comes back in its place."""
    quantizer = ResidualQuantizer(2, [6], patch=(2, 3)).eval()
    z = torch.randn(1, 4, 9, 2)
    blocks = [z[0, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].reshape(-1) for i in range(2) for j in range(3)]
    quantizer.codebooks[0].weight.copy_(torch.stack(blocks))
    out = quantizer(z)
    assert torch.equal(out.quantized, z)
    assert out.codes.flatten().tolist() == list(range(6))


def test_wrong_settings_and_codes():
    with pytest.raises(ValueError, match="codebook_update 'x' is not one of per_depth, deferred"):
        make(num_codes=(4,), codebook_update="x")
    with pytest.raises(ValueError, match="decay has 1 values for 2 depths"):
        make(num_codes=(4, 4), decay=[0.9])
    with pytest.raises(ValueError, match="shared codebook needs one size"):
        make(num_codes=(4, 5), shared=True)
    quantizer = make(num_codes=(4, 4))
    for call in (quantizer.decode, quantizer.embed_with_depth, lambda codes: quantizer.decode_depth(codes, 0)):
        with pytest.raises(ValueError, match="codes have 3 depths"):
            call(torch.zeros(2, 3, dtype=torch.int64))


def test_null_quantizer_passes_everything_through():
    quantizer = NullQuantizer()
    z = torch.randn(2, 3, 4)
    out = quantizer(z)
    assert out.quantized is z
    assert out.codes.shape == (2, 3, 0)
    assert out.codes.dtype == torch.int64
    assert out.loss == 0
    assert out.terms == {}
    quantizer.update_codebook()
    quantizer.discard_codebook_update()
    for call in (quantizer.decode, quantizer.embed_with_depth, quantizer.codebook):
        with pytest.raises(ValueError, match="bottleneck_type 'none'"):
            call(out.codes)


def test_table_names_its_choices():
    class Config:
        bottleneck_type = "vqq"

    with pytest.raises(ValueError, match="bottleneck_type 'vqq' is not one of rq, none, vq, fsq"):
        build_quantizer(Config())


def test_buffers_only():
    quantizer = make(num_codes=(4, 4))
    assert isinstance(quantizer.codebooks, nn.ModuleList)
    assert not list(quantizer.parameters())
    assert len(make(num_codes=(4, 4), shared=True).codebooks) == 1
