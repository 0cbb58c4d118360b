"""The golden folders on the device: every tensor within ten times the tolerance that its README states, codes exact.

Legend: B batch, T positions, D code depth, V vocabulary.
"""

from __future__ import annotations

import re

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.items.timing import exact_products
from benchmarks.gpu.report import Report
from benchmarks.gpu.running import ROOT
from rqtransformer import load_rqtransformer, sample
from rqtransformer.targets import DenseTargets, Stage2LossConfig, cross_entropy_per_depth, stage2_loss
from rqvae import RQVAE, load_rqvae
from rqvae.losses.adversarial import adaptive_weight, generator_loss, hinge_discriminator_loss
from rqvae.losses.discriminator import PatchDiscriminator

FOLDER = ROOT / "tests" / "golden"
STAGE1 = ("rqvae-shared", "rqvae-chmult", "rqvae-deep")
STAGE2 = ("rqtransformer-class", "rqtransformer-text")
FACTOR = 10.0  # of the tolerance, on a GPU, as the READMEs say
_ROW = re.compile(r"^\| (`.+?) \| (\w+) \| [^|]* \| (.+?) \|", re.MULTILINE)


class GoldenFolder:
    """Inputs and expected outputs of one folder on the device; counts what was compared and keeps what was wrong."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.path = FOLDER / name
        self.io = {key: value.to(device) for key, value in load_file(self.path / "io.safetensors").items()}
        self.tolerances = read_tolerances((self.path / "README.md").read_text(encoding="utf-8"))
        self.compared, self.worst, self.wrong = 0, 0.0, list[str]()

    def same(self, name: str, actual: Tensor) -> None:
        """Compares one tensor; the worst is a share of what is allowed."""
        expected, atol = self.io[name], self.tolerances[name]
        self.compared += 1
        if actual.shape != expected.shape:
            self.wrong.append(f"{name}: shape {tuple(actual.shape)}")
        elif atol is None:
            if not torch.equal(actual, expected):
                self.wrong.append(f"{name}: {int((actual != expected).sum())} of {actual.numel()} differ")
        else:
            share = float((actual.detach().double() - expected.double()).abs().max()) / (FACTOR * atol)
            self.worst = max(self.worst, share)
            if not share <= 1:  # NaN is wrong too
                self.wrong.append(f"{name}: {share:.2f} times what is allowed")

    def gradients(self, model: nn.Module) -> None:
        """Compares every gradient of the folder."""
        for name in (key for key in self.io if key.startswith("grad.")):
            gradient = model.get_parameter(name.removeprefix("grad.")).grad
            assert gradient is not None, name
            self.same(name, gradient)


def read_tolerances(readme: str) -> dict[str, float | None]:
    """Name -> absolute tolerance; None where values must be equal. Inputs have none."""
    found: dict[str, float | None] = {}
    for names, _, allowed in _ROW.findall(readme):
        keys = re.findall(r"`([^`]+)`", names)
        values = allowed.split("<br>")
        for key, value in zip(keys, values if len(values) == len(keys) else values * len(keys)):
            if value != "-":
                found[key] = None if value == "exact" else float(value)
    return found


def compare(report: Report) -> None:
    """Stage 1: evaluation, training forward, one adversarial iteration. Stage 2: logits, losses, gradients, codes."""
    exact_products()
    device = report.device
    for name, run in ({name: _stage1 for name in STAGE1} | {name: _stage2 for name in STAGE2}).items():
        with report.case(name):
            folder = GoldenFolder(name, device)
            run(folder, device)
            if name == "rqvae-shared":
                _training(folder, load_rqvae(folder.path / "model.pt", device=device).train())
                _adversarial(folder, load_rqvae(folder.path / "model.pt", device=device).train(), device)
            share = round(folder.worst, 3)
            report.check(name, not folder.wrong, compared=folder.compared, worst=share, wrong=folder.wrong[:8])


def _stage1(folder: GoldenFolder, device: torch.device) -> None:
    model, io = load_rqvae(folder.path / "model.pt", device=device), folder.io
    with torch.no_grad():
        recon_BCHW, quantized = model(io["x"])
        folder.same("eval.z_e", model.encode(io["x"]))
        folder.same("eval.codes", quantized.codes)
        folder.same("eval.z_q", quantized.quantized)
        folder.same("eval.recon", recon_BCHW)
        folder.same("eval.commitment_loss", quantized.loss)
        folder.same("emb.embed_code", model.embed_code(io["eval.codes"]))
        folder.same("dec.random_recon", model.decode_code(io["dec.random_codes"]))


def _training(folder: GoldenFolder, model: RQVAE) -> None:
    recon_BCHW, quantized = model(folder.io["x"])
    loss_recon = F.mse_loss(recon_BCHW, folder.io["x"])
    total = loss_recon + model.config.latent_loss_weight * quantized.loss
    total.backward()
    folder.same("train.codes", quantized.codes)
    folder.same("train.recon", recon_BCHW)
    folder.same("train.loss_total", total)
    folder.gradients(model)


def _adversarial(folder: GoldenFolder, model: RQVAE, device: torch.device) -> None:
    """One iteration of autoencoder and discriminator, as its README says."""
    discriminator = PatchDiscriminator(3, num_layers=2, ndf=8)
    archive = torch.load(folder.path / "model.pt", map_location="cpu", weights_only=True)
    discriminator.load_state_dict(archive["discriminator"])
    discriminator = discriminator.to(device).train()
    image_BCHW = folder.io["x"]
    recon_BCHW, quantized = model(image_BCHW)
    loss_recon, loss_gen = F.mse_loss(recon_BCHW, image_BCHW), generator_loss(discriminator(recon_BCHW))
    weight = adaptive_weight(loss_recon, loss_gen, model.decoder_last_layer)
    total = loss_recon + model.config.latent_loss_weight * quantized.loss + weight * 0.75 * loss_gen
    total.backward()
    folder.same("iter.loss_gen", loss_gen)
    folder.same("iter.g_weight", weight)
    folder.same("iter.loss_gen_total", total)
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "decoder.conv_out.weight"):
        folder.same(f"iter.grad.{name}", _gradient(model, name))
    discriminator.zero_grad()
    fake, real = discriminator(recon_BCHW.detach()), discriminator(image_BCHW)
    loss_disc = hinge_discriminator_loss(real, fake)
    (0.75 * loss_disc).backward()
    folder.same("iter.loss_disc", loss_disc)
    folder.same("iter.disc_grad.main.8.weight", _gradient(discriminator, "main.8.weight"))


def _gradient(module: nn.Module, name: str) -> Tensor:
    gradient = module.get_parameter(name).grad
    assert gradient is not None, name
    return gradient


def _stage2(folder: GoldenFolder, device: torch.device) -> None:
    io = folder.io
    tokenizer = load_rqvae(FOLDER / "rqvae-shared" / "model.pt", device=device)
    model = load_rqtransformer(folder.path / "model.pt", device=device)
    output = model(io["codes"], tokenizer, io["cond"])
    folder.same("logits", output.logits)
    soft_D, hard_D, _ = cross_entropy_per_depth(output.logits, io["codes"], DenseTargets(io["soft_targets"]))
    folder.same("loss.codebook_soft", soft_D)
    folder.same("loss.codebook_hard", hard_D)
    settings = Stage2LossConfig(img_weight=1.0, txt_weight=1.0)
    loss, _ = stage2_loss(output, io["codes"], DenseTargets(io["soft_targets"]), io["cond"], settings)
    loss.backward()
    folder.gradients(model)
    codes_BHWD = sample(model, tokenizer, io["greedy.cond"], top_k=1)
    folder.same("greedy.codes", codes_BHWD)
    with torch.no_grad():
        folder.same("greedy.image0", tokenizer.decode_code(codes_BHWD[:1]))
