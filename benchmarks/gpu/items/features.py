"""Quantizers beside the matrix products that none of them gets by without, and Inception features."""

from __future__ import annotations

import os
from unittest import mock

from benchmarks import evaluation_speed, quantizer_speed
from benchmarks.gpu.items.models import drawn
from benchmarks.gpu.items.timing import exact_products, median_ms
from benchmarks.gpu.report import Report
from benchmarks.speed_cases import CASES
from rqstack.quantizers.arithmetic.nearest import FUSED_SWITCH, nearest_codes, sampled_codes

VECTORS, CODES, WIDTH = 2048, 16384, 256
MEASURED = ("vq-16384-n2048", "vq-1024-n8192", "residual-4x16384-n2048")
TINY_CASES = ("fsq-n65536",)
ROUNDS = 7


def quantizers(report: Report) -> None:
    """The search of 32 images' vectors, as published: 2,048 of them, 16,384 codes of 256. fp32 products, no TF32."""
    exact_products()
    number, codes = (64, 256) if report.tiny else (VECTORS, CODES)
    x_NE, weight_KE = (drawn((rows, WIDTH), seed).to(report.device) for seed, rows in enumerate((number, codes)))
    product_ms = median_ms(lambda: (x_NE @ weight_KE.T).argmin(1), report.device)
    search_ms = median_ms(lambda: nearest_codes(x_NE, weight_KE), report.device)
    report.note(
        "search",
        {
            "product_ms": round(product_ms, 4),
            "search_ms": round(search_ms, 4),
            "times_product": round(search_ms / product_ms, 3),
            "draw_ms": round(median_ms(lambda: sampled_codes(x_NE, weight_KE, 0.5), report.device), 4),
        },
    )
    if report.on_gpu:
        for precision in ("ieee", "tf32x3"):
            with report.case(f"fused search, {precision}"), mock.patch.dict(os.environ, {FUSED_SWITCH: precision}):
                fused_ms = median_ms(lambda: nearest_codes(x_NE, weight_KE), report.device)
                row = {"search_ms": round(fused_ms, 4), "times_product": round(fused_ms / product_ms, 3)}
                report.note(f"fused search, {precision}", row)
    for case in CASES:
        if case.name in (TINY_CASES if report.tiny else MEASURED):
            with report.case(case.name):
                report.note(case.name, quantizer_speed.measure(case, 1 if report.tiny else ROUNDS, report.device, None))


def inception(report: Report) -> None:
    """Images per second from uint8 256x256 to features, and of the network alone."""
    batches = {"cpu": 1} if report.tiny else {}
    with mock.patch.dict(evaluation_speed.IMAGE_BATCH, batches):
        report.note("extraction", evaluation_speed.measure_extraction(1 if report.tiny else 5, report.device.type))
