"""fp32 arithmetic, whatever precision surrounds a quantizer and whatever type its module was cast to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_AS_IT_IS = contextlib.nullcontext()


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Autocast and TF32 off: the arithmetic of a quantizer is fp32. Costs nothing where neither is on."""
    matmul = full_precision_matmul(device)
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return matmul
    autocast = torch.autocast(device.type, enabled=False)
    return autocast if matmul is _AS_IT_IS else _both(autocast, matmul)


def full_precision_matmul(device: torch.device) -> AbstractContextManager[object]:
    """Switch TF32 matrix products off inside: their 10-bit mantissa changes which code is nearest.

    Compiled code cannot switch it: there the searches do so themselves, other products follow the user's setting.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return _AS_IT_IS
    if torch.backends.cuda.matmul.fp32_precision in ("ieee", "none"):
        return _AS_IT_IS
    return _without_tf32()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextlib.contextmanager
def _both(first: AbstractContextManager[object], second: AbstractContextManager[object]) -> Iterator[None]:
    with first, second:
        yield


class KeepsFloat32(nn.Module):
    """For modules whose buffers move with the model but stay fp32 when it is cast. Put it before other bases."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self


def linear(layer: nn.Linear | nn.Identity, x: Tensor) -> Tensor:
    """A linear layer (or the identity) in fp32, whatever type its weights were cast to."""
    if isinstance(layer, nn.Identity):
        return x
    return F.linear(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


def without_masked_nonfinite(z: Tensor, mask: Tensor) -> Tensor:
    """Zeros for what is not finite at masked positions: a gradient of zero times infinity would be no number."""
    return torch.where(mask[..., None] | z.isfinite(), z, 0.0)
