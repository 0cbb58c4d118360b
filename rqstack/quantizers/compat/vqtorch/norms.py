"""The norms that vqtorch puts on vectors and on code vectors.

Legend: B batch, C channels, L positions, K codebook size, E code-vector size.

The names 'l2' and 'l2c' mean opposite things for the two, as in the original: 'l2' scales vectors to length 1 but only
bounds the length of code vectors, 'l2c' bounds the length of vectors but scales code vectors to length 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LENGTH = 10.0
TINY = 1e-8
GROUPS = 32
NORMS = ("none", "l2", "l2c", "bn", "gn", "in")
CODEBOOK_NORMS = ("none", "l2", "l2c")


def bound_length(x: Tensor) -> Tensor:
    """Vectors (..., E) longer than 10 scaled to length 10; the wanted length is a constant to the gradient."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x * (length.detach().clamp(max=MAX_LENGTH) / (length + TINY))


class VectorNorm(nn.Module):
    """'l2' or 'l2c' of the last dim, after grouping."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        return F.normalize(x, dim=-1, eps=1e-6) if self.name == "l2" else bound_length(x)


def get_norm(norm: str | None, num_channels: int) -> tuple[nn.Module, bool]:
    """The layer of a name and whether it comes before grouping (it then takes (B, C, L, 1))."""
    check_norm("norm", norm, NORMS)
    if norm in (None, "none"):
        return nn.Identity(), True
    if norm in ("l2", "l2c"):
        return VectorNorm(norm), False
    if norm == "bn":
        return nn.BatchNorm2d(num_channels), True
    if norm == "in":
        return nn.InstanceNorm2d(num_channels), True
    return nn.GroupNorm(GROUPS, num_channels, eps=1e-6), True


@torch.no_grad()
def normalize_codebook(weight_KE: Tensor, norm: str | None) -> None:
    """Bring code vectors to the norm, in place."""
    if norm == "l2":
        weight_KE.copy_(bound_length(weight_KE))
    elif norm == "l2c":
        weight_KE.copy_(F.normalize(weight_KE, dim=1, eps=TINY))


def check_norm(name: str, norm: str | None, choices: tuple[str, ...]) -> None:
    """ValueError for an unknown name."""
    if norm is not None and norm not in choices:
        raise ValueError(f"{name} {norm!r} is not one of {', '.join(choices)}")
