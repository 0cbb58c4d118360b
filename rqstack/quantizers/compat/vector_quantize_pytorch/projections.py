"""The linear maps in and out of the space of the code vectors, in full precision whatever type the model has."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic.precision import linear


def input_projection(dim: int, inner: int, layernorm: bool) -> nn.Module:
    """dim -> inner, with a layer norm after it if asked for; the identity where they are equal."""
    if dim == inner:
        return nn.Identity()
    return nn.Sequential(nn.Linear(dim, inner), nn.LayerNorm(inner)) if layernorm else nn.Linear(dim, inner)


def output_projection(inner: int, dim: int) -> nn.Module:
    """inner -> dim; the identity where they are equal."""
    return nn.Identity() if dim == inner else nn.Linear(inner, dim)


def projection_pair(dim: int, inner: int, wanted: bool, bias: bool = True) -> tuple[nn.Module, nn.Module]:
    """dim -> inner and inner -> dim; two identities unless they are wanted."""
    if not wanted:
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim, inner, bias), nn.Linear(inner, dim, bias)


def project(module: nn.Module, x: Tensor) -> Tensor:
    """The projection of x (..., C), at least fp32: half-precision input is raised, fp64 stays where nothing maps it."""
    if isinstance(module, nn.Identity):
        return x if x.dtype == torch.float64 else x.float()
    if isinstance(module, nn.Sequential):
        for part in module:
            x = project(part, x)
        return x
    if isinstance(module, nn.Linear):
        return linear(module, x.float())
    if isinstance(module, nn.LayerNorm):
        weight, bias = (None if t is None else t.float() for t in (module.weight, module.bias))
        return nn.functional.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)
    projected: Tensor = module(x)  # a program's own
    return projected
