"""One row of the throughput table: a preset drawn and decoded batch after batch.

Legend: B batch, H W code grid, D code depth.
"""

from __future__ import annotations

import importlib
import statistics
from typing import Any

import torch

from measure_throughput import memory, presets
from measure_throughput.cost import decoding_cost
from measure_throughput.experiment import LOOP_SECONDS, Experiment
from measure_throughput.roofline import Roofline, seconds
from rqtransformer import RQTransformer, decode_in_batches, sample
from rqvae import RQVAE
from runtime.errors import one_line, say

SEED = 0
OUT_OF_MEMORY = "out of memory"


@torch.no_grad()
def measure(experiment: Experiment, roofline: Roofline) -> dict[str, Any]:
    """Times, memory, costs and the share of the roofline; where memory runs out, a row that says so."""
    row: dict[str, Any] = {"case": experiment.case, "batch_size": experiment.batch_size}
    device, dtype = experiment.torch_device, experiment.torch_dtype
    try:
        stage1, stage2 = build_models(experiment)
        weight_bytes = 1 if experiment.weights == "int8" else dtype.itemsize
        cost = decoding_cost(stage2, experiment.batch_size, dtype.itemsize, weight_bytes)
        memory.reset_peak(device)
        drawn, decoded = time_loops(experiment, stage1, stage2)
    except (RuntimeError, MemoryError) as error:
        if memory.ran_out(error):
            return row | {"error": OUT_OF_MEMORY}
        if experiment.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = one_line(error).partition(" Set TORCHDYNAMO_VERBOSE")[0]
            raise ValueError(f"compile=true does not work here: {reason[:300]}") from error
        raise
    per_sample = 1e3 / experiment.batch_size
    codes = stage2.num_positions * stage2.depth
    bounds = cost.seconds(*roofline)
    row |= {
        "ms_per_sample": (drawn + decoded) * per_sample,
        "ms_per_sample_ar": drawn * per_sample,
        "ms_per_sample_decode": decoded * per_sample,
        "batch_latency_s": drawn,
        "codes_per_s": experiment.batch_size * codes / drawn,
        "gflops": cost.flops / 1e9,
        "gbytes": cost.bytes / 1e9,
        "flops_bound_share": bounds[0] / drawn,
        "bytes_bound_share": bounds[1] / drawn,
        "roofline_share": max(bounds) / drawn,
        "peak_memory_mb": memory.peak_mb(device),
        "parameters_stage1": sum(parameter.numel() for parameter in stage1.parameters()),
        "parameters_stage2": sum(parameter.numel() for parameter in stage2.parameters()),
    }
    if experiment.peer is not None:
        del stage1, stage2
        row |= _peer_row(experiment, experiment.peer, per_sample)
    return row


def build_models(experiment: Experiment) -> tuple[RQVAE, RQTransformer]:
    """Both models with random weights, on the device, in eval mode. Time does not depend on what is in the weights."""
    device = experiment.torch_device
    stage1_config = presets.tokenizer_config(experiment.f, experiment.d, experiment.c)
    height, width, depth = stage1_config.code_shape
    stage2_config = presets.transformer_config(experiment.model, (height, width, depth), experiment.c)
    torch.manual_seed(SEED)
    with torch.device(device):
        stage1, stage2 = RQVAE(stage1_config), RQTransformer(stage2_config)
    if experiment.compile:
        stage1.decoder.compile()
    return stage1.eval(), stage2.eval()


def time_loops(experiment: Experiment, stage1: RQVAE, stage2: RQTransformer) -> tuple[float, float]:
    """Median over loops of the seconds per batch to draw the codes and to decode them, of any two models that fit
    together: of the experiment only loops, batches and number formats are read."""
    device, dtype = experiment.torch_device, experiment.torch_dtype
    cond_B = torch.zeros(experiment.batch_size, dtype=torch.long, device=device)
    amp_dtype = None if dtype == torch.float32 else dtype
    codes: list[torch.Tensor] = [torch.empty(0)]

    def draw() -> None:
        codes[0] = sample(stage2, stage1, cond_B, seed=SEED, amp_dtype=amp_dtype, weights=experiment.weights)

    def decode() -> None:
        with torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            for image_BCHW in decode_in_batches(stage1, codes[0], batch_size=experiment.decode_batch or None):
                (0.5 * image_BCHW + 0.5).clamp_(0, 1)

    times = []
    for loop in range(experiment.n_loop):
        batches: list[tuple[float, float]] = []
        while len(batches) < experiment.batches_per_loop and sum(map(sum, batches)) < experiment.loop_seconds:
            batches.append((seconds(draw, device), seconds(decode, device)))
        _tell(experiment, loop, batches)
        if loop >= experiment.warmup:
            times.append([statistics.mean(part) for part in zip(*batches, strict=True)])
    drawn, decoded = (statistics.median(part) for part in zip(*times, strict=True))
    return drawn, decoded


def _tell(experiment: Experiment, loop: int, batches: list[tuple[float, float]]) -> None:
    """A line of progress, beside the results."""
    drawn, whole = (experiment.batch_size * number for number in (len(batches), experiment.batches_per_loop))
    cut = f" of {whole}: {LOOP_SECONDS:.0f} s were over" if drawn < whole else ""
    each = 1e3 * sum(map(sum, batches)) / drawn
    name = f"{experiment.case}, batch {experiment.batch_size}"
    say(f"{name}: loop {loop + 1}/{experiment.n_loop}, {each:.4g} ms per sample, {drawn} samples{cut}", to_stderr=True)


def _peer_row(experiment: Experiment, package: str, per_sample: float) -> dict[str, Any]:
    try:
        return {"peer_ms_per_sample_ar": measure_peer(experiment, package) * per_sample}
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        return {"peer_error": OUT_OF_MEMORY}


@torch.no_grad()
def measure_peer(experiment: Experiment, name: str) -> float:
    """Seconds per batch of the `generate` of a peer's package, median over the timed loops of one batch each."""
    package = importlib.import_module(name)
    sizes = presets.TRANSFORMERS[experiment.model]
    alone = experiment.d == 1
    torch.manual_seed(SEED)
    model = (
        package.RQTransformer(
            num_tokens=experiment.c,
            dim=sizes.width,
            max_spatial_seq_len=(presets.RESOLUTION // experiment.f) ** 2,
            depth_seq_len=experiment.d,
            spatial_layers=sizes.body_alone if alone else sizes.body,
            depth_layers=max(1, sizes.head),
            dim_head=sizes.width // sizes.num_heads,
            heads=sizes.num_heads,
        )
        .to(experiment.torch_device)
        .eval()
    )
    device, dtype = experiment.torch_device, experiment.torch_dtype

    def draw() -> None:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            model.generate(default_batch_size=experiment.batch_size)

    times = [seconds(draw, device) for _ in range(experiment.n_loop)]
    return statistics.median(times[experiment.warmup :])
