"""The CPU's numbers against the GPU's, number formats, and the backends of attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.items.models import (
    SMALL_RESOLUTION,
    WITHOUT_DROPOUT,
    as_in_training,
    drawn,
    gradients_of,
    imagenet_stage1,
    imagenet_stage2,
    images,
    run_steps,
    small_codes,
    small_tokenizer,
    small_transformer,
)
from benchmarks.gpu.items.timing import exact_products, median_ms, relative, share_equal
from benchmarks.gpu.report import Report
from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqvae import RQVAE
from training.stages.stage1 import Stage1
from training.stages.stage2 import Stage2

CPU = torch.device("cpu")
LOGITS, GRADIENTS, HALF = 1e-5, 1e-4, {"bf16": 2e-2, "fp16": 5e-3}  # relative norms of differences
TERMS = 1e-3  # relative difference of a step's losses
UPDATES = ("per_depth", "deferred")
# name, (batch, heads, queries, keys), whether a mask hides keys
ATTENTION = (
    ("body decode", (8, 24, 1, 64), True),
    ("head decode", (8, 24, 1, 3), False),
    ("body train", (8, 24, 64, 64), False),
    ("head train", (64, 24, 4, 4), False),
)
HEAD_WIDTH = 64


def cpu_and_gpu(report: Report) -> None:
    """Codes exact, logits and gradients of a small RQ-Transformer, one step of both stages: fp32 without TF32."""
    exact_products()
    with report.case("codes"):
        x_NE, weight_KE = drawn((2048, 64), 0), drawn((4096, 64), 1)
        on_device = nearest_codes(x_NE.to(report.device), weight_KE.to(report.device))
        share = share_equal(on_device, nearest_codes(x_NE, weight_KE))
        report.check("codes", share == 1.0, share_equal=share)
    with report.case("codes of images"):
        stages = [imagenet_stage1(device, ["gan=null", "experiment.precision=fp32"], True) for device in _both(report)]
        models: list[RQVAE] = [stage.model.eval() for stage in stages]
        image_BCHW = images(4, SMALL_RESOLUTION, CPU)["image"]
        codes = [model.get_codes(image_BCHW.to(stage.env.device)) for model, stage in zip(models, stages)]
        share = share_equal(*codes)
        report.check("codes of images", share == 1.0, share_equal=share)
    with report.case("logits and gradients"):
        (logits, gradients), (device_logits, device_gradients) = map(_transformer, _both(report))
        errors = relative(device_logits, logits), relative(device_gradients, gradients)
        report.check("logits and gradients", errors[0] < LOGITS and errors[1] < GRADIENTS, relative=errors)
    for update in UPDATES:
        with report.case(f"stage-1 step, {update}"):
            words = ["experiment.precision=fp32", f"arch.hparams.codebook_update={update}"]
            _compare_steps(report, f"stage-1 step, {update}", [imagenet_stage1(d, words, True) for d in _both(report)])
    with report.case("stage-2 step"):
        words = ["experiment.precision=fp32", "loss.stochastic_codes=false", *WITHOUT_DROPOUT]
        _compare_steps(report, "stage-2 step", [imagenet_stage2(d, "480M", words, True) for d in _both(report)])


def _both(report: Report) -> tuple[torch.device, torch.device]:
    return CPU, report.device


def _transformer(device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients of the cross entropy, of the small RQ-Transformer."""
    model, codes_BHWD = small_transformer(device), small_codes(5).to(device)
    logits = model(codes_BHWD, small_tokenizer(device), torch.arange(5, device=device)).logits
    F.cross_entropy(logits.flatten(0, 3), codes_BHWD.flatten()).backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return logits, torch.cat(gradients)


def _compare_steps(report: Report, name: str, stages: list[Any]) -> None:
    (expected, row), (actual, device_row) = (
        gradients_of(stage, images(2, SMALL_RESOLUTION, stage.env.device)) for stage in stages
    )
    terms = {key: abs(device_row[key] - value) / max(abs(value), 1e-6) for key, value in row.items()}
    losses = {key: round(value, 7) for key, value in terms.items() if key.startswith("loss")}
    error = relative(actual, expected)
    report.check(name, error < 10 * GRADIENTS and max(losses.values()) < TERMS, gradients=error, losses=losses)


def half_precision(report: Report) -> None:
    """Three steps of both stages, and logits, in the 16-bit formats: finite, and near those of fp32."""
    as_in_training(report)
    formats = ("bf16", "fp16") if report.on_gpu else ("bf16",)
    for name in formats:
        words = [f"experiment.precision={name}"]
        for stage_name, build in (("stage 1", _stage1), ("stage 2", _stage2)):
            with report.case(f"{stage_name}, {name}"):
                rows = run_steps(build(report.device, words), images(4, SMALL_RESOLUTION, report.device), 3)
                finite = all(math.isfinite(value) for row in rows for value in row.values())
                last = {key: round(value, 4) for key, value in rows[-1].items() if key.startswith("loss")}
                report.check(f"{stage_name}, {name}", finite, last=last)
        with report.case(f"logits, {name}"):
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
            logits = []
            for enabled in (False, True):
                with torch.no_grad(), torch.autocast(report.device.type, dtype=dtype, enabled=enabled):
                    model, tokenizer = small_transformer(report.device), small_tokenizer(report.device)
                    cond = torch.arange(5, device=report.device)
                    logits.append(model(small_codes(5).to(report.device), tokenizer, cond).logits.float())
            error = relative(logits[1], logits[0])
            report.check(f"logits, {name}", error < HALF[name], relative=error)


def _stage1(device: torch.device, words: list[str]) -> Stage1:
    return imagenet_stage1(device, words, True)


def _stage2(device: torch.device, words: list[str]) -> Stage2:
    return imagenet_stage2(device, "480M", words, True)


def attention(report: Report) -> None:
    """What PyTorch chooses (0 math, 1 flash, 2 efficient, 3 cuDNN), its error against float64, its time."""
    for name, shape, masked in ATTENTION:
        with report.case(name):
            _attention(report, name, shape, masked)


def _attention(report: Report, name: str, shape: tuple[int, int, int, int], masked: bool) -> None:
    batch, heads, queries, keys = shape
    q, k, v = (
        drawn((batch, heads, length, HEAD_WIDTH), seed).to(report.device, torch.bfloat16)
        for seed, length in enumerate((queries, keys, keys))
    )
    mask = (torch.arange(keys) <= keys // 3).view(1, 1, 1, -1) if masked else None
    on_device, causal = None if mask is None else mask.to(report.device), queries > 1

    def run() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=on_device, is_causal=causal)

    exact_q, exact_k, exact_v = (part.double().cpu() for part in (q, k, v))
    expected = F.scaled_dot_product_attention(exact_q, exact_k, exact_v, attn_mask=mask, is_causal=causal)
    error = relative(run(), expected)
    chosen = torch._fused_sdp_choice(q, k, v, attn_mask=on_device, is_causal=causal)
    time_ms = round(median_ms(run, report.device), 4)
    report.check(name, error < 1e-2, backend=int(chosen), relative=error, ms=time_ms)
