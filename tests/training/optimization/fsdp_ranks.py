"""What two processes do for `test_fsdp.py`: every case once, results as files. Also what one process does beside them.

A case trains stage 2 step by step, without a loop or checkpoints, and keeps what the main process gathers.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rqstack.snapshots import weights_digest
from rqtransformer import RQTransformer, RQTransformerConfig
from runtime import distributed
from runtime.config import load_config
from runtime.distributed import DistEnv
from runtime.precision import Precision
from runtime.seeding import seed_everything_for_step
from tests.training.tiny_runs import STAGE2, changed, pictured, session, stage2, validated, write_config
from training.experiment import ExperimentConfig, plan_batches
from training.launch.session import Session
from training.optimization.ema import EMA
from training.optimization.optimizer import OptimizerConfig
from training.optimization.parallel import full, gather_to_main, is_sharded, local, shard
from training.optimization.update import ScaledUpdate, build_update
from training.stages.stage2 import Stage2Config
from training.stages.transformer_building import build_transformer

FEW_STEPS, GLOBAL_BATCH = 4, 8
PUBLISHED_ADAM = {"type": "adamW", "init_lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 1e-4, "max_gn": 1.0}
PLAN = {
    "experiment.max_steps": 20,
    "experiment.total_batch_size": GLOBAL_BATCH,
    "experiment.test_images": 7,
    "arch.ema": 0.9,
    "optimizer": PUBLISHED_ADAM,
    "arch.body.n_layer": 2,
    "arch.embed_dim": 32,
}
OWN_TABLES = {
    "arch.input_emb_vqvae": False,
    "arch.head_emb_vqvae": False,
    "arch.shared_tok_emb": False,
    "arch.shared_cls_emb": False,
}
TEXT = {
    "arch.vocab_size_cond": 27,
    "arch.block_size_cond": 8,
    "loss.txt_weight": 0.1,
    "loss.img_weight": 0.9,
    "arch.cond_drop_prob": 0.0,
}
COMPILED = "compiled"
CASES: dict[str, dict[str, Any]] = {
    "published": {},
    # one validation image: the second rank has none, and yet takes part
    "accumulated-text": TEXT
    | {"experiment.batch_size": 2, "experiment.gradient_checkpointing": True, "experiment.test_images": 1},
    "bf16-own-tables": OWN_TABLES
    | {"experiment.precision": "bf16", "experiment.gradient_checkpointing": "selective", "optimizer.type": "sgd"},
    COMPILED: {"experiment.compile": True},
}
NUM_STEPS = {"published": 20}
INITIAL = {
    "published": {},
    "own-tables": OWN_TABLES,
    "text": TEXT | {"arch.cond_drop_prob": 0.1},
    "shared-table": OWN_TABLES | {"arch.shared_tok_emb": True},
    "rms": {"arch.body.block.norm": "rms"},
}
ALONE = DistEnv(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="none")


def train_cases(rank: int, names: list[str], tokenizer: str, folder: str) -> None:
    """The work of one of two ranks."""
    for name in names:
        run = start(name, "fsdp", tokenizer, Path(folder))
        assert is_sharded(run.stage.parallel)
        train_case(run, name, Path(folder))


def build_all(rank: int, folder: str) -> None:
    """Builds every model of `INITIAL` on one of two ranks, and measures how."""
    env = distributed.initialize()
    for name, changes in INITIAL.items():
        model = build(changes, "fsdp", env)
        save_if_main(gather_to_main(model.state_dict(), env.is_main), Path(folder) / f"initial-{name}.safetensors")
    sizes = {"peak": peak_of_building({}, env), **sizes_of(build({}, "fsdp", env))}
    (Path(folder) / f"sizes{rank}.json").write_text(json.dumps(sizes))
    for first, second in (("none", "fsdp"), ("fsdp", "none"), ("fsdp", "fsdp")):
        check_state_moves(trained(first, env, seed=1), trained(second, env, seed=2))


@dataclass
class Trained:
    """A model with its average and its update, after one step."""

    model: nn.Module
    ema: EMA
    update: ScaledUpdate

    def tensors(self) -> dict[str, Tensor]:
        """Everything, whole."""
        moments = {
            f"{index}.{name}": value
            for index, entry in self.update.optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        states = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "moments": moments}
        return {
            f"{part}/{name}": full(value).clone() for part, state in states.items() for name, value in state.items()
        }


def trained(parallel: str, env: DistEnv, seed: int) -> Trained:
    """A model after one step on gradients that follow from its values alone."""
    model = build({"arch.cond_drop_prob": 0.1}, parallel, env, seed)
    experiment = ExperimentConfig(batch_size=1, max_steps=9)
    update = build_update(
        model,
        OptimizerConfig(init_lr=0.1, max_gn=1.0),
        experiment,
        plan_batches(experiment, 9, 1),
        env,
        Precision("fp32", env.device),
    )
    ema = EMA(model, 0.5)
    for parameter in model.parameters():
        parameter.grad = parameter.detach().sin()
    update.step(1, {})
    ema.update(model)
    return Trained(model, ema, update)


def check_state_moves(giver: Trained, taker: Trained) -> None:
    """State dicts have the same names and nesting however the tensors are placed, and load into either placement."""
    before = {name: value.clone() for name, value in giver.tensors().items()}
    assert any(not torch.equal(before[name], value) for name, value in taker.tensors().items())
    kinds = [type(parameter.data) for parameter in taker.model.parameters()]
    taker.model.load_state_dict(giver.model.state_dict())
    taker.ema.load_state_dict(giver.ema.state_dict())
    taker.update.load_state_dict(giver.update.state_dict())
    after = taker.tensors()
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []
    moments = [taker.update.optimizer.state[parameter]["exp_avg"] for parameter in taker.model.parameters()]
    assert [type(moment) for moment in moments] == kinds, "the placement stays what it was"
    assert [type(parameter.data) for parameter in taker.model.parameters()] == kinds


def account(rank: int, world_size: int, config_file: str, folder: str) -> None:
    """Shares of a published model as one of many ranks would hold them; nothing is allocated or sent."""
    torch.distributed.init_process_group("fake", rank=world_size - 1, world_size=world_size)
    config = load_config(Stage2Config, config_file)
    config.arch.vocab_size = config.dataset.vocab_size
    with torch.device("meta"):
        model = RQTransformer(config.arch)
    env = DistEnv(world_size - 1, world_size, 0, torch.device("cpu"), "fake")
    shard(model, model.blocks, env, torch.bfloat16)
    assert all(local(parameter).is_meta for parameter in model.parameters())
    (Path(folder) / f"{world_size}.json").write_text(json.dumps(sizes_of(model)))
    torch.distributed.destroy_process_group()


def start(name: str, parallel: str, tokenizer: str, folder: Path) -> Session:
    """A session of one case: two ranks share the batch, one process has all of it."""
    sharded = parallel == "fsdp"
    # traced as in earnest, but without a code generator, which takes minutes (test_blocks.py has one)
    RQTransformer.compile_blocks = lambda model: [block.compile_forward(backend="aot_eager") for block in model.blocks]
    changes = PLAN | {"experiment.batch_size": GLOBAL_BATCH // 2} | CASES[name] | {"experiment.parallel": parallel}
    if not sharded:
        changes |= {"experiment.batch_size": GLOBAL_BATCH, "experiment.compile": False}
    config = write_config(folder / f"{name}-{parallel}-{os.getpid()}.yaml", stage2(changes))
    return session("stage2", "-m", config, "-v", tokenizer, "-r", folder / "runs")


def train_case(run: Session, name: str, folder: Path) -> None:
    """The case's steps; losses and validation in `<name>.json`, weights and moments in `<name>.safetensors`."""
    stage, env = run.stage, run.env
    digest = weights_digest(stage.tokenizer)
    losses = []
    for step in range(NUM_STEPS.get(name, FEW_STEPS)):
        seed_everything_for_step(0, 0, step)
        metrics = stage.train_step(micro_batches(run, step), step)
        losses.append(
            [distributed.all_reduce_mean_(metrics[name].double().clone()).item() for name in ("loss", "grad_norm")]
        )
    stage.window_metrics()
    result = {"losses": losses, "validation": validated(run), "tokenizer": digest}
    assert weights_digest(stage.tokenizer) == digest
    assert distributed.gather_objects(digest) == [digest] * env.world_size
    raw, averaged = stage.snapshot()
    pictures = pictured(run)
    run.close()
    moments = gather_to_main(flat_moments(stage), env.is_main)
    if env.is_main:
        (folder / f"{name}.json").write_text(json.dumps(result))
        save_file(
            {
                **prefixed("model", raw),
                **prefixed("ema", averaged),
                **prefixed("moments", moments),
                "samples": pictures["samples"].contiguous(),
            },
            folder / f"{name}.safetensors",
        )


