"""Training steps at the published sizes: images per second, memory, and the share of a large product's rate.

MFU here is the step's operations over its time and over the rate of a large bf16 product of the same run, not the data
sheet's; `tflops` lets anyone take another peak.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.items.models import (
    SMALL_RESOLUTION,
    as_in_training,
    drawn,
    imagenet_stage1,
    imagenet_stage2,
    images,
)
from benchmarks.gpu.items.timing import median_ms, peak_gib
from benchmarks.gpu.report import Report
from benchmarks.training_speed import gemm
from measure_throughput.roofline import best_seconds
from training.loop.throughput import FlopCounter
from training.stages.stage1 import Stage1
from training.stages.stage2 import Stage2

RESOLUTION = 256
LATENT, SMALL_LATENT = (8, 8, 256), (8, 8, 16)
# of stage 1: batch and what differs from the published file; fp32 takes twice the memory
STAGE1: dict[str, tuple[int, list[str]]] = {
    "fp32": (16, ["experiment.precision=fp32"]),
    "bf16 channels_last": (32, ["experiment.precision=bf16", "experiment.channels_last=true"]),
    "bf16 nchw": (32, ["experiment.precision=bf16", "experiment.channels_last=false"]),
    "bf16 compiled": (32, ["experiment.precision=bf16", "experiment.compile=true"]),
}
ROUNDS = 5


def product_rate(report: Report) -> float:
    """Operations per second of a large bf16 product."""
    if report.tiny:
        return 1e10
    product, operations = gemm(report.device, torch.bfloat16)
    return operations / best_seconds(product, report.device, 5)


def measure(
    report: Report, stage: Stage1 | Stage2, batch: dict[str, Tensor], rate: float, flops: float | None = None
) -> dict[str, Any]:
    """One row. flops: of an image, where the step is compiled and its operations cannot be counted."""
    number = len(batch["label"])
    stage.train_step([batch], 1)
    if flops is None:
        with FlopCounter() as counter:
            stage.train_step([batch], 2)
        flops = counter.flops / number
    peak_gib(report.device)
    rounds = 1 if report.tiny else ROUNDS
    time_ms = median_ms(lambda: stage.train_step([batch], 3), report.device, rounds, min(rounds - 1, 2))
    done = 1e3 * flops * number / time_ms  # operations per second
    return {
        "step_ms": round(time_ms, 2),
        "images_per_s": round(1e3 * number / time_ms, 1),
        "gflop_per_image": round(flops / 1e9, 2),
        "tflops": round(done / 1e12, 2),
        "mfu": round(done / rate, 3),
        "peak_gib": peak_gib(report.device),
    }


def stage2_480m(report: Report) -> None:
    """The 480M model, batch 32."""
    _stage2(report, "480M", 32)


def stage2_1400m(report: Report) -> None:
    """The 1.4B model, batch 64."""
    _stage2(report, "1400M", 64)


def stage2_latents(report: Report, number: int) -> dict[str, Tensor]:
    """A batch as `extract_codes.py` keeps it."""
    latent_BHWE = drawn((number, *(SMALL_LATENT if report.tiny else LATENT)), 2).to(report.device)
    return {"latent": latent_BHWE, "label": torch.arange(number, device=report.device) % 10}


def _stage2(report: Report, size: str, number: int) -> None:
    """From images, through the frozen encoder, and from latents; the step is compiled where the file says so."""
    as_in_training(report)
    rate = product_rate(report)
    report.note("product_tflops", round(rate / 1e12, 1))
    number = 2 if report.tiny else number
    stage = imagenet_stage2(report.device, size, ["experiment.precision=bf16"], report.tiny)
    with report.case("latents"):
        report.note(f"batch {number} latents", measure(report, stage, stage2_latents(report, number), rate))
    with report.case("images"):
        resolution = SMALL_RESOLUTION if report.tiny else RESOLUTION
        report.note(f"batch {number} images", measure(report, stage, images(number, resolution, report.device), rate))
    if report.tiny:
        return
    del stage
    with report.case("latents, compiled"):
        words = ["experiment.precision=bf16", "experiment.compile=true"]
        compiled = imagenet_stage2(report.device, size, words, report.tiny)
        row = measure(report, compiled, stage2_latents(report, number), rate, flops=0.0)
        report.note(f"batch {number} latents, compiled", {k: row[k] for k in ("step_ms", "images_per_s", "peak_gib")})


def stage1(report: Report) -> None:
    """The published ImageNet stage 1 with LPIPS and discriminator, without recomputation."""
    as_in_training(report)
    rate = product_rate(report)
    report.note("product_tflops", round(rate / 1e12, 1))
    flops: float | None = None
    for name, (number, words) in STAGE1.items():
        if report.tiny and "compiled" in name:
            continue  # `compiled_stage1` rehearses it
        with report.case(name):
            number = 2 if report.tiny else number
            resolution = SMALL_RESOLUTION if report.tiny else RESOLUTION
            stage = imagenet_stage1(report.device, ["arch.checkpointing=false", *words], report.tiny)
            row = measure(report, stage, images(number, resolution, report.device), rate, flops)
            flops = 1e9 * row["gflop_per_image"]
            report.note(name, {"batch": number, **row})
            del stage
