"""Every stage-1 tensor of the reference sets: evaluation, training forward, codebook updates, restart, one GAN step."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.published_layout import ours_from_published
from rqstack.quantizers import EMACodebook, RestartRule
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqvae import RQVAE, load_rqvae
from rqvae.losses.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from rqvae.losses.discriminator import PatchDiscriminator
from rqvae.model import count_parameters
from tests.rqvae.published_state import published_state

SETS = ["rqvae-shared", "rqvae-chmult", "rqvae-deep"]
BUFFERS = ("weight", "cluster_size_ema", "embed_ema")


class Case:
    """A reference set, its model, and a comparison that counts which tensors were checked."""

    def __init__(self, golden_set):
        self.golden = golden_set
        self.io = golden_set.io
        self.model = load_rqvae(golden_set.path / "model.pt")

    def same(self, name, actual, atol):
        expected = self.io[name]
        assert actual.shape == expected.shape, name
        torch.testing.assert_close(actual.detach(), expected, atol=atol, rtol=0, msg=lambda m: f"{name}: {m}")

    def exact(self, name, actual):
        assert actual.dtype == self.io[name].dtype, name
        assert torch.equal(actual, self.io[name]), name


@pytest.fixture(params=SETS)
def case(request, golden):
    return Case(golden(request.param))


@pytest.fixture
def shared(golden):
    return Case(golden("rqvae-shared"))


def test_eval_forward(case):
    x = case.io["x"]
    with torch.no_grad():
        recon, out = case.model(x)
        case.same("eval.z_e", case.model.encode(x), 1e-5)
    case.exact("eval.codes", out.codes)
    case.same("eval.z_q", out.quantized, 2e-6)
    case.same("eval.recon", recon, 2e-5)
    case.same("eval.commitment_loss", out.loss, 2e-7)
    case.same("eval.loss_latent", out.terms["commitment"], 2e-7)
    loss_recon = F.mse_loss(recon, x)
    case.same("eval.loss_recon", loss_recon, 1e-6)
    case.same("eval.loss_total", loss_recon + case.model.config.latent_loss_weight * out.loss, 1e-6)
    batch, channels = x.shape[:2]
    case.same("eval.valid_loss_recon", loss_recon * batch * channels, 5e-6)
    case.same("eval.valid_loss_latent", out.loss * batch, 5e-7)
    total = loss_recon * batch * channels + case.model.config.latent_loss_weight * out.loss * batch
    case.same("eval.valid_loss_total", total, 5e-6)


def test_codes_to_vectors_and_images(case):
    model, codes = case.model, case.io["eval.codes"]
    case.exact("eval.codes", model.get_codes(case.io["x"]))
    case.same("emb.embed_code", model.embed_code(codes), 2e-6)
    case.same("dec.random_recon", model.decode_code(case.io["dec.random_codes"]), 1e-5)
    if "dec.decode_code" in case.io:
        vectors = model.embed_code_with_depth(codes[:1])
        case.same("emb.embed_code_with_depth", vectors, 2e-6)
        case.same("eval.quant_list", vectors.cumsum(-2).movedim(-2, 0), 2e-6)
        case.same("dec.decode_code", model.decode_code(codes), 1e-5)
        for kind in ("select", "add"):
            parts = [model.decode_partial_code(codes[:1], i, kind) for i in range(codes.shape[-1])]
            case.same(f"dec.partial_{kind}", torch.stack(parts), 2e-5)


def test_soft_codes(shared):
    probs, codes = shared.model.get_soft_codes(shared.io["x"], temp=0.5)
    shared.same("soft.probs_temp0.5", probs, 1e-5)
    shared.exact("soft.codes", codes)


def test_averaged_weights(shared):
    model = load_rqvae(shared.golden.path / "model.pt", ema=True)
    with torch.no_grad():
        recon, out = model(shared.io["x"])
    shared.exact("ema.codes", out.codes)
    shared.same("ema.recon", recon, 1e-5)
    shared.same("ema.commitment_loss", out.loss, 2e-7)


def test_train_forward_gradients_and_codebook(shared):
    model, book = shared.model.train(), shared.model.quantizer.codebooks[0]
    for name in BUFFERS:
        before = shared.io[f"train.before.codebooks.0.{name}"]
        assert torch.equal(getattr(book, name), before[: len(book.weight)])
    recon, out = model(shared.io["x"])
    loss_recon = F.mse_loss(recon, shared.io["x"])
    total = loss_recon + model.config.latent_loss_weight * out.loss
    total.backward()
    shared.exact("train.codes", out.codes)
    shared.same("train.recon", recon, 2e-5)
    shared.same("train.loss_recon", loss_recon, 1e-6)
    shared.same("train.loss_latent", out.loss, 2e-7)
    shared.same("train.loss_total", total, 1e-6)
    atols = {"conv_in": 1e-6, "norm_out": 5e-7, "quant_conv": 5e-7, "post_quant_conv": 5e-7, "conv_out": 1e-6}
    names = [name.removeprefix("grad.") for name in shared.io if name.startswith("grad.")]
    assert len(names) == 5
    for name in names:
        shared.same(f"grad.{name}", model.get_parameter(name).grad, atols[name.split(".")[-2]])
    after = published_state(model)
    for name, atol in zip(BUFFERS, (2e-6, 1e-5, 1e-5), strict=True):
        for depth in range(4):
            actual = after[f"quantizer.codebooks.{depth}.{name}"]
            shared.same(f"train.after.codebooks.0.{name}", actual, atol)
    assert book.num_updates == 4


def test_restart_of_one_codebook(shared):
    io = shared.io
    book = EMACodebook(64, 16, restart=RestartRule(), keep_unused=False)
    book.weight.copy_(io["restart.before.weight"][:-1])
    book.cluster_size_ema.copy_(io["restart.before.cluster_size_ema"])
    book.embed_ema.copy_(io["restart.before.embed_ema"])
    vectors = io["restart.vectors"].reshape(-1, 16)
    codes = book.nearest(vectors)
    shared.exact("restart.codes", codes.view(2, 8, 8))
    shared.same("restart.quant", book.embed(codes).view(2, 8, 8, 16), 2e-6)
    book.update([CodedVectors(vectors, codes, torch.ones(len(vectors), dtype=torch.bool))])
    shared.same("restart.after.cluster_size_ema", book.cluster_size_ema, 1e-5)
    restarted, kept = io["restart.restarted"], ~io["restart.restarted"]
    expected_ema, expected_weight = io["restart.after.embed_ema"], io["restart.after.weight"][:-1]
    torch.testing.assert_close(book.embed_ema[kept], expected_ema[kept], atol=1e-5, rtol=0)
    torch.testing.assert_close(book.weight[kept], expected_weight[kept], atol=2e-6, rtol=0)
    picked = (book.embed_ema[restarted][:, None] == vectors).all(-1)
    assert (picked.sum(1) == 1).all(), "every restarted entry is one of the input vectors"
    assert picked.any(0).sum() == restarted.sum(), "drawn without replacement"


def test_one_adversarial_training_iteration(shared):
    io, model = shared.io, shared.model.train()
    disc = PatchDiscriminator(3, num_layers=2, ndf=8)
    disc.load_state_dict(shared.golden.checkpoint["discriminator"])
    x = io["x"]
    shared.same("disc.eval.logits_real", disc.eval()(x), 5e-6)
    disc.train()
    optimizers = [torch.optim.Adam(net.parameters(), lr=4e-5, betas=(0.5, 0.9)) for net in (model, disc)]
    recon, out = model(x)
    loss_recon, loss_gen = F.mse_loss(recon, x), generator_loss(disc(recon))
    weight = adaptive_weight(loss_recon, loss_gen, model.decoder_last_layer)
    total = loss_recon + model.config.latent_loss_weight * out.loss + weight * 0.75 * loss_gen
    total.backward()
    shared.same("iter.loss_recon", loss_recon, 1e-6)
    shared.same("iter.loss_latent", out.loss, 2e-7)
    shared.same("iter.loss_gen", loss_gen, 5e-6)
    shared.same("iter.g_weight", weight, 1e-6)
    shared.same("iter.loss_gen_total", total, 1e-6)
    shared.same("iter.grad.encoder.conv_in.weight", model.encoder.conv_in.weight.grad, 5e-6)
    shared.same("iter.grad.quant_conv.weight", model.quant_conv.weight.grad, 2e-6)
    shared.same("iter.grad.decoder.conv_out.weight", model.decoder_last_layer.grad, 2e-6)
    optimizers[0].step()
    shared.same("iter.after.decoder.conv_out.weight", model.decoder_last_layer, 2e-7)
    disc.zero_grad()
    fake, real = disc(recon.detach()), disc(x)
    loss_disc = hinge_discriminator_loss(real, fake)
    (0.75 * loss_disc).backward()
    shared.same("iter.loss_disc", loss_disc, 5e-6)
    shared.same("iter.logits_real_mean", real.mean(), 5e-7)
    shared.same("iter.logits_fake_mean", fake.mean(), 5e-6)
    shared.same("iter.disc_grad.main.8.weight", disc.main[8].weight.grad, 5e-6)
    for layer, atol_mean, atol_var in ((3, 1e-6, 2e-6), (6, 1e-6, 5e-6)):
        shared.same(f"iter.after.disc.main.{layer}.running_mean", disc.main[layer].running_mean, atol_mean)
        shared.same(f"iter.after.disc.main.{layer}.running_var", disc.main[layer].running_var, atol_var)
        shared.exact(f"iter.after.disc.main.{layer}.num_batches_tracked", disc.main[layer].num_batches_tracked)


def test_parameter_count_and_published_state_dict(case):
    expected = {"rqvae-shared": 238915, "rqvae-chmult": 409883, "rqvae-deep": 312771}[case.golden.path.name]
    assert count_parameters(case.model) == expected
    published = case.golden.checkpoint["state_dict"]
    written = published_state(case.model)
    assert set(written) == set(published)
    assert all(torch.equal(written[key], published[key]) for key in published)
    again = RQVAE(case.model.config)
    again.load_state_dict(ours_from_published(written, again._sections()))
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), case.model.state_dict().values(), strict=True)
    )
