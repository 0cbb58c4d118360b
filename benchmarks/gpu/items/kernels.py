"""Every Triton kernel against its plain twin on the device: the same call with the kernels on and off.

A call that says it is served by no kernel compares the plain form with itself, so `served` is part of every entry. On a
CPU no kernel runs, and the calls are rehearsed.
Legend: B batch, V vocabulary, N vectors, K codes, E width.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gpu.items.correctness import small_codes
from benchmarks.gpu.items.models import (
    SMALL_RESOLUTION,
    drawn,
    imagenet_stage1,
    images,
    small_tokenizer,
    small_transformer,
)
from benchmarks.gpu.items.timing import exact_products, median_ms, relative, share_equal
from benchmarks.gpu.report import Report
from rqstack.quantizers.arithmetic.nearest import FUSED_SWITCH, nearest_codes
from rqstack.triton_kernels import SWITCH, use_triton
from rqtransformer import sample
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss

FORMATS = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 2e-2)}  # with the relative error allowed
SETTINGS = (
    DrawSettings(),
    DrawSettings(top_k=2048, top_p=0.95),
    DrawSettings(temperature=0.8, top_k=1),
    DrawSettings(top_p=0.9),
    DrawSettings(top_k=100_000, top_p=1e-4),
    DrawSettings(temperature=1.3, top_k=300),
)
ROWS, VOCABULARIES, TINY_VOCABULARIES = 200, (16384, 5000), (1000,)
NEAR = 1e-6  # of a boundary of the cumulated probability: there the two forms may round to either side


def with_and_without(call: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """(With kernels, without)."""
    with mock.patch.dict(os.environ, {SWITCH: "1", FUSED_SWITCH: "1"}):
        served = call()
    with mock.patch.dict(os.environ, {SWITCH: "0", FUSED_SWITCH: "0"}):
        return served, call()


def compare(report: Report) -> None:
    """Draw, decoding step, search, normalization of images, soft-target loss."""
    exact_products()
    report.note("triton", use_triton(report.device))
    draw(report)
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
        fused, plain = with_and_without(lambda: nearest_codes(x_NE, weight_KE))
        share = share_equal(fused, plain)
        report.check("nearest", share == 1.0, share_equal=share)


def draw(report: Report) -> None:
    """The kernel of a draw on the logits of a bf16 model: ties, a row of one code, uniform numbers at both ends."""
    kernel = None
    if use_triton(report.device):
        kernel = importlib.import_module("rqtransformer.fast.kernels.draw_triton")
    for vocabulary in TINY_VOCABULARIES if report.tiny else VOCABULARIES:
        logits_BV = (2 * drawn((ROWS, vocabulary), 0)).bfloat16().to(report.device)
        logits_BV[3] = float("-inf")
        logits_BV[3, vocabulary // 2] = 1.0
        uniform_B = torch.rand(ROWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(report.device)
        uniform_B[0], uniform_B[1] = 0.0, 1.0 - 2.0**-53
        for settings in SETTINGS:
            name = f"draw V={vocabulary} {settings}"
            with report.case(name):
                served = kernel is not None and kernel.serves(logits_BV, uniform_B, settings)
                fused = kernel.draw if served and kernel is not None else draw_truncated
                plain_B, codes_B = (form(logits_BV, uniform_B, settings) for form in (draw_truncated, fused))
                different_B = codes_B != plain_B
                wrong = int((different_B & ~_at_a_boundary(logits_BV, uniform_B, settings)).sum())
                times = [_time(report, form, logits_BV, uniform_B, settings) for form in (draw_truncated, fused)]
                values = {"served": served, "different": int(different_B.sum()), "plain_ms": times[0], "ms": times[1]}
                report.check(name, wrong == 0 and (served or not report.on_gpu), wrong=wrong, **values)


def _time(report: Report, form: Callable[..., Tensor], *arguments: object) -> float:
    return round(median_ms(lambda: form(*arguments), report.device, 3 if report.tiny else 10), 4)


def _at_a_boundary(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings) -> Tensor:
    """Whether the uniform number lies so near to where one code ends that fp32 sums may decide either way."""
    scores_BV = logits_BV.float() / settings.temperature
    order_BV = scores_BV.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    kept_BV = torch.ones_like(order_BV.values, dtype=torch.bool)
    if settings.top_k is not None:
        lowest_B1 = order_BV.values[:, min(settings.top_k, logits_BV.shape[1]) - 1, None]
        kept_BV &= order_BV.values >= lowest_B1  # ties at k stay
    if settings.top_p is not None:
        mass_BV = order_BV.values * kept_BV
        mass_BV = mass_BV / mass_BV.sum(-1, keepdim=True)
        kept_BV &= mass_BV.cumsum(-1) - mass_BV <= settings.top_p  # the code that crosses p stays
    probability_BV = torch.zeros_like(order_BV.values).scatter(-1, order_BV.indices, order_BV.values * kept_BV)
    cumulated_BV = (probability_BV / probability_BV.sum(-1, keepdim=True)).cumsum(-1)
    return (cumulated_BV - uniform_B.unsqueeze(1)).abs().amin(1) < NEAR


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
