"""What of the cost model can be counted on one CPU: FLOPs, bytes of state and activations, bytes between two ranks.

Legend: B batch, H W code grid, D code depth, E code-vector size, K codebook size.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.code_vectors import CodeVectors
from benchmarks.scaling_costs import BF16, FP32, describe, state_bytes, volumes
from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import Precision
from training.experiment import BatchPlan, ExperimentConfig, plan_batches
from training.loop.throughput import FlopCounter
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import local, no_sync
from training.optimization.update import ScaledUpdate, build_update
from training.stages.transformer_building import build_transformer

CODES, CODE_DIM, BATCH, ACCUMULATION = 80, 24, 4, 2
GEMM_SIZE = 768


def small_arch(dropout: float = 0.0) -> RQTransformerConfig:
    """The published shape, small: 8 + 2 blocks of width 128 on 4x4x4 codes. No dropout: a CPU keeps it differently."""
    block = {"n_head": 4, "resid_pdrop": dropout}
    return RQTransformerConfig.from_mapping(
        {
            "block_size": [4, 4, 4],
            "embed_dim": 128,
            "input_embed_dim": CODE_DIM,
            "vocab_size": CODES,
            "shared_tok_emb": True,
            "shared_cls_emb": True,
            "input_emb_vqvae": True,
            "head_emb_vqvae": True,
            "cumsum_depth_ctx": True,
            "vocab_size_cond": 10,
            "body": {"n_layer": 8, "block": block},
            "head": {"n_layer": 2, "block": block},
        }
    )


class SmallRun:
    """A model with its update and its average, on this process's device."""

    def __init__(self, parallel: str, env: DistEnv, precision: str = "fp32", recompute: bool = False):
        torch.manual_seed(0)
        experiment = ExperimentConfig(
            batch_size=BATCH, max_steps=1000, parallel=parallel, gradient_checkpointing=recompute
        )
        plan: BatchPlan = plan_batches(experiment, 10_000, env.world_size)
        self.precision = Precision(precision, env.device)
        self.model, self.parallel = build_transformer(small_arch(), experiment, env, self.precision, accumulates=True)
        self.model.train()
        self.update: ScaledUpdate = build_update(self.model, OptimizerConfig(), experiment, plan, env, self.precision)
        self.ema = EMA(self.model, 0.99)
        self.tokenizer = CodeVectors(torch.randn(CODES, CODE_DIM))
        self.codes_BHWD = torch.randint(CODES, (BATCH, 4, 4, 4))
        self.targets = SoftTargets(torch.randn(BATCH, 4, 4, 4, CODE_DIM), [self.tokenizer.book_KE] * 4, 1.0)

    def loss(self) -> Tensor:
        """One forward pass."""
        with self.precision.autocast():
            output = self.parallel(self.codes_BHWD, self.tokenizer, torch.zeros(BATCH, dtype=torch.long))
        return stage2_loss(output, self.codes_BHWD, self.targets, None, Stage2LossConfig())[0]

    def step(self, accumulation: int = 1) -> None:
        """One optimizer step."""
        for index in range(accumulation):
            with no_sync(self.parallel, enabled=index + 1 < accumulation):
                self.update.backward(self.loss() / accumulation)
        self.update.step(1, {})
        self.ema.update(self.model, 1)


def alone() -> DistEnv:
    """This process on its CPU."""
    return DistEnv(0, 1, 0, torch.device("cpu"), "none")


def row(name: str, predicted: float, measured: float) -> dict[str, Any]:
    """One comparison."""
    return {"check": name, "predicted": predicted, "measured": measured, "ratio": round(measured / predicted, 4)}


def check_flops(arch: RQTransformerConfig) -> dict[str, Any]:
    """Forward and backward of one image of a published model, counted operator by operator without computing any."""
    with torch.device("meta"):
        model = RQTransformer(arch)
        codes_BHWD = torch.zeros(1, *arch.block_size, dtype=torch.long)
        cond = torch.zeros(1, arch.block_size_cond, dtype=torch.long)
        book = CodeVectors(torch.zeros(max(arch.vocab_sizes), arch.code_dim))
        with FlopCounter() as counter:
            model(codes_BHWD, book, cond).logits.sum().backward()
    return row("FLOPs of one image, forward and backward", 3 * describe(arch).forward, counter.flops)


def check_small_step() -> list[dict[str, Any]]:
    """FLOPs of a real step with soft targets, then the bytes that stay after it."""
    run = SmallRun("none", alone())
    counts = describe(small_arch(), FP32, dropout=False)
    with FlopCounter() as counter:
        run.step()
    predicted = BATCH * (3 * counts.forward + counts.targets)
    rows = [row("FLOPs of a small step", predicted, counter.flops)]
    run.loss().backward()
    expected = state_bytes(counts.params, 1, ema=True)
    for name, size in held_bytes(run).items():
        rows.append(row(f"bytes of {name}", expected[name], size))
    return rows


