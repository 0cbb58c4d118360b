"""Activations of a block that the backward pass works out again instead of keeping them.

Legend: B batch, L sequence length, C width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recomputation = bool | Literal["selective"]
CHOICES: tuple[Recomputation, ...] = (False, True, "selective")

# Results that `selective` keeps: products of matrices, and attention where it is one operator.
KEPT = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
]
_keep_products = partial(create_selective_checkpoint_contexts, KEPT)


def recompute_all(forward: Callable[..., Tensor], x_BLC: Tensor) -> Tensor:
    """`forward` of x, of which only x is kept for the backward pass."""
    out_BLC: Tensor = checkpoint(forward, x_BLC, use_reentrant=False)
    return out_BLC


def recompute_all_but_products(forward: Callable[..., Tensor], x_BLC: Tensor) -> Tensor:
    """`forward` of x, of which x and the results of `KEPT` are kept: norms, activations, dropout are worked out again.

    In compiled code it must be part of the code, so that the compiler sees what is kept.
    """
    out_BLC: Tensor = checkpoint(forward, x_BLC, use_reentrant=False, context_fn=_keep_products)
    return out_BLC
