"""Codes drawn with recorded CUDA graphs against codes drawn without. On a CPU: the form of a step that graphs record.

Legend: B batch, T positions, D code depth.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.gpu.items.models import SMALL_GRID, small_codes, small_tokenizer, small_transformer
from benchmarks.gpu.items.timing import exact_products, share_equal
from benchmarks.gpu.report import Report
from rqtransformer import RQTransformer, sample, sample_stream

NUMBER = 6
NEAR = 0.98  # share of codes that a GPU and a CPU have in common: their sums differ in the last bits
FIRST_STACK = 0.75  # the same of two forms of a step in bf16, at the first position
CUT: dict[str, Any] = {"top_k": 40, "top_p": 0.9}
PER_DEPTH: dict[str, Any] = {"top_k": [16, 8, 4], "top_p": [0.9, 0.8, 0.7], "temperature": [1.0, 0.9, 0.8]}
# name: (changes of the model, changes of its body's blocks, arguments of `sample`)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, CUT),
    "no cut": ({}, {}, {}),
    "guidance": ({"cond_drop_prob": 0.1}, {}, {**CUT, "cfg_scale": "linear:3"}),
    "text": ({"block_size_cond": 7, "vocab_size_cond": 50}, {}, CUT),
    "known": ({}, {}, {**CUT, "known": True}),
    "prefix": ({}, {}, {**CUT, "prefix": True}),
    "gqa and rms": ({}, {"n_kv_head": 2, "norm": "rms"}, CUT),
    "per depth": ({"vocab_size": [128, 64, 32]}, {}, PER_DEPTH),
    "alibi": ({}, {"alibi": True}, CUT),
    "int8": ({}, {}, {**CUT, "weights": "int8"}),
    "bf16": ({}, {}, {**CUT, "amp_dtype": torch.bfloat16}),
}
WITHOUT_CPU = ("bf16", "int8")  # a CPU rounds these in other ways
ROUNDED = ("bf16",)  # the two forms of a step round in other ways: one other code changes all that follow
LOADING_CALLS, MEASURED_CALLS = 40, 3


def _draw(model: RQTransformer, graphs: bool, arguments: dict[str, Any], number: int = NUMBER, seed: int = 3) -> Tensor:
    device = model.pos_emb_hw.device
    arguments = dict(arguments)
    codes_BHWD = small_codes(number).clamp_(max=31).to(device)
    if arguments.pop("known", False):
        arguments["known"] = ((torch.arange(16) % 3 == 0).view(SMALL_GRID[:2]).to(device), codes_BHWD)
    if arguments.pop("prefix", False):
        arguments["prefix"] = codes_BHWD.flatten(1, 2)[:, :5]
    length = model.config.block_size_cond
    cond_BL = torch.arange(number * length, device=device).view(number, length) % 10
    cond = cond_BL.squeeze(1) if length == 1 else cond_BL
    return sample(model, small_tokenizer(device), cond, seed=seed, graphs=graphs, **arguments).cpu()


def variants(report: Report) -> None:
    """Every kind of model and request: a graph changes no code, and fp32 codes are those of a CPU."""
    exact_products()
    for name, (model_changes, block_changes, arguments) in VARIANTS.items():
        with report.case(name):
            model = small_transformer(report.device, block_changes, **model_changes)
            eager, graph = _draw(model, False, arguments), _draw(model, True, arguments)
            if name in ROUNDED:
                share = share_equal(graph[:, 0, 0], eager[:, 0, 0])
                report.check(name, share >= FIRST_STACK, first_position_equal=share)
                continue
            values, near = {"graph_equals_eager": share_equal(graph, eager)}, 1.0
            if report.on_gpu and name not in WITHOUT_CPU:
                on_cpu = small_transformer(torch.device("cpu"), block_changes, **model_changes)
                values["cpu_equal"] = near = share_equal(_draw(on_cpu, False, arguments), eager)
            report.check(name, values["graph_equals_eager"] == 1.0 and near >= NEAR, **values)


class _Recordings:
    """Counts how often a CUDA graph is recorded; never on a CPU."""

    def __init__(self) -> None:
        self.number = 0

    def counting(self) -> Any:
        """A context."""
        begin: Callable[..., Any] = torch.cuda.CUDAGraph.capture_begin

        def count(graph: Any, *arguments: Any, **options: Any) -> Any:
            self.number += 1
            return begin(graph, *arguments, **options)

        return mock.patch.object(torch.cuda.CUDAGraph, "capture_begin", count)


def reuse(report: Report) -> None:
    """A recording serves later calls, seeds and smaller batches, and two streams of one model at a time."""
    exact_products()
    model = small_transformer(report.device)
    recordings = _Recordings()
    with recordings.counting():
        with report.case("later calls"):
            for call, (number, seed) in enumerate(((NUMBER, 3), (NUMBER, 4), (NUMBER - 2, 5), (NUMBER, 3))):
                before = recordings.number
                graph = _draw(model, True, {**CUT, "rows": NUMBER}, number, seed)
                share = share_equal(graph, _draw(model, False, CUT, number, seed))
                new = recordings.number - before
                name = f"call {call + 1}, batch {number}"
                report.check(name, share == 1.0 and (call == 0 or new == 0), graph_equals_eager=share, recordings=new)
    with report.case("other settings"):
        other = {"top_k": 5}
        share = share_equal(_draw(model, True, other), _draw(model, False, other))
        report.check("other settings", share == 1.0, graph_equals_eager=share)
    with report.case("new weights"):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        share = share_equal(_draw(model, True, CUT), _draw(model, False, CUT))
        report.check("new weights", share == 1.0, graph_equals_eager=share)
    with report.case("two streams"):
        alone = [_draw(model, False, CUT, seed=seed) for seed in (7, 8)]
        streams = [_stream(model, report.device, seed) for seed in (7, 8)]
        last: list[Tensor] = [torch.empty(0), torch.empty(0)]
        for parts in zip(*streams):
            last = [part.codes for part in parts]
        shares = [share_equal(codes, expected) for codes, expected in zip(last, alone)]
        report.check("two streams", shares == [1.0, 1.0], equal_to_alone=shares)
    with report.case("one stream outlives another"):
        long, short = (_stream(model, report.device, seed) for seed in (7, 8))
        next(long), next(long), next(long)
        next(short), next(short), next(short)
        short.close()
        for part in long:
            codes = part.codes
        share = share_equal(codes, alone[0])
        report.check("one stream outlives another", share == 1.0, equal_to_alone=share)


def _stream(model: RQTransformer, device: torch.device, seed: int) -> Any:
    cond = torch.arange(NUMBER, device=device) % 10
    return sample_stream(model, small_tokenizer(device), cond, seed=seed, graphs=True, **CUT)


def capture_beside_loader(report: Report) -> None:
    """Recordings while a loader's thread page-locks memory, and what calls leave allocated."""
    calls = MEASURED_CALLS if report.tiny else LOADING_CALLS
    model = small_transformer(report.device)
    stop, errors, held = threading.Event(), list[str](), list[int]()

    def load() -> None:
        try:
            while not stop.is_set():
                rows = [torch.zeros(1 + number % 7, 10_000) for number in range(50)]
                for _ in DataLoader(rows, batch_size=None, pin_memory=report.on_gpu):  # type: ignore[arg-type]  # a list
                    if stop.is_set():
                        return
        except Exception as error:
            errors.append(f"{type(error).__name__}: {str(error)[:200]}")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for seed in range(calls):
            arguments = {**CUT, "top_k": 10 + seed % 4}  # other settings: recorded anew
            _draw(model, True, arguments, seed=seed)
            held.append(torch.cuda.memory_reserved() >> 20 if report.on_gpu else 0)
    finally:
        stop.set()
        thread.join(30)
    growth = held[-1] - held[len(held) // 2]
    report.check("beside a loader", not errors and growth <= 64, loader_errors=errors, reserved_mib=[held[0], held[-1]])
