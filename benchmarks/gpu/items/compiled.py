"""Compiled steps against eager ones: the gradients of one step, in fp32.

On a CPU the graphs are traced and differentiated but run as they are: its code generator takes minutes, and is not the
one of a GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from unittest import mock

import torch

from benchmarks.gpu.items.models import (
    SMALL_RESOLUTION,
    WITHOUT_DROPOUT,
    gradients_of,
    imagenet_stage1,
    imagenet_stage2,
    images,
)
from benchmarks.gpu.items.timing import exact_products, relative
from benchmarks.gpu.report import Report
from training.stages.stage1 import Stage1
from training.stages.stage2 import Stage2

GRADIENTS, TERMS = 1e-3, 1e-4
STAGE1: dict[str, list[str]] = {
    "no GAN": ["gan=null"],
    "GAN": ["gan.loss.perceptual_weight=0"],
    "GAN and LPIPS": [],
}


def _backend(report: Report) -> AbstractContextManager[object]:
    if report.on_gpu:
        return nullcontext()
    return mock.patch.object(torch, "compile", partial(torch.compile, backend="aot_eager"))


def stage1(report: Report) -> None:
    """With and without discriminator and perceptual loss: the adaptive weight looks into the compiled graph."""
    exact_products()
    for name, words in STAGE1.items():
        if report.tiny and words:
            continue  # the whole loss has all that the others have
        with report.case(name), _backend(report):
            stages = [
                imagenet_stage1(
                    report.device, [*words, "experiment.precision=fp32", f"experiment.compile={value}"], True
                )
                for value in ("false", "true")
            ]
            _compare(report, name, stages)


def stage2(report: Report) -> None:
    """The compiled blocks; dropout is off, whose draws compiled code takes from another generator."""
    exact_products()
    words = ["experiment.precision=fp32", "loss.stochastic_codes=false", *WITHOUT_DROPOUT]
    with report.case("stage 2"), _backend(report):
        stages = [
            imagenet_stage2(report.device, "480M", [*words, f"experiment.compile={value}"], True)
            for value in ("false", "true")
        ]
        _compare(report, "stage 2", stages)


def _compare(report: Report, name: str, stages: list[Stage1] | list[Stage2]) -> None:
    batch = images(2, SMALL_RESOLUTION, report.device)
    (expected, row), (actual, compiled_row) = (gradients_of(stage, batch) for stage in stages)
    losses = {key: abs(compiled_row[key] / value - 1) for key, value in row.items() if key.startswith("loss") and value}
    error = relative(actual, expected)
    report.check(name, error < GRADIENTS and max(losses.values()) < TERMS, gradients=error, losses=losses)
