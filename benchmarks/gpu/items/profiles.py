"""Where the time goes: kernels and gaps of the three measured cases that are furthest from what the device can do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.items import sampler, training
from benchmarks.gpu.items.models import SMALL_RESOLUTION, as_in_training, imagenet_stage1, imagenet_stage2, images
from benchmarks.gpu.report import Report
from benchmarks.gpu.result_lines import latest_lines
from measure_throughput.roofline import seconds, synchronize
from rqtransformer import sample_stream

NUMBER, KERNELS = 3, 15
WARM_UP, POSITIONS = 6, 8  # of a sampler's positions: eager ones and the recording come before what is profiled
NAME = 90  # characters of a kernel's name


class Case(NamedTuple):
    """What can be profiled.

    Attributes:
        item, entry, share: where the results say which share of the device's limit it reached.
        prepare: gives the call that is profiled, warmed up.
    """

    item: str
    entry: str
    share: str
    prepare: Callable[[Report], Callable[[], object]]


def _sampler(factor: int, depth: int, batch: int) -> Callable[[Report], Callable[[], object]]:
    def prepare(report: Report) -> Callable[[], object]:
        models = sampler.build(report, factor, depth)
        number = 1 if report.tiny else batch
        cond_B = torch.zeros(number, dtype=torch.long, device=report.device)
        stream = sample_stream(models.stage2, models.stage1, cond_B, seed=0, amp_dtype=torch.bfloat16)
        for _ in range(WARM_UP):
            next(stream)
        return lambda: [next(stream) for _ in range(POSITIONS)]

    return prepare


def _stage1(report: Report) -> Callable[[], object]:
    words = ["arch.checkpointing=false", *training.STAGE1["bf16 channels_last"][1]]
    stage = imagenet_stage1(report.device, words, report.tiny)
    batch = images(2, SMALL_RESOLUTION, report.device) if report.tiny else images(32, 256, report.device)
    for step in range(1 if report.tiny else 3):
        stage.train_step([batch], step + 1)
    return lambda: stage.train_step([batch], 4)


def _stage2(report: Report) -> Callable[[], object]:
    stage = imagenet_stage2(report.device, "1400M", ["experiment.precision=bf16"], report.tiny)
    batch = training.stage2_latents(report, 2 if report.tiny else 64)
    for step in range(1 if report.tiny else 3):
        stage.train_step([batch], step + 1)
    return lambda: stage.train_step([batch], 4)


CASES = {
    "sampler 8x8x4, batch 500": Case("sampler_8x8x4", "batch 500", "roofline_share", _sampler(32, 4, 500)),
    "stage 1, 256 px, bf16": Case("stage1_256", "bf16 channels_last", "mfu", _stage1),
    "stage 2, 1.4B, latents": Case("stage2_1400m", "batch 64 latents", "mfu", _stage2),
    "sampler 8x8x4, batch 1": Case("sampler_8x8x4", "batch 1", "roofline_share", _sampler(32, 4, 1)),
    "sampler 16x16x1, batch 200": Case("sampler_16x16x1", "batch 200", "roofline_share", _sampler(16, 1, 200)),
}


def slowest(report: Report) -> None:
    """The three with the lowest share of the device's limit in the results of this code; without results the first."""
    as_in_training(report)
    shares = _shares(Path(report.settings.results), report.settings.identity)
    report.note("shares", {name: share for name, share in shares.items() if share is not None})
    # what was not measured comes last; the order of the table decides between equals
    order = sorted(CASES, key=lambda name: shares[name] if shares[name] is not None else 1e9)
    for name in order[:NUMBER]:
        with report.case(name):
            report.note(name, profiled(CASES[name].prepare(report), report))


def _shares(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """What was reached with this code on this device."""
    results = {item: line["result"] for item, line in latest_lines(path, identity).items()}
    return {name: results.get(case.item, {}).get(case.entry, {}).get(case.share) for name, case in CASES.items()}


def profiled(run: Callable[[], object], report: Report) -> dict[str, Any]:
    """Wall time without the profiler's, busy time of the device, gaps between its kernels, and the longest kernels."""
    wall_ms = 1e3 * seconds(run, report.device)
    activity = ProfilerActivity.CUDA if report.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as record:
        run()
        synchronize(report.device)
    kind = "CUDA" if report.on_gpu else "CPU"
    spans = [(e.time_range.start, e.time_range.end, e.name) for e in record.events() if e.device_type.name == kind]
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for start, end, name in spans:
        totals[name][0] += (end - start) / 1e3
        totals[name][1] += 1
    longest = sorted(totals.items(), key=lambda entry: -entry[1][0])[:KERNELS]
    busy_us, gaps_us = busy_and_gaps([(start, end) for start, end, _ in spans])
    return {
        "wall_ms": round(wall_ms, 3),
        "kernels": len(spans),
        "busy_ms": round(busy_us / 1e3, 3),
        "gaps_ms": round(sum(gaps_us) / 1e3, 3),
        "longest_gaps_us": [round(gap, 1) for gap in sorted(gaps_us, reverse=True)[:5]],
        "longest": [[name[:NAME], round(total, 3), int(count)] for name, (total, count) in longest],
    }


def busy_and_gaps(spans: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Time that at least one span covers, and the times between that none covers."""
    busy, gaps, reached = 0.0, list[float](), None
    for start, end in sorted(spans):
        if reached is not None and start > reached:
            gaps.append(start - reached)
        begin = start if reached is None else max(start, reached)
        busy += max(0.0, end - begin)
        reached = end if reached is None else max(reached, end)
    return busy, gaps
