"""One new position through a packed stack on a CPU: the arithmetic of `TransformerStack.forward`, without its detours.

A step of 16 images works for a few tens of microseconds per product; module calls, reshapes and slices would take as
long again. In fp32 a step is one call of compiled code (`native`) where there is a compiler, else ten kernels a layer.

Legend: B batch, C width, A attention heads, F features per attention head; 2: keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtransformer import native
from rqtransformer.fast.packing import PackedLinear
from rqtransformer.kv_cache import KVCache

_NOTHING: list[Any] = []


class PackedLayer:
    """The packed parts of one block.

    Args:
        norms: the norms before attention and before the feed-forward part.
        maps: packed query-key-value, output, up and down maps.
        exact_gelu: the activation is the exact GELU, which the up map applies itself; else `activation` follows it.
        activation: the block's activation module.
        heads: heads of queries, heads of keys and values, features per head.
        slopes: one per head of queries (ALiBi), or None.
    """

    def __init__(
        self,
        norms: tuple[nn.Module, nn.Module],
        maps: Sequence[PackedLinear],
        exact_gelu: bool,
        activation: nn.Module,
        heads: tuple[int, int, int],
        slopes: Sequence[float] | None = None,
    ):
        self.norms, self.maps = norms, maps
        self.exact_gelu, self.activation, self.heads, self.slopes = exact_gelu, activation, heads, slopes


def make_step(layers: Sequence[PackedLayer]) -> NativeStep | BlockedStep | None:
    """The fastest step through these layers; None where only the general forward will do."""
    maps = [packed for layer in layers for packed in layer.maps]
    if maps and all(packed.native is not None for packed in maps):
        norms = [parameter for layer in layers for norm in layer.norms for parameter in norm.parameters()]
        return NativeStep(layers) if all(native.serves(parameter.detach()) for parameter in norms) else None
    return BlockedStep(layers) if maps and all(packed.blocked is not None for packed in maps) else None


def step_fits(cache: KVCache, x_B1C: Tensor) -> bool:
    """Whether a step may take the place of the general forward for this input."""
    return cache.index is None and x_B1C.shape[1] == 1 and x_B1C.dtype == cache.dtype


class NativeStep(native.NativeStack):
    """A step as one call of compiled code."""

    def __init__(self, layers: Sequence[PackedLayer]):
        first = layers[0]
        super().__init__(
            [layer.norms for layer in layers],
            [[packed.native for packed in layer.maps] for layer in layers],
            native.GELU if first.exact_gelu else native.SIGMOID_GELU,
            first.heads,
            first.slopes,
        )


class BlockedStep:
    """A step with oneDNN's products: ten kernels a layer, and every view of the cache is made once.

    Args:
        layers: at least one, all of equal shape.
    """

    def __init__(self, layers: Sequence[PackedLayer]):
        first = layers[0]
        self.exact_gelu, self.activation, self.heads = first.exact_gelu, first.activation, first.heads
        self._norms = [[_norm_call(norm) for norm in layer.norms] for layer in layers]
        self._weights = [[packed.blocked for packed in layer.maps] for layer in layers]
        self._biases = [[packed.bias for packed in layer.maps] for layer in layers]
        self._slopes = None if first.slopes is None else torch.tensor(first.slopes).view(self.heads[1], -1, 1)
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


def _norm_call(norm: nn.Module) -> Any:
    weight, eps = norm.weight.detach(), norm.eps
    if isinstance(norm, nn.LayerNorm):
        shape, bias = norm.normalized_shape, norm.bias.detach()
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps, False)
    eps = torch.finfo(weight.dtype).eps if eps is None else eps
    return lambda x: x * x.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_() * weight
