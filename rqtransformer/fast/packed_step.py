"""One new position through a packed stack: the arithmetic of `TransformerStack.forward`, without its detours.

A step of 16 images works for a few tens of microseconds per product; module calls, reshapes and slices would take as
long again. In fp32 a step is one call of compiled code (`native`) where there is a compiler, else ten kernels a layer.
On a GPU there is `fused_step`.

Legend: B batch, C width, A attention heads, F features per attention head; 2: keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqstack.triton_kernels import use_kernel
from rqtransformer import native
from rqtransformer.attention import Block, FeedForward, LayerNorm, RMSNorm, SelfAttention, SigmoidGELU, has_exact_gelu
from rqtransformer.config import BlockConfig, StackConfig
from rqtransformer.fast.fused_step import FusedStep, layers_trial
from rqtransformer.fast.packing import PackedLinear
from rqtransformer.fast.served import has_only, is_plain
from rqtransformer.kv_cache import KVCache

_NOTHING: list[Any] = []
MAPS_PER_BLOCK = 4


# What the steps know; everything else makes them step aside (`served`). Settings of a stack and of its blocks:
STACK_SETTINGS: dict[type, frozenset[str]] = {
    StackConfig: frozenset({"n_layer", "block"}),
    BlockConfig: frozenset(
        {"embed_dim", "n_head", "mlp_bias", "attn_bias", "attn_pdrop", "resid_pdrop"}
        | {"gelu", "norm", "head_dim", "n_kv_head", "mlp_ratio", "alibi"}
    ),
}
# The parts of a block, with all that hangs on them:
BLOCK_NAMES = frozenset({"ln1", "ln2", "attn", "mlp", "_compiled"})
ATTENTION_NAMES = frozenset(
    {"num_heads", "kv_heads", "head_dim", "attn_pdrop", "resid_pdrop", "key", "query", "value", "proj", "slopes"}
    | {"slots", "_packed_input", "_packed_proj"}
)
FEED_FORWARD_NAMES = frozenset({"0", "1", "2", "3", "slots", "_packed_up", "_packed_down", "_gelu_in_product"})


def knows_blocks(blocks: Sequence[nn.Module]) -> bool:
    """Whether all blocks are those that the steps do again, in eval mode, and equal but for their numbers."""
    known = [block for block in blocks if _knows_block(block)]
    if len(known) < len(list(blocks)) or any(module.training for block in known for module in block.modules()):
        return False
    return len({_shape(block) for block in known}) <= 1


def _knows_block(block: nn.Module) -> TypeGuard[Block]:
    if not (is_plain(block, Block) and has_only(block, BLOCK_NAMES)):
        return False
    attention, feed_forward = block.attn, block.mlp
    if not (is_plain(attention, SelfAttention) and has_only(attention, ATTENTION_NAMES)):
        return False
    if not (is_plain(feed_forward, FeedForward) and has_only(feed_forward, FEED_FORWARD_NAMES)):
        return False
    up, activation, down, dropout = feed_forward.parts
    maps = (attention.query, attention.key, attention.value, attention.proj, up, down)
    return (
        all(is_plain(linear, nn.Linear) for linear in maps)
        and all(is_plain(norm, LayerNorm, RMSNorm) and norm.elementwise_affine for norm in (block.ln1, block.ln2))
        and (has_exact_gelu(feed_forward) or is_plain(activation, SigmoidGELU))
        and is_plain(dropout, nn.Dropout)
    )


def _shape(block: Block) -> tuple[object, ...]:
    """What the steps take from the first block for all of them."""
    attention = block.attn
    heads = attention.num_heads, attention.kv_heads, attention.head_dim
    return heads, attention.slopes, type(block.mlp[1]), block.ln1.normalized_shape


class PackedStep(Protocol):
    """One new position through all layers of a stack."""

    def fits(self, cache: KVCache, x_B1C: Tensor) -> bool:
        """Whether it may take the place of the general forward for this input."""
        ...

    def __call__(self, x_BC: Tensor, cache: KVCache) -> Tensor:
        """(B, C) -> (B, C); the cache takes keys and values and moves on."""
        ...


def make_step(blocks: Sequence[Block]) -> PackedStep | None:
    """The fastest step through packed blocks that `knows_blocks`; None where only the general forward will do."""
    packed = [linear for block in blocks for linear in _packed_maps(block)]
    if not blocks or len(packed) < MAPS_PER_BLOCK * len(blocks):
        return None
    if all(linear.native is not None for linear in packed):
        norms = [parameter for block in blocks for norm in (block.ln1, block.ln2) for parameter in norm.parameters()]
        return NativeStep(blocks) if all(native.serves(parameter.detach()) for parameter in norms) else None
    if all(linear.blocked is not None for linear in packed):
        return BlockedStep(blocks)
    if all(linear.tensors and use_kernel(layers_trial, linear.tensors[0].device) for linear in packed):
        return FusedStep(blocks, [_packed_maps(block) for block in blocks])
    return None


def step_fits(cache: KVCache, x_B1C: Tensor) -> bool:
    """Whether a step on a CPU knows this input and this cache."""
    return type(cache) is KVCache and cache.index is None and x_B1C.shape[1] == 1 and x_B1C.dtype == cache.dtype


def _heads(block: Block) -> tuple[int, int, int]:
    return block.attn.num_heads, block.attn.kv_heads, block.attn.head_dim


def _packed_maps(block: Block) -> list[PackedLinear]:
    """Joint query-key-value, output, up and down map."""
    slots = (*block.attn.slots, *block.mlp.slots)
    return [slot.active for slot in slots if slot.active is not None]


class NativeStep(native.NativeStack):
    """A step as one call of compiled code."""

    fits = staticmethod(step_fits)

    def __init__(self, blocks: Sequence[Block]):
        super().__init__(
            [(block.ln1, block.ln2) for block in blocks],
            [[packed.native for packed in _packed_maps(block) if packed.native is not None] for block in blocks],
            native.GELU if has_exact_gelu(blocks[0].mlp) else native.SIGMOID_GELU,
            _heads(blocks[0]),
            blocks[0].attn.slopes,
        )


class BlockedStep:
    """A step with oneDNN's products: ten kernels a layer, and every view of the cache is made once.

    Args:
        blocks: at least one, all of equal shape.
    """

    fits = staticmethod(step_fits)

    def __init__(self, blocks: Sequence[Block]):
        first = blocks[0]
        self.exact_gelu, self.activation, self.heads = has_exact_gelu(first.mlp), first.mlp[1], _heads(first)
        self._norms = [[_norm_call(norm) for norm in (block.ln1, block.ln2)] for block in blocks]
        self._weights = [[packed.blocked for packed in _packed_maps(block)] for block in blocks]
        self._biases = [[packed.bias for packed in _packed_maps(block)] for block in blocks]
        slopes = first.attn.slopes
        self._slopes = None if slopes is None else torch.tensor(slopes).view(self.heads[1], -1, 1)
        self._distances: dict[int, Tensor] = {}

    def __call__(self, x_BC: Tensor, cache: KVCache) -> Tensor:
        """One position (B, C) through all layers; the cache takes its keys and values and moves on."""
        product = torch.ops.mkldnn._linear_pointwise.default
        product_and_sum = torch.ops.mkldnn._linear_pointwise.binary
        for number, ((norm1, norm2), weights, biases) in enumerate(zip(self._norms, self._weights, self._biases)):
            joint = product(norm1(x_BC), weights[0], biases[0], "none", _NOTHING, "")
            out_BC = self._attend(joint, cache, number)
            x_BC = product_and_sum(out_BC, x_BC, weights[1], biases[1], "add")
            if self.exact_gelu:
                hidden = product(norm2(x_BC), weights[2], biases[2], "gelu", _NOTHING, "none")
            else:
                hidden = self.activation(product(norm2(x_BC), weights[2], biases[2], "none", _NOTHING, ""))
            x_BC = product_and_sum(hidden, x_BC, weights[3], biases[3], "add")
        cache.advance(1)
        return x_BC

    def _attend(self, joint: Tensor, cache: KVCache, number: int) -> Tensor:
        """Joint query, key and value row of every image -> attention output (B, A*F)."""
        heads, kv_heads, features = self.heads
        batch, row = joint.shape
        width, kv_width = heads * features, kv_heads * features
        place, key_BALF, value_BALF = cache.views(number)
        place.copy_(joint.as_strided(place.shape, (kv_width, row, features, row, 1), width))
        if cache.length == 0 and kv_heads == heads:
            return joint.narrow(1, width + kv_width, kv_width)  # the first position sees only itself
        # The queries that share a head of keys see the same past: they stand in a row as if they were positions.
        query = joint.as_strided((batch, kv_heads, heads // kv_heads, features), (row, width // kv_heads, features, 1))
        mask = self._mask(cache.length + 1, query.dtype)
        return F.scaled_dot_product_attention(query, key_BALF, value_BALF, attn_mask=mask).reshape(batch, width)

    def _mask(self, num_keys: int, dtype: torch.dtype) -> Tensor | None:
        """What distance takes off the scores of the last of `num_keys` positions; made once per length."""
        if self._slopes is None:
            return None
        if num_keys not in self._distances:
            distance_L = torch.arange(num_keys - 1, -1, -1)
            self._distances[num_keys] = (-self._slopes * distance_L).to(dtype)
        return self._distances[num_keys]


def _norm_call(norm: nn.LayerNorm | nn.RMSNorm) -> Callable[[Tensor], Tensor]:
    weight = norm.weight.detach()
    if isinstance(norm, nn.LayerNorm):
        shape, bias, epsilon = norm.normalized_shape, norm.bias.detach(), norm.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, epsilon, False)
    eps = torch.finfo(weight.dtype).eps if norm.eps is None else norm.eps
    return lambda x: x * x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_() * weight
