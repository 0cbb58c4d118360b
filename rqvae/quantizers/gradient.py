"""Gradient estimators. They change the gradient that reaches the encoder, never the value of the output."""

from __future__ import annotations

import torch


class _StraightThrough(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient goes to the input as it is."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.to(z.dtype, copy=True)

    @staticmethod
    def backward(ctx, grad_output: torch.Tensor):
        return grad_output, None


def straight_through(z: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """Output `quantized` bit for bit (in the dtype of `z`) with the gradient of the identity.

    `z + (quantized - z).detach()` has the same gradient but rounds, so decoding the codes again would not give the
    same latent.
    """
    return _StraightThrough.apply(z, quantized.detach())
