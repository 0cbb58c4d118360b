"""Causal self-attention and the pre-norm block: what the stacks of body and head are made of.

One forward serves training (no cache) and decoding (with a `KVCache`).

Legend: B batch, L sequence length, P past positions, C width, A attention heads, F features per attention head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rqtransformer.close_attention import CLOSE, attend_close
from rqtransformer.config import BlockConfig
from rqtransformer.dropout import drop_and_add
from rqtransformer.fast.packing import PackedSlot
from rqtransformer.fast.served import is_plain
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.kv_cache import KVCache
from rqtransformer.recomputation import recompute_all_but_products

WIDE_ROWS = 512  # positions; see `_fp32_wins`
FEW = 8  # positions; see `_plain_products_win`
# Of one position over a cache with masked slots on a GPU. Both take any mask and may be recorded; cuDNN, which torch
# prefers on some GPUs, builds a plan for every new shape. Not verified on a GPU.
MASKED_BACKENDS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def head_sizes(embed_dim: int, config: BlockConfig) -> tuple[int, int, int]:
    """(Heads of queries, heads of keys and values, features per head)."""
    return config.n_head, config.n_kv_head or config.n_head, config.head_dim or embed_dim // config.n_head


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """What a step of distance takes off the scores of each head (Press et al., 2022)."""
    return tuple(2.0 ** (-8.0 * (head + 1) / num_heads) for head in range(num_heads))


def slopes_on(device: torch.device, num_heads: int) -> Tensor:
    """`alibi_slopes` (A,), fp32, computed where they are needed: a copy from the host may not be part of a recording.

    In fp64 until the end, so that the numbers are those of Python.
    """
    exponent_A = torch.arange(1, num_heads + 1, device=device, dtype=torch.float64) * -8.0 / num_heads
    return exponent_A.exp2().float()


class SelfAttention(nn.Module):
    """Multi-head causal self-attention with the published parameter names (key, query, value, proj).

    Fewer key-value heads than query heads: each serves a group of neighbouring queries (Ainslie et al., 2023).
    """

    def __init__(self, embed_dim: int, config: BlockConfig):
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim = head_sizes(embed_dim, config)
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop
        width, kv_width = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
        self.key = nn.Linear(embed_dim, kv_width, bias=config.attn_bias)
        self.query = nn.Linear(embed_dim, width, bias=config.attn_bias)
        self.value = nn.Linear(embed_dim, kv_width, bias=config.attn_bias)
        self.proj = nn.Linear(width, embed_dim, bias=config.attn_bias)
        self.slopes = alibi_slopes(self.num_heads) if config.alibi else None
        self.slots = self._packed_input, self._packed_proj = PackedSlot(), PackedSlot()

    def forward(
        self, x_BLC: Tensor, cache: KVCache | None = None, layer: int = 0, residual_BLC: Tensor | None = None
    ) -> Tensor:
        """Attends from every position to itself, to those before it and to the cached past; adds the residual."""
        query_BALF, key_BALF, value_BALF = self._project(x_BLC)
        if cache is None:
            out_BALF = self._attend(query_BALF, key_BALF, value_BALF, 0, None)
        else:
            past, new_2BALF = cache.length, torch.stack((key_BALF, value_BALF))
            key_BALF, value_BALF = cache.write(layer, new_2BALF)
            if past == 0 and x_BLC.shape[1] == 1 and self._first_sees_itself:
                out_BALF = new_2BALF[1]
            else:
                visible = cache.mask() if x_BLC.shape[1] == 1 else None
                out_BALF = self._attend(query_BALF.to(key_BALF.dtype), key_BALF, value_BALF, past, visible)
        out_BLC = out_BALF.transpose(1, 2).flatten(2)
        if self._packed_proj.active is not None and not self.training:
            return self._packed_proj.active(out_BLC, residual_BLC)
        return drop_and_add(self.proj(out_BLC), self.resid_pdrop if self.training else 0.0, residual_BLC)

    @property
    def _first_sees_itself(self) -> bool:
        """Whether attention at the first position is the identity on its value: in this class's own `_attend` it is."""
        return self.kv_heads == self.num_heads and type(self)._attend is SelfAttention._attend

    def pack(self, form: WeightFormat) -> None:
        """One joint product for query, key and value, and packed weights, until `unpack`.

        Modules that are no plain linear maps (`served.is_plain`) stay as they are.
        """
        self._packed_input.fill_from((self.query, self.key, self.value), form)
        self._packed_proj.fill_from((self.proj,), form)

    def unpack(self, keep: bool) -> None:
        """Back to the parameters; `keep` leaves the packed copies for the next time."""
        self._packed_input.unpack(keep)
        self._packed_proj.unpack(keep)

    def _project(self, x_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value, by heads (B, A, L, F)."""
        if self._packed_input.active is not None:
            width, kv_width = self.num_heads * self.head_dim, self.kv_heads * self.head_dim
            parts = self._packed_input.active(x_BLC).split((width, kv_width, kv_width), dim=-1)
        else:
            parts = self.query(x_BLC), self.key(x_BLC), self.value(x_BLC)
        query, key, value = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        return query, key, value

    def _attend(
        self, query_BALF: Tensor, key_BALF: Tensor, value_BALF: Tensor, past: int, visible: Tensor | None
    ) -> Tensor:
        new = query_BALF.shape[2]
        mask = visible if new == 1 else _mask_after_past(new, past, query_BALF.device)
        if self.slopes is not None:
            mask = self._falling_scores(new, key_BALF, past, visible)
        # a branch, not a value: tracing with an unknown length then fixes which of the two it is
        causal = True if mask is None and past == 0 and new > 1 else False
        grouped = self.kv_heads != self.num_heads
        in_cache = visible is not None and query_BALF.is_cuda
        dropout = self.attn_pdrop if self.training else 0.0
        if causal and new <= FEW and not grouped and _plain_products_win(query_BALF, dropout):
            return _attend_few(query_BALF, key_BALF, value_BALF, dropout)
        options: dict[str, Any] = {"is_causal": causal, "dropout_p": dropout}
        if grouped:
            options["enable_gqa"] = True
        if _fp32_wins(query_BALF):
            given = query_BALF.float(), key_BALF.float(), value_BALF.float()
            with torch.autocast("cpu", enabled=False):
                wide_BALF = F.scaled_dot_product_attention(*given, attn_mask=_wide(mask), **options)
            return wide_BALF.to(query_BALF.dtype)
        with sdpa_kernel(MASKED_BACKENDS) if in_cache else contextlib.nullcontext():
            return F.scaled_dot_product_attention(query_BALF, key_BALF, value_BALF, attn_mask=mask, **options)

    def _falling_scores(self, new: int, key_BALF: Tensor, past: int, visible: Tensor | None) -> Tensor:
        """ALiBi: minus slope times distance, and minus infinity for the future (A, new, keys)."""
        device, num_keys = key_BALF.device, key_BALF.shape[2]
        if visible is None:
            here = torch.arange(past, past + new, device=device).unsqueeze(1)
            distance = here - torch.arange(num_keys, device=device)
        else:  # the position is known on the device only
            distance = visible.view(1, -1).sum() - 1 - torch.arange(num_keys, device=device).unsqueeze(0)
        scores = (-slopes_on(device, self.num_heads).view(-1, 1, 1) * distance).masked_fill(distance < 0, float("-inf"))
        return scores.to(key_BALF.dtype)


def _plain_products_win(query_BALF: Tensor, dropout: float) -> bool:
    """Whether short rows are better attended without the fused kernels: they pay for every row on a CPU.

    In bf16 only where sums stay in fp32, as in the fused kernels.
    """
    if query_BALF.device.type != "cpu":
        return False
    return query_BALF.dtype == torch.float32 or (query_BALF.dtype == torch.bfloat16 and _is_close(query_BALF, dropout))


def _fp32_wins(query_BALF: Tensor) -> bool:
    """Whether the fused kernel is faster in fp32.

    Going back in bf16 on a CPU takes seven times as long for 64 positions, as long for 1,024.
    """
    narrow = query_BALF.device.type == "cpu" and query_BALF.dtype == torch.bfloat16
    return narrow and query_BALF.requires_grad and torch.is_grad_enabled() and query_BALF.shape[2] <= WIDE_ROWS


def _wide(mask: Tensor | None) -> Tensor | None:
    """The mask for scores in fp32."""
    return mask.float() if mask is not None and mask.is_floating_point() else mask


def _is_close(query_BALF: Tensor, dropout: float) -> bool:
    """Whether `attend_close` takes them."""
    return query_BALF.shape[2] <= CLOSE and dropout == 0.0 and not torch.compiler.is_compiling()


def _attend_few(query_BALF: Tensor, key_BALF: Tensor, value_BALF: Tensor, dropout: float) -> Tensor:
    """Causal attention by its definition."""
    num, size = query_BALF.shape[2:]
    if _is_close(query_BALF, dropout):
        return attend_close(*(part.transpose(1, 2) for part in (query_BALF, key_BALF, value_BALF))).transpose(1, 2)
    later_LL = torch.full((num, num), float("-inf"), device=query_BALF.device).triu(1)
    weights_BALL = (query_BALF * size**-0.5 @ key_BALF.transpose(2, 3) + later_LL).softmax(dim=-1)
    return F.dropout(weights_BALL, dropout) @ value_BALF


def _mask_after_past(num_new: int, past: int, device: torch.device) -> Tensor | None:
    """Which keys (past + new) each new query may see; None where the whole past or `is_causal` says it already."""
    if past == 0 or num_new == 1:
        return None
    visible = torch.ones(num_new, past + num_new, dtype=torch.bool, device=device)
    return visible.tril(past)


class SigmoidGELU(nn.Module):
    """The approximation x * sigmoid(1.702 x) of the Gaussian error linear unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(1.702 * x)


class LayerNorm(nn.LayerNorm):
    """Layer norm in the number type of its input, also where sharding gathers the parameters in another."""

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class RMSNorm(nn.RMSNorm):
    """RMS norm in the number type of its input, like `LayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


ACTIVATIONS = {"v1": nn.GELU, "v2": SigmoidGELU}
NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class FeedForward(nn.Sequential):
    """Linear, activation, linear, dropout, with the published parameter names (0 and 2)."""

    def __init__(self, embed_dim: int, config: BlockConfig):
        super().__init__(
            nn.Linear(embed_dim, config.mlp_ratio * embed_dim, bias=config.mlp_bias),
            ACTIVATIONS[config.gelu](),
            nn.Linear(config.mlp_ratio * embed_dim, embed_dim, bias=config.mlp_bias),
            nn.Dropout(config.resid_pdrop),
        )
        self._gelu_in_product = False
        self.slots = self._packed_up, self._packed_down = PackedSlot(), PackedSlot()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., C) -> (..., C), plus the residual."""
        packed_up, packed_down = self._packed_up.active, self._packed_down.active
        if packed_up is None or packed_down is None or self.training:
            up, activation, down, dropout = self.parts
            return drop_and_add(down(activation(up(x))), dropout.p if self.training else 0.0, residual)
        hidden = packed_up(x, gelu=self._gelu_in_product)
        return packed_down(hidden if self._gelu_in_product else self[1](hidden), residual)

    @property
    def parts(self) -> tuple[nn.Linear, nn.Module, nn.Linear, nn.Dropout]:
        """Up, activation, down, dropout."""
        up, activation, down, dropout = self
        return cast("nn.Linear", up), activation, cast("nn.Linear", down), cast("nn.Dropout", dropout)

    def pack(self, form: WeightFormat) -> None:
        """See `SelfAttention.pack`."""
        self._gelu_in_product = has_exact_gelu(self)
        up, _, down, _ = self.parts
        self._packed_up.fill_from((up,), form)
        self._packed_down.fill_from((down,), form)

    def unpack(self, keep: bool) -> None:
        """See `SelfAttention.unpack`."""
        self._packed_up.unpack(keep)
        self._packed_down.unpack(keep)


def has_exact_gelu(feed_forward: FeedForward) -> bool:
    """Whether the activation is the one that packed products apply themselves."""
    activation = feed_forward[1]
    return is_plain(activation, nn.GELU) and activation.approximate == "none"


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, embed_dim: int, config: BlockConfig):
        super().__init__()
        self.ln1 = NORMS[config.norm](embed_dim)
        self.ln2 = NORMS[config.norm](embed_dim)
        self.attn = SelfAttention(embed_dim, config)
        self.mlp = FeedForward(embed_dim, config)
        self._compiled: Callable[[Tensor, bool], Tensor] | None = None

    def forward(
        self, x_BLC: Tensor, cache: KVCache | None = None, layer: int = 0, keep_products: bool = False
    ) -> Tensor:
        """See `SelfAttention.forward`; `keep_products`, in training: see `recompute_all_but_products`."""
        if cache is None and self.training:
            return (self._compiled or self._train)(x_BLC, keep_products)
        return self._forward(x_BLC, cache, layer)

    def compile_forward(self, **options: Any) -> None:
        """Compiles the forward pass of training for the shapes it meets; hooks stay outside, names as they are."""
        self._compiled = torch.compile(self._train, **{"dynamic": False, **options})

    def _train(self, x_BLC: Tensor, keep_products: bool) -> Tensor:
        return recompute_all_but_products(self._forward, x_BLC) if keep_products else self._forward(x_BLC)

    def _forward(self, x_BLC: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x_BLC = self.attn(self.ln1(x_BLC), cache, layer, x_BLC)
        return self.mlp(self.ln2(x_BLC), x_BLC)
