"""Affine re-parametrisation of a codebook: all code vectors move and stretch together, used or not.

Legend: N vectors, E code-vector size, K codebook size, G groups of code vectors; "..." codebooks side by side, if any.

Huh et al., Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized
Networks, ICML 2023 (2305.08842): c = scale * raw + bias. Scale and bias are learned, or follow from running mean and
variance of the vectors and of the raw code vectors, so that the codebook gets the moments of the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.precision import KeepsFloat32
from rqstack.quantizers.arithmetic.signatures import checks_arguments

AFFINE_KINDS = ("learned", "running")
MIN_VARIANCE = 1e-5
MIN_SCALE = 1e-6  # of the inverse of a learned scale


class VectorMoments(NamedTuple):
    """Mean and (biased) variance, both (..., 1, E)."""

    mean: Tensor
    variance: Tensor

    def std(self) -> Tensor:
        """Standard deviation, not below the root of MIN_VARIANCE."""
        return self.variance.clamp(min=MIN_VARIANCE).sqrt()


@torch.no_grad()
def vector_moments(x: Tensor, valid: Tensor | None = None, across_ranks: bool = True) -> tuple[VectorMoments, Tensor]:
    """Moments of the rows of x (..., N, E) and how many rows counted (..., 1, 1), of all processes unless told.

    Rows where `valid` (..., N) is False or that are not finite do not count; without any row both moments are 0.
    """
    finite = x.sum(-1).isfinite()
    keep = (finite if valid is None else finite & valid)[..., None]
    rows = torch.where(keep, x.float(), 0.0)
    count, total = keep.sum(-2, keepdim=True, dtype=torch.float32), rows.sum(-2, keepdim=True)
    if across_ranks:
        sync.all_reduce_sum(count, total)
    mean = total / count.clamp(min=1)
    squares = torch.where(keep, rows - mean, 0.0).square().sum(-2, keepdim=True)
    if across_ranks:
        sync.all_reduce_sum(squares)
    return VectorMoments(mean, squares / count.clamp(min=1)), count


def blend(old: VectorMoments, new: VectorMoments, decay: float, started: Tensor | bool) -> VectorMoments:
    """Moving averages old * decay + new * (1 - decay); `new` itself where nothing has been averaged before."""
    weight = torch.where(torch.as_tensor(started, device=new.mean.device), 1 - decay, 1.0)
    return VectorMoments(*(torch.where(weight < 1, a.lerp(b, weight), b) for a, b in zip(old, new, strict=True)))


def carry(x: Tensor, source: VectorMoments, target: VectorMoments) -> Tensor:
    """The affine map that takes vectors (..., N, E) with moments `source` to moments `target`."""
    return (x - source.mean) * (target.std() / source.std()) + target.mean


def scale_groups(weight_KE: Tensor, scale_GE: Tensor, bias_GE: Tensor, lr_scale: float = 1.0) -> Tensor:
    """(1 + lr_scale * scale) * weight + lr_scale * bias, where the g-th of G equal runs of code vectors has row g.

    With scale and bias 0 at first this is the identity, and lr_scale multiplies their steps by lr_scale^2 (SGD).
    """
    groups, dim = scale_GE.shape
    runs = weight_KE.reshape(groups, -1, dim)
    return (runs * (1 + lr_scale * scale_GE[:, None]) + lr_scale * bias_GE[:, None]).view_as(weight_KE)


class LearnedAffine(nn.Module):
    """Scale and bias as parameters, one pair per group of consecutive code vectors; the identity at first.

    ValueError where the codebook does not split into so many groups.
    """

    def __init__(self, num_codes: int, dim: int, groups: int = 1, lr_scale: float = 1.0):
        super().__init__()
        if groups < 1 or num_codes % groups:
            raise ValueError(f"{num_codes} codes do not split into {groups} affine groups")
        self.lr_scale = lr_scale
        self.scale = nn.Parameter(torch.zeros(groups, dim))
        self.bias = nn.Parameter(torch.zeros(groups, dim))

    def forward(self, weight_KE: Tensor) -> Tensor:
        """Raw code vectors (K, E) -> those that are searched, fp32, differentiable in all."""
        return scale_groups(weight_KE.float(), self.scale.float(), self.bias.float(), self.lr_scale)

    def inverse(self, vectors_KE: Tensor) -> Tensor:
        """Searched code vectors (K, E), one per entry -> the raw ones that give them."""
        scale_G1E, bias_G1E = (
            1 + self.lr_scale * self.scale.float()[:, None],
            self.lr_scale * self.bias.float()[:, None],
        )
        scale_G1E = torch.where(scale_G1E.abs() < MIN_SCALE, MIN_SCALE, scale_G1E)
        runs = vectors_KE.reshape(len(self.scale), -1, vectors_KE.shape[1])
        return ((runs - bias_G1E) / scale_G1E).view_as(vectors_KE)

    def reset(self) -> None:
        """Back to the identity."""
        with torch.no_grad():
            self.scale.zero_()
            self.bias.zero_()


class RunningAffine(KeepsFloat32):
    """Carries raw code vectors to the running moments of the vectors. Its state is fp32 buffers.

    batch_decay, codebook_decay: of the moving averages over vectors and over raw code vectors. The identity until the
    first `observe`.
    """

    batch_mean: Tensor
    batch_variance: Tensor
    codebook_mean: Tensor
    codebook_variance: Tensor
    started: Tensor

    def __init__(self, dim: int, batch_decay: float = 0.99, codebook_decay: float = 0.9):
        super().__init__()
        self.batch_decay, self.codebook_decay = batch_decay, codebook_decay
        for name in ("batch", "codebook"):
            self.register_buffer(f"{name}_mean", torch.zeros(1, dim, dtype=torch.float32))
            self.register_buffer(f"{name}_variance", torch.ones(1, dim, dtype=torch.float32))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, weight_KE: Tensor) -> Tensor:
        """Raw code vectors (K, E) -> those that are searched."""
        return carry(weight_KE, self._codebook(), self._batch())

    def inverse(self, x_NE: Tensor) -> Tensor:
        """Vectors (N, E) -> where they lie among the raw code vectors."""
        return carry(x_NE, self._batch(), self._codebook())

    @torch.no_grad()
    def observe(self, x_NE: Tensor, weight_KE: Tensor, valid_N: Tensor | None = None) -> None:
        """Average in the moments of the valid vectors of all processes and of the raw code vectors; none, no change."""
        seen, count = vector_moments(x_NE, valid_N)
        known, _ = vector_moments(weight_KE, across_ranks=False)
        any_seen = count.view(()) > 0
        pairs = [("batch", seen, self.batch_decay), ("codebook", known, self.codebook_decay)]
        for name, new, decay in pairs:
            old = VectorMoments(getattr(self, f"{name}_mean"), getattr(self, f"{name}_variance"))
            for before, after in zip(old, blend(old, new, decay, self.started), strict=True):
                before.copy_(torch.where(any_seen, after, before))
        self.started |= any_seen

    def reset(self) -> None:
        """Back to the identity: the next moments observed are taken as they are."""
        for name in ("batch", "codebook"):
            getattr(self, f"{name}_mean").zero_()
            getattr(self, f"{name}_variance").fill_(1.0)
        self.started.fill_(False)

    def _batch(self) -> VectorMoments:
        return VectorMoments(self.batch_mean, self.batch_variance)

    def _codebook(self) -> VectorMoments:
        return VectorMoments(self.codebook_mean, self.codebook_variance)


@checks_arguments
@dataclass(frozen=True)
class AffineRule:
    """How a codebook is re-parametrised.

    Attributes:
        kind: 'learned' (groups, lr_scale) or 'running' moments (batch_decay, codebook_decay).
        groups: shares of the codebook with an affine map each.
        lr_scale: factor of what the maps change; their steps grow with its square.
        batch_decay: of the moments of the vectors.
        codebook_decay: of the moments of the code vectors.
    """

    kind: str = "learned"
    groups: int = 1
    lr_scale: float = 1.0
    batch_decay: float = 0.99
    codebook_decay: float = 0.9

    def __post_init__(self) -> None:
        if self.kind not in AFFINE_KINDS:
            raise ValueError(f"affine kind {self.kind!r} is not one of {', '.join(AFFINE_KINDS)}")

    def build(self, num_codes: int, dim: int) -> LearnedAffine | RunningAffine:
        """The module for one codebook (K, E)."""
        if self.kind == "learned":
            return LearnedAffine(num_codes, dim, self.groups, self.lr_scale)
        return RunningAffine(dim, self.batch_decay, self.codebook_decay)
