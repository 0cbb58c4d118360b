"""Every Triton kernel against its plain twin on the device: the same call with the kernels on and off.

A call that says it is served by no kernel compares the plain form with itself, so `served` is part of every entry. On a
CPU no kernel runs, and the calls are rehearsed.
Legend: B batch, V vocabulary, N vectors, K codes, E width.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.items import kernel_twins
from benchmarks.gpu.items.models import (
    SMALL_RESOLUTION,
    drawn,
    imagenet_stage1,
    images,
    small_codes,
    small_tokenizer,
    small_transformer,
)
from benchmarks.gpu.items.timing import exact_products, relative, share_equal, without_kernels
from benchmarks.gpu.report import Report
from rqstack.quantizers.arithmetic.nearest import FUSED_SWITCH, nearest_codes, nearest_trial
from rqstack.triton_kernels import SWITCH, use_kernel, use_triton
from rqtransformer import sample
from rqtransformer.decoding.truncation import draw_trial
from rqtransformer.fast.fused_step import layers_trial
from rqtransformer.fast.packing import int8_trial
from rqtransformer.targets import SoftTargets, Stage2LossConfig, loss_trial, stage2_loss
from rqvae.blocks import norm_trial

# of all kernels; one that is not stood lets no kernel serve
TRIALS = (draw_trial, layers_trial, int8_trial, loss_trial, norm_trial, nearest_trial)
FORMATS = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}  # with the relative error allowed
NEAREST = {"ieee": 1.0, "tf32x3": 0.999}  # share of codes that must be equal


def with_and_without(call: Callable[[], Tensor], precision: str = "ieee") -> tuple[Tensor, Tensor]:
    """(With kernels, without). precision: of the products of the search."""
    with mock.patch.dict(os.environ, {SWITCH: "1", FUSED_SWITCH: precision}):
        served = call()
    with without_kernels():
        return served, call()


def compare(report: Report) -> None:
    """Draw, attention, sum and norm, int8 products; the whole decoding step, search, autoencoder, soft-target loss."""
    exact_products()
    report.note("triton", use_triton(report.device))
    for trial in TRIALS if use_triton(report.device) else ():
        report.check(trial.__name__, use_kernel(trial, report.device))
    kernel_twins.draw(report)
    kernel_twins.attention(report)
    kernel_twins.norms(report)
    kernel_twins.int8(report)
    for name, (dtype, allowed) in FORMATS.items():
        with report.case(f"decoding step, {name}"):
            first, plain = with_and_without(partial(_first_codes, report, dtype))
            share = share_equal(first, plain)
            report.check(f"decoding step, {name}", share >= (1.0 if name == "fp32" else 0.75), share_equal=share)
        with report.case(f"stage 1, {name}"):
            error = _stage1(report, name)
            report.check(f"stage 1, {name}", error < 10 * allowed, relative=error)
        with report.case(f"soft targets, {name}"):
            fused, plain = with_and_without(partial(_soft_target_loss, report, dtype))
            error = relative(fused, plain)
            report.check(f"soft targets, {name}", error < allowed, relative=error)
    with report.case("nearest"):
        number, codes = (64, 300) if report.tiny else (2048, 16384)
        x_NE, weight_KE = drawn((number, 256), 0).to(report.device), drawn((codes, 256), 1).to(report.device)
        for precision, wanted in NEAREST.items():
            fused, plain = with_and_without(lambda: nearest_codes(x_NE, weight_KE), precision)
            share = share_equal(fused, plain)
            report.check(f"nearest, {precision}", share >= wanted, share_equal=share)


def _first_codes(report: Report, dtype: torch.dtype) -> Tensor:
    """The codes of the first position: draw, attention over the caches, normalization and residual."""
    model, tokenizer = small_transformer(report.device), small_tokenizer(report.device)
    cond_B = torch.arange(64, device=report.device) % 10
    amp_dtype = None if dtype == torch.float32 else dtype
    return sample(model, tokenizer, cond_B, seed=1, top_k=40, top_p=0.9, amp_dtype=amp_dtype)[:, 0, 0]


def _stage1(report: Report, name: str) -> float:
    """Relative error of reconstruction and gradients of the autoencoder's encoder and decoder."""
    stage = imagenet_stage1(report.device, ["gan=null", f"experiment.precision={name}"], True)
    image_BCHW = images(2, SMALL_RESOLUTION, report.device)["image"]

    def run() -> Tensor:
        stage.model.eval().zero_grad()
        with stage.precision.autocast():
            recon_BCHW = stage.model.decode(stage.model.encode(image_BCHW))
        recon_BCHW.float().square().mean().backward()
        return torch.cat([recon_BCHW.flatten().float(), _gradients(stage.model)])

    return relative(*with_and_without(run))


def _soft_target_loss(report: Report, dtype: torch.dtype) -> Tensor:
    """Loss and gradients of the small RQ-Transformer."""
    model, tokenizer = small_transformer(report.device), small_tokenizer(report.device)
    codes_BHWD = small_codes(5).to(report.device)
    residual_BHWDE = drawn((*codes_BHWD.shape, 32), 4).to(report.device)
    targets = SoftTargets(residual_BHWDE, [tokenizer.codebook(depth) for depth in range(3)], 0.5)
    with torch.autocast(report.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = model(codes_BHWD, tokenizer, torch.arange(5, device=report.device))
    loss, _ = stage2_loss(output, codes_BHWD, targets, None, Stage2LossConfig(type="soft_target_cross_entropy"))
    loss.backward()
    return torch.cat([loss.detach().float().view(1), _gradients(model)])


def _gradients(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.float().flatten() for p in module.parameters() if p.grad is not None])
