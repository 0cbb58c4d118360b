"""Optimizers as the published configs describe them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from training.optimization.parallel import full, placed_like
from training.optimization.schedule import WarmupConfig

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
PUBLISHED_NAMES = ["adam", "adamW", "sgd"]


@dataclass
class OptimizerConfig:
    """The `optimizer` section under its published field names (ours: `eps`, `momentum`, `fused`) and with the published
    defaults for `type`, `max_gn` and the momentum of sgd.

    Args:
        type: adam, adamW or sgd, in any case.
        init_lr: learning rate; how it moves from there, `warmup` says.
        weight_decay: of every parameter; decoupled for adamW.
        betas: decay of the two moments of adam and adamW.
        eps: added to the denominator of adam and adamW.
        momentum: of sgd.
        warmup: the learning-rate schedule.
        max_gn: largest gradient norm. null: gradients are not clipped.
        grad_accm_steps: micro-batches per optimizer step, where `experiment.total_batch_size` does not say it.
        fused: auto (one pass over every parameter: adam and adamW on CUDA and CPU), true or false.
    """

    type: str = "adamW"
    init_lr: float = 1e-4
    weight_decay: float = 0.0
    betas: List[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    momentum: float = 0.9
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    max_gn: Optional[float] = None
    grad_accm_steps: int = 1
    fused: Any = "auto"


def build_optimizer(
    params: nn.Module | Iterable[Tensor] | Iterable[dict[str, Any]],
    config: OptimizerConfig,
    device: torch.device | str | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of `config` over a module's trainable parameters (or given parameters or groups).

    As published there is one group: weight decay also covers biases, norms and embeddings. Its `lr` is `init_lr`; the
    loop sets the rate of every step from the schedule. Kernels are fused as `fused` says, else multi-tensor ones.

    Raises:
        ValueError: an unknown type, bad numbers, or nothing to train.
    """
    kind = _check(config)
    given = params.parameters() if isinstance(params, nn.Module) else params
    trained: list[Any] = [entry for entry in given if isinstance(entry, dict) or entry.requires_grad]
    if not trained:
        raise ValueError("nothing to optimize: no parameter requires a gradient")
    options: dict[str, Any] = {"lr": config.init_lr, "weight_decay": config.weight_decay}
    if kind == "sgd":
        options["momentum"] = config.momentum
    else:
        options.update(betas=tuple(config.betas), eps=config.eps)
    options["fused" if _use_fused(config.fused, kind, device) else "foreach"] = True
    return OPTIMIZERS[kind](trained, **options)


def _check(config: OptimizerConfig) -> str:
    kind = config.type.lower()
    if kind not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer.type {config.type!r}, choose one of {PUBLISHED_NAMES}")
    if len(config.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in config.betas):
        raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {list(config.betas)}")
    for name in ("init_lr", "weight_decay", "eps", "momentum"):
        if not 0.0 <= getattr(config, name) < float("inf"):
            raise ValueError(f"optimizer.{name} must be a number >= 0, got {getattr(config, name)}")
    if config.max_gn is not None and not config.max_gn > 0.0:
        raise ValueError(f"optimizer.max_gn must be above 0, or null for no clipping, got {config.max_gn}")
    if config.grad_accm_steps < 1:
        raise ValueError(f"optimizer.grad_accm_steps must be at least 1, got {config.grad_accm_steps}")
    return kind


def _use_fused(fused: Any, kind: str, device: torch.device | str | None) -> bool:
    if isinstance(fused, bool):
        return fused
    if fused != "auto":
        raise ValueError(f"optimizer.fused must be one of ['auto', true, false], got {fused!r}")
    # torch's fused sgd takes neither shares of parameters nor a parameter whose momentum is not there yet
    return kind != "sgd" and device is not None and torch.device(device).type in ("cuda", "cpu")


def clip_gradients(params: Iterable[Tensor], max_norm: float | None = None) -> Tensor:
    """Scales all gradients so that their joint 2-norm is at most `max_norm`; None only measures.

    Gradients may be sharded; the norm is then that of all shares, and every rank must call this.

    Returns:
        The norm before clipping, a float32 scalar on the gradients' device. A non-finite one is the caller's to judge:
        nothing waits for the device here.
    """
    trained = [param for param in params if param.grad is not None]
    gradients = [param.grad for param in trained if param.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = full(torch.nn.utils.get_total_norm(gradients))
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm.float()


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` for moments that are whole or sharded, into parameters that are whole or sharded.

    Weight decay, betas and the like stay those of `optimizer`: a resumed run may have been told other ones.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]

    def placed(index: int, value: Any) -> Any:
        fits = isinstance(value, Tensor) and index < len(params) and value.shape == params[index].shape
        return placed_like(value, params[index]) if fits and value.dim() > 0 else value

    entries = {
        index: {name: placed(index, value) for name, value in entry.items()} for index, entry in state["state"].items()
    }
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = [{**saved, **own} for saved, own in zip(state["param_groups"], options)]
    optimizer.load_state_dict(
        {**state, "state": entries, "param_groups": groups + state["param_groups"][len(options) :]}
    )


def moments_per_parameter(config: OptimizerConfig) -> int:
    """How many numbers the optimizer keeps for every number that it trains, found on a parameter of two."""
    optimizer = build_optimizer([torch.zeros(2, requires_grad=True)], config)
    allocate_optimizer_state(optimizer)
    (state,) = optimizer.state.values()
    return sum(isinstance(value, Tensor) and value.dim() > 0 for value in state.values())


@torch.no_grad()
def allocate_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """The state that the first step would allocate, all zero, without a change of any parameter; for loading into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    params = [param for group in optimizer.param_groups for param in group["params"]]
    gradients = [param.grad for param in params]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for param, gradient in zip(params, gradients):
        param.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
