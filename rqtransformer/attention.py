"""Causal self-attention, the pre-norm block and a stack of blocks: what body and head are made of.

One forward serves training (no cache) and decoding (with a `KVCache`).

Legend: B batch, L sequence length, C width, A attention heads, F features per attention head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rqtransformer.config import BlockConfig, StackConfig
from rqtransformer.kv_cache import KVCache


class SelfAttention(nn.Module):
    """Multi-head causal self-attention with the published parameter names (key, query, value, proj)."""

    def __init__(self, embed_dim: int, config: BlockConfig):
        super().__init__()
        self.num_heads = config.n_head
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop
        self.key = nn.Linear(embed_dim, embed_dim, bias=config.attn_bias)
        self.query = nn.Linear(embed_dim, embed_dim, bias=config.attn_bias)
        self.value = nn.Linear(embed_dim, embed_dim, bias=config.attn_bias)
        self.proj = nn.Linear(embed_dim, embed_dim, bias=config.attn_bias)
        self._fused: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x_BLC: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """Attends from every position to itself, to those before it and to the cached past."""
        query, key, value = (self._split_heads(part) for part in self._project(x_BLC))
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.write(layer, key, value)
        out_BALF = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=_mask_after_past(query.shape[2], past, query.device),
            is_causal=past == 0 and query.shape[2] > 1,
            dropout_p=self.attn_pdrop if self.training else 0.0,
        )
        out_BLC = self.proj(out_BALF.transpose(1, 2).flatten(2))
        return F.dropout(out_BLC, self.resid_pdrop, self.training)

    def fuse(self, enabled: bool, dtype: torch.dtype | None = None) -> None:
        """Keeps (or drops) one joint copy of the query, key and value weights, so that decoding runs one product."""
        if not enabled:
            self._fused = None
            return
        parts = (self.query, self.key, self.value)
        dtype = dtype or self.query.weight.dtype
        bias = None if self.query.bias is None else torch.cat([part.bias.detach() for part in parts]).to(dtype)
        self._fused = torch.cat([part.weight.detach() for part in parts]).to(dtype), bias

    def _project(self, x_BLC: Tensor) -> tuple[Tensor, ...]:
        if self._fused is not None:
            return F.linear(x_BLC, *self._fused).chunk(3, dim=-1)
        return self.query(x_BLC), self.key(x_BLC), self.value(x_BLC)

    def _split_heads(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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


ACTIVATIONS = {"v1": nn.GELU, "v2": SigmoidGELU}


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, embed_dim: int, config: BlockConfig):
        super().__init__()
        self.ln1 = nn.LayerNorm(embed_dim)
        self.ln2 = nn.LayerNorm(embed_dim)
        self.attn = SelfAttention(embed_dim, config)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, 4 * embed_dim, bias=config.mlp_bias),
            ACTIVATIONS[config.gelu](),
            nn.Linear(4 * embed_dim, embed_dim, bias=config.mlp_bias),
            nn.Dropout(config.resid_pdrop),
        )

    def forward(self, x_BLC: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """See `SelfAttention.forward`."""
        x_BLC = x_BLC + self.attn(self.ln1(x_BLC), cache, layer)
        return x_BLC + self.mlp(self.ln2(x_BLC))


class TransformerStack(nn.Module):
    """`config.n_layer` blocks in a row, without a norm at the end.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, embed_dim: int, config: StackConfig):
        super().__init__()
        self.blocks = nn.ModuleList(Block(embed_dim, config.block) for _ in range(config.n_layer))
        self.num_heads, self.head_dim = config.block.n_head, embed_dim // config.block.n_head
        self.gradient_checkpointing = False

    def forward(self, x_BLC: Tensor, cache: KVCache | None = None) -> Tensor:
        """Runs all blocks over new positions, after those in `cache`, which then holds the new ones too."""
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            if recompute:
                x_BLC = checkpoint(block, x_BLC, use_reentrant=False)
            else:
                x_BLC = block(x_BLC, cache, layer)
        if cache is not None:
            cache.advance(x_BLC.shape[1])
        return x_BLC

    def new_cache(self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device) -> KVCache:
        """An empty cache that fits this stack."""
        return KVCache(len(self.blocks), batch_size, self.num_heads, max_length, self.head_dim, dtype=dtype,
                       device=device)

    def fuse(self, enabled: bool, dtype: torch.dtype | None = None) -> None:
        """See `SelfAttention.fuse`."""
        for block in self.blocks:
            block.attn.fuse(enabled, dtype)
