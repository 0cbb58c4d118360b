"""Exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.optimization.parallel import copy_into, local


def effective_decay(step: int | None, mu: float) -> float:
    """Decay applied after optimizer step `step`: min(mu, (1 + step) / (10 + step)), so that the start fades fast.

    None gives `mu` itself; a negative step gives 0, a plain copy of the model.
    """
    if step is None:
        return mu
    if step < 0:
        return 0.0
    return min(mu, (1 + step) / (10 + step))


class EMA:
    """Averages of a model's floating-point state, held in float32 whatever the model's precision; integers are copied.

    The published average covers buffers too: the code vectors (buffers here) move with the averaged encoder and decoder
    that use them.

    Args:
        model: the model itself, not its DDP or compile wrapper (their names differ). The average starts as its copy.
        mu: the decay, in [0, 1).

    Raises:
        ValueError: another `mu`.
    """

    def __init__(self, model: nn.Module, mu: float) -> None:
        if isinstance(mu, bool) or not isinstance(mu, (int, float)) or not 0.0 <= mu < 1.0:
            raise ValueError(f"the decay of the weight average must be a number in [0, 1), got {mu!r}")
        self.mu = float(mu)
        self.shadow = {name: _as_shadow(value) for name, value in _state(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """average <- decay * average + (1 - decay) * model after optimizer step `step`; see `effective_decay`."""
        state = _state(model)
        averaged: list[str] = []
        copied: list[str] = []
        for name in self.shadow:
            (averaged if state[name].is_floating_point() else copied).append(name)
        if copied:
            torch._foreach_copy_([local(self.shadow[name]) for name in copied], [local(state[name]) for name in copied])
        if averaged:
            decay = effective_decay(step, self.mu)
            # every rank averages its own share of a sharded model
            shadows = [local(self.shadow[name]) for name in averaged]
            values = [local(state[name]).to(shadow.dtype) for name, shadow in zip(averaged, shadows)]
            torch._foreach_mul_(shadows, decay)
            torch._foreach_add_(shadows, values, alpha=1.0 - decay)

    @contextmanager
    def swap(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model holds the average; afterwards its own values again, bit for bit."""
        state = _state(model)
        backup = {name: value.clone() for name, value in state.items()}
        try:
            self.copy_to(model)
            yield
        finally:
            for name, value in state.items():
                local(value).copy_(local(backup[name]))

    def copy_to(self, model: nn.Module) -> None:
        """Overwrites the model's state with the average, cast to the model's precision."""
        for name, value in _state(model).items():
            local(value).copy_(local(self.shadow[name]))

    def state_dict(self) -> dict[str, Tensor]:
        """name -> average, under the names of the model's state dict (shared modules under their first name)."""
        return dict(self.shadow)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continues from `state_dict()`, of a sharded or a whole model.

        Raises:
            ValueError: naming a missing or unexpected entry.
        """
        wrong = sorted(set(state) ^ set(self.shadow))
        if wrong:
            raise ValueError(f"the weight average does not fit the model: {len(wrong)} names differ, first {wrong[0]}")
        for name, value in self.shadow.items():
            copy_into(value, state[name])


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, each once even if modules are shared."""
    persistent = model.state_dict(keep_vars=True).keys()
    entries = [*model.named_parameters(), *model.named_buffers()]
    return {name: value.detach() for name, value in entries if name in persistent}


def _as_shadow(value: Tensor) -> Tensor:
    wide = torch.promote_types(value.dtype, torch.float32) if value.is_floating_point() else value.dtype
    return value.to(wide, copy=True)
