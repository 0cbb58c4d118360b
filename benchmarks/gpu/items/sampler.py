"""Sampling speed of the published 1.4B models in bf16: codes and pixels apart, beside the roofline of the same run.

Codes are drawn without a cut, as published (`measure_throughput`); with the usual cut at the largest batch as well.
Legend: B batch, D code depth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.items.models import imagenet_stage1, small_transformer
from benchmarks.gpu.items.timing import median_ms, peak_gib, share_equal
from benchmarks.gpu.report import Report
from measure_throughput.cost import decoding_cost
from measure_throughput.experiment import Experiment
from measure_throughput.measure import build_models
from measure_throughput.roofline import Roofline, measure_roofline
from rqtransformer import RQTransformer, decode_in_batches, sample
from rqvae import RQVAE

BATCHES, TINY_BATCHES = (1, 100, 200, 500), (1, 2)
FLAT_BATCH = 200
CUT: dict[str, Any] = {"top_k": 2048, "top_p": 0.95}
ROUNDS = 3
TINY_ROOFLINE = Roofline(flops=5e10, bytes=1e10)  # measuring one takes longer than a rehearsal
TINY_SIDE, TINY_CODES, TINY_WIDTH = 8, 64, 16


class Models(NamedTuple):
    """Both stages on the device, and its roofline."""

    stage1: RQVAE
    stage2: RQTransformer
    roofline: Roofline


def build(report: Report, factor: int, depth: int) -> Models:
    """The published sizes, 256 / factor codes on a side; small ones for a rehearsal."""
    if not report.tiny:
        experiment = Experiment(f=factor, d=depth, model="huge", device=report.settings.device, dtype="bfloat16")
        return Models(*build_models(experiment), measure_roofline(report.device, torch.bfloat16))
    shape = [TINY_SIDE, TINY_SIDE, depth]
    words = ["gan=null", "experiment.precision=fp32", f"arch.hparams.code_shape={shape}".replace(" ", "")]
    stage2 = small_transformer(
        report.device,
        block_size=shape,
        vocab_size=TINY_CODES,
        input_embed_dim=TINY_WIDTH,
        head={"n_layer": 0 if depth == 1 else 1, "block": {"n_head": 4}},
    )
    return Models(imagenet_stage1(report.device, words, True).model.eval(), stage2, TINY_ROOFLINE)


def draw(models: Models, batch: int, **options: Any) -> Tensor:
    """Codes of so many samples of one class."""
    cond_B = torch.zeros(batch, dtype=torch.long, device=models.stage2.pos_emb_hw.device)
    return sample(models.stage2, models.stage1, cond_B, seed=0, amp_dtype=torch.bfloat16, **options)


def measure(report: Report, models: Models, batch: int, weights: str = "dense", pixels: bool = True) -> dict[str, Any]:
    """One row: milliseconds per sample, latency, share of the roofline, memory."""
    rounds = 1 if report.tiny else ROUNDS
    peak_gib(report.device)
    first_ms = median_ms(lambda: draw(models, batch, weights=weights), report.device, 1, 0)
    ar_ms = median_ms(lambda: draw(models, batch, weights=weights), report.device, rounds, 0)
    cost = decoding_cost(models.stage2, batch, 2, 1 if weights == "int8" else 2)
    bounds = [1e3 * bound / ar_ms for bound in cost.seconds(*models.roofline)]
    row: dict[str, Any] = {
        "ar_ms_per_sample": round(ar_ms / batch, 4),
        "batch_latency_s": round(ar_ms / 1e3, 4),
        "first_call_s": round(first_ms / 1e3, 3),
        "roofline_share": round(max(bounds), 3),
        "flops_share": round(bounds[0], 3),
        "bytes_share": round(bounds[1], 3),
        "peak_gib": peak_gib(report.device),
    }
    if pixels:
        codes_BHWD = draw(models, batch, weights=weights)
        decode_ms = median_ms(lambda: _decode(models, codes_BHWD), report.device, rounds, 1)
        row |= {"pixels_ms_per_sample": round(decode_ms / batch, 3), "pixels_peak_gib": peak_gib(report.device)}
    return row


@torch.no_grad()
def _decode(models: Models, codes_BHWD: Tensor) -> None:
    with torch.autocast(codes_BHWD.device.type, dtype=torch.bfloat16):
        for image_BCHW in decode_in_batches(models.stage1, codes_BHWD):
            (0.5 * image_BCHW + 0.5).clamp_(0, 1)


def deep(report: Report) -> None:
    """Stacks of four codes, 8x8x4."""
    models = build(report, 32, 4)
    report.note("roofline", {"tflops": models.roofline.flops / 1e12, "tbs": models.roofline.bytes / 1e12})
    batches = TINY_BATCHES if report.tiny else BATCHES
    for batch in batches:
        with report.case(f"batch {batch}"):
            report.note(f"batch {batch}", measure(report, models, batch))
    with report.case("with a cut"):
        limits = {"top_k": min(CUT["top_k"], max(models.stage2.config.vocab_sizes) // 2), "top_p": CUT["top_p"]}
        time_ms = median_ms(lambda: draw(models, batches[-1], **limits), report.device, 1 if report.tiny else 2, 1)
        report.note("with a cut", {"ar_ms_per_sample": round(time_ms / batches[-1], 4), **limits})


def flat(report: Report) -> None:
    """One code per position, 16x16x1, with as many parameters."""
    batch = TINY_BATCHES[-1] if report.tiny else FLAT_BATCH
    report.note(f"batch {batch}", measure(report, build(report, 16, 1), batch, pixels=False))


def int8(report: Report) -> None:
    """int8 weights at batch 1, beside dense ones: time, and the share of codes that are the same."""
    models = build(report, 32, 4)
    for weights in ("dense", "int8"):
        report.note(weights, measure(report, models, 1, weights, pixels=False))
    dense, quantized = (draw(models, 4, weights=weights)[:, 0, 0] for weights in ("dense", "int8"))
    report.note("codes of the first position equal", share_equal(quantized, dense))
