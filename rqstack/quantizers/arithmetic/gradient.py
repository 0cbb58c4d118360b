"""Gradient estimators. They change the gradient that reaches the encoder, never the value of the output.

Legend: N vectors, E code-vector size. Every estimator takes the vectors and their code vectors and returns the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TINY = 1e-12  # vectors shorter than this have no direction
DIRECTION_NOISE = 0.02  # spread of the noise of `directional`, per coordinate


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient goes to the input as it is."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, quantized: Tensor) -> Tensor:
        return quantized.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output, None


class _Rotation(torch.autograd.Function):
    """Backward: the transpose of the scaled rotation that carries z onto its code vector."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, quantized: Tensor) -> Tensor:
        ctx.save_for_backward(z, quantized)
        return quantized.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        z, quantized = ctx.saved_tensors
        grad = grad_output.float()
        z_length, q_length = (v.float().norm(dim=-1, keepdim=True) for v in (z, quantized))
        from_E, to_E = z.float() / z_length.clamp(min=TINY), quantized.float() / q_length.clamp(min=TINY)
        middle_E = torch.nn.functional.normalize(from_E + to_E, dim=-1, eps=TINY)
        rotated = grad - 2 * (grad * middle_E).sum(-1, keepdim=True) * middle_E
        rotated = rotated + 2 * (grad * to_E).sum(-1, keepdim=True) * from_E
        scaled = rotated * (q_length / z_length.clamp(min=TINY))
        return torch.where(z_length > TINY, scaled, grad).to(z.dtype), None


class _Directional(torch.autograd.Function):
    """Backward: that of z + |quantized - z| * direction with the direction held constant."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, quantized: Tensor, noise: float) -> Tensor:
        ctx.save_for_backward(z, quantized)
        ctx.offset = torch.randn_like(quantized) * noise if noise > 0 else None
        return quantized.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        z, quantized = ctx.saved_tensors
        grad, step = grad_output.float(), quantized.float() - z.float()
        exact_E = torch.nn.functional.normalize(step, dim=-1, eps=TINY)
        drawn = step if ctx.offset is None else step + ctx.offset
        drawn_E = torch.nn.functional.normalize(drawn, dim=-1, eps=TINY)
        along = (grad * drawn_E).sum(-1, keepdim=True) * exact_E
        return (grad - along).to(z.dtype), along.to(quantized.dtype), None


class _Synchronised(torch.autograd.Function):
    """Backward: the gradient goes to the output as it is, and scaled to the code vectors."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, quantized: Tensor, nu: float) -> Tensor:
        ctx.nu, ctx.dtype = nu, quantized.dtype
        return output.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad_output, (ctx.nu * grad_output).to(ctx.dtype), None


def straight_through(z: Tensor, quantized: Tensor) -> Tensor:
    """Output `quantized` bit for bit (in the dtype of `z`) with the gradient of the identity.

    `z + (quantized - z).detach()` has the same gradient but rounds, so decoding the codes again would not give the
    same latent.
    """
    output: Tensor = _StraightThrough.apply(z, quantized.detach())
    return output


def rotation_trick(z: Tensor, quantized: Tensor) -> Tensor:
    """Output `quantized` with the gradient of c R z, where c R is the constant scaled rotation with c R z = quantized.

    The angle between the gradient and the code vector becomes that between the gradient of z and z. Vectors of
    length 0 have no direction and get the straight-through gradient.
    Fifty et al., Restructuring Vector Quantization with the Rotation Trick, arXiv 2410.06424, Eq. 4 and Section 4.2.
    """
    output: Tensor = _Rotation.apply(z, quantized.detach())
    return output


def directional(z: Tensor, quantized: Tensor, noise: float = DIRECTION_NOISE) -> Tensor:
    """Output `quantized` with the gradient of z + |quantized - z| u, u a constant direction near quantized - z.

    noise: standard deviation, per coordinate, of what is added to quantized - z before u is taken. The distance is
    differentiated, so a learned codebook gets a gradient too.
    Directional re-parametrisation (DiVeQ), arXiv 2509.26469.
    """
    output: Tensor = _Directional.apply(z, quantized, noise)
    return output


def synchronised(output: Tensor, quantized: Tensor, nu: float) -> Tensor:
    """`output` of an estimator with nu times its gradient added to that of `quantized`, the code vectors in it.

    A learned codebook then also moves with the gradient of what the code vectors are used for, in the same step as the
    encoder, and not only after its own loss. Huh et al., arXiv 2305.08842, the synchronised update rule.
    """
    followed: Tensor = _Synchronised.apply(output, quantized, nu)
    return followed


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation_trick,
    "directional": directional,
}
