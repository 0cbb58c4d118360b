"""The RQ-Transformer as an experiment wants it: sharded or copied, compiled, recomputing activations."""

from __future__ import annotations

import torch
from torch import nn

from rqtransformer import RQTransformer, RQTransformerConfig
from runtime.distributed import DistEnv
from runtime.precision import Precision
from training.experiment import ExperimentConfig
from training.optimization.parallel import accept_any_placement, materialise, shard, wrap


def build_transformer(
    arch: RQTransformerConfig,
    experiment: ExperimentConfig,
    env: DistEnv,
    precision: Precision,
    accumulates: bool = False,
) -> tuple[RQTransformer, nn.Module]:
    """A new model on `env.device` and what to call in training: itself when sharded or alone, else its DDP wrapper.

    The initial values follow from torch's random state, and are the same however the model is spread. Sharded, it is
    built without values first, so that no process ever holds it whole.

    Args:
        accumulates: whether a step has several backward passes.

    Raises:
        ValueError: fp16 of a sharded model.
    """
    sharded = experiment.parallel == "fsdp" and env.is_distributed
    if sharded and precision.name == "fp16":
        raise ValueError("experiment.precision='fp16' does not go with experiment.parallel=fsdp: choose fp32 or bf16")
    with torch.device("meta" if sharded else "cpu"):
        model = RQTransformer(arch)
    model.gradient_checkpointing = experiment.gradient_checkpointing
    if experiment.compile:
        model.compile_blocks()
    if sharded:
        shard(model, model.blocks, env, precision.amp_dtype)
        materialise(model, env.device)
        return model, model
    model = model.to(env.device)
    accept_any_placement(model)
    # every parameter takes part in every step; DDP's static graph knows no backward pass without averaging
    return model, wrap(model, env, static_graph=not accumulates)