def held_bytes(run: SmallRun) -> dict[str, int]:
    """Bytes of this process by what they hold; counters left out."""
    parameters = list(run.model.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    moments = [
        value
        for entry in run.update.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor) and value.dim()
    ]
    return {
        "parameters": sum(local(parameter).nbytes for parameter in parameters),
        "gradients": sum(local(gradient).nbytes for gradient in gradients),
        "moments": sum(local(moment).nbytes for moment in moments),
        "average": sum(local(value).nbytes for value in run.ema.shadow.values()),
    }


def check_activations(precision: str) -> dict[str, Any]:
    """Bytes that recomputation saves: what autograd keeps of all blocks beyond their inputs."""
    counts = describe(small_arch(), FP32 if precision == "fp32" else BF16, dropout=False)
    kept = [kept_for_backward(SmallRun("none", alone(), precision, recompute)) for recompute in (False, True)]
    predicted = BATCH * (counts.block_bytes - counts.block_inputs)
    return row(f"bytes of activations that recomputation saves, {precision}", predicted, kept[0] - kept[1])


def kept_for_backward(run: SmallRun) -> int:
    """Bytes that autograd keeps from a forward pass, without parameters and their rounded copies."""
    own = {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}
    weights = {tuple(sorted(parameter.shape)) for parameter in run.model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage().data_ptr()
        rounded_weight = tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in weights
        if storage not in own and not rounded_weight:
            kept[storage] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run.loss()
    assert loss.isfinite()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def check_speed(rounds: int = 7) -> dict[str, Any]:
    """The efficiency that the model states as one number, here: a small step beside one large product, in turns."""
    run, left, right = SmallRun("none", alone()), *torch.randn(2, GEMM_SIZE, GEMM_SIZE)
    counts = describe(small_arch(), FP32, dropout=False)
    times: dict[str, list[float]] = {"product": [], "step": []}
    work: dict[str, Callable[[], Any]] = {"product": lambda: torch.mm(left, right), "step": run.step}
    for turn in range(rounds + 2):
        for name, call in work.items():
            start = time.process_time()
            call()
            if turn >= 2:
                times[name].append(time.process_time() - start)
    product, step = (statistics.median(values) for values in times.values())
    rate = 2 * GEMM_SIZE**3 / product
    flops = BATCH * (3 * counts.forward + counts.targets)
    return {
        "check": "efficiency of a small step on this processor, one thread",
        "gflop_s": round(rate / 1e9, 1),
        "step_seconds": round(step, 4),
        "efficiency": round(flops / step / rate, 3),
    }


def check_traffic() -> list[dict[str, Any]]:
    """Bytes of the collectives of one step of two ranks, as the profiler sees their tensors; and bytes held."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        start_processes(_count_traffic, (port, folder), nprocs=2, start_method="spawn")
        ranks = [json.loads((Path(folder) / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    counts = describe(small_arch(), FP32, dropout=False)
    rows = []
    for parallel in ("ddp", "fsdp"):
        for name, size in volumes(counts, parallel, ACCUMULATION, FP32).items():
            rows.append(row(f"bytes of {name} in a step, {parallel}, 2 ranks", size, ranks[0][parallel]["sent"][name]))
        expected = state_bytes(counts.params, 2 if parallel == "fsdp" else 1, ema=True)
        held = max(sum(rank[parallel]["held"].values()) for rank in ranks)
        rows.append(row(f"bytes of state per rank, {parallel}, 2 ranks", sum(expected.values()), held))
    return rows


def _count_traffic(rank: int, port: int, folder: str) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    torch.set_num_threads(1)
    env = distributed.initialize(timeout=120, device="cpu")
    result = {}
    for parallel in ("ddp", "fsdp"):
        run = SmallRun(parallel, env)
        run.step(ACCUMULATION)  # the first step also exchanges shapes
        sent = traffic(partial(run.step, ACCUMULATION))
        run.update.backward(run.loss())
        result[parallel] = {"sent": sent, "held": held_bytes(run)}
        del run
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(result), encoding="utf-8")
    distributed.shutdown()


def traffic(call: Callable[[], None]) -> dict[str, int]:
    """Bytes (fp32 elements) of the whole tensor of every collective in a call, by its kind; scalars left out."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, acc_events=True
    ) as profile:
        call()
    sent = {"all_reduce": 0, "all_gather": 0, "reduce_scatter": 0}
    for event in profile.events():
        shapes = [shape for shape in event.input_shapes or [] if len(shape) == 1 and isinstance(shape[0], int)]
        if event.name == "c10d::_allgather_base_":
            sent["all_gather"] += FP32 * shapes[0][0]
        elif event.name == "c10d::_reduce_scatter_base_":
            sent["reduce_scatter"] += FP32 * shapes[1][0]
        elif event.name == "gloo:all_reduce" and shapes and shapes[0][0] > 1:
            sent["all_reduce"] += FP32 * shapes[0][0]
    return sent


def count_encoder(encoder: nn.Module, resolution: int) -> float:
    """FLOPs of a frozen encoder (built on the meta device) on one image."""
    with torch.no_grad(), FlopCounter() as counter:
        encoder(torch.zeros(1, 3, resolution, resolution, device="meta"))
    return float(counter.flops)