def micro_batches(run: Session, step: int) -> list[dict[str, Tensor]]:
    """This rank's images of a step: the global batch is the same for any number of ranks and micro-steps."""
    first = step * GLOBAL_BATCH + run.env.rank * GLOBAL_BATCH // run.env.world_size
    mine = range(first, first + GLOBAL_BATCH // run.env.world_size)
    items = [run.train_set[index % len(run.train_set)] for index in mine]
    size = run.plan.micro_batch
    parts = [items[start : start + size] for start in range(0, len(items), size)]
    assert len(parts) == run.plan.accumulation
    return [{key: torch.stack([item[key] for item in part]) for key in part[0]} for part in parts]


def flat_moments(stage: Any) -> dict[str, Tensor]:
    """The optimizer's tensors that have the shape of a parameter."""
    state = stage.update.optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, entry in state.items()
        for name, value in entry.items()
        if isinstance(value, Tensor) and value.dim()
    }


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}/{name}": tensor.contiguous() for name, tensor in tensors.items()}


def build(changes: dict[str, Any], parallel: str, env: DistEnv, seed: int = 0) -> nn.Module:
    """A transformer with the initial values of a seed."""
    arch = changed(STAGE2, {"arch.vocab_size": [16, 12, 8], "arch.embed_dim": 32} | changes)["arch"]
    seed_everything_for_step(seed, 0, -1)
    experiment = ExperimentConfig(batch_size=1, parallel=parallel)
    env = env if parallel == "fsdp" else ALONE
    return build_transformer(RQTransformerConfig.from_mapping(arch), experiment, env, Precision("fp32", env.device))[0]


def save_if_main(tensors: dict[str, Tensor], path: Path) -> None:
    if tensors:
        save_file(tensors, path)


def sizes_of(model: nn.Module) -> dict[str, int]:
    """Bytes of this rank's shares, of all parameters, and of the largest block."""
    return {
        "shares": sum(local(parameter).nbytes for parameter in model.parameters()),
        "whole": sum(parameter.numel() * 4 for parameter in model.parameters()),
        "block": max(sum(parameter.numel() * 4 for parameter in block.parameters()) for block in model.blocks),
    }


def peak_of_building(changes: dict[str, Any], env: DistEnv) -> int:
    """The most bytes that were allocated at once, beyond those before, while a sharded model was built."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        model = build(changes, "fsdp", env)
    assert full(model.pos_emb_hw).isfinite().all()
    return peak_bytes(profile)


def peak_bytes(profile: torch.profiler.profile) -> int:
    """The highest sum of allocations less frees, in the order in which they happened."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
