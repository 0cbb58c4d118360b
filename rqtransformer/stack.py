"""A stack of blocks: the body or the head of an RQ-Transformer, or a level of a hierarchical transformer.

Legend: B batch, L sequence length, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rqstack.module_list import ModuleList
from rqtransformer.attention import Block, head_sizes
from rqtransformer.config import StackConfig
from rqtransformer.fast.packed_step import STACK_SETTINGS, PackedStep, knows_blocks, make_step
from rqtransformer.fast.served import has_only, is_plain, knows_settings
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.kv_cache import KVCache
from rqtransformer.recomputation import Recomputation, recompute_all


class TransformerStack(nn.Module):
    """`config.n_layer` blocks in a row, without a norm at the end.

    Attributes:
        gradient_checkpointing: recompute each block in the backward pass instead of keeping its activations; with
            `selective` all but the products of matrices.
        packed_step: one new position (B, C) through the packed stack, where there is a faster way than `forward`.
    """

    def __init__(self, embed_dim: int, config: StackConfig):
        super().__init__()
        self.config = config
        self.blocks: ModuleList[Block] = ModuleList(Block(embed_dim, config.block) for _ in range(config.n_layer))
        _, self.kv_heads, self.head_dim = head_sizes(embed_dim, config.block)
        self.gradient_checkpointing: Recomputation = False
        self.packed_step: PackedStep | None = None

    def forward(self, x_BLC: Tensor, cache: KVCache | None = None) -> Tensor:
        """Runs all blocks over new positions, after those in `cache`, which then holds the new ones too."""
        step = None if self.training else self.packed_step
        if step is not None and cache is not None and step.fits(cache, x_BLC):
            return step(x_BLC.squeeze(1), cache).unsqueeze(1)
        recompute = self.gradient_checkpointing if self.training and torch.is_grad_enabled() else False
        for layer, block in enumerate(self.blocks):
            if recompute and recompute != "selective":
                x_BLC = recompute_all(block, x_BLC)
            else:
                x_BLC = block(x_BLC, cache, layer, bool(recompute))
        if cache is not None:
            cache.advance(x_BLC.shape[1])
        return x_BLC

    def new_cache(
        self, batch_size: int, max_length: int, dtype: torch.dtype, device: torch.device, on_device: bool = False
    ) -> KVCache:
        """An empty cache that fits this stack; see `KVCache`."""
        return KVCache(
            len(self.blocks),
            batch_size,
            self.kv_heads,
            max_length,
            self.head_dim,
            dtype=dtype,
            device=device,
            on_device=on_device,
        )

    def pack(self, form: WeightFormat) -> None:
        """See `SelfAttention.pack`; a step through all layers at once only where it knows all of them."""
        for block in self.blocks:
            block.attn.pack(form)
            block.mlp.pack(form)
        self.packed_step = make_step(list(self.blocks)) if is_known_stack(self) else None

    def unpack(self, keep: bool) -> None:
        """See `SelfAttention.unpack`."""
        self.packed_step = None
        for block in self.blocks:
            block.attn.unpack(keep)
            block.mlp.unpack(keep)


# What the fast paths know of a stack besides its blocks.
STACK_NAMES = frozenset({"blocks", "config", "kv_heads", "head_dim", "gradient_checkpointing", "packed_step"})


def is_known_stack(stack: nn.Module) -> bool:
    """Whether the stack, its settings and its blocks are those that the fast paths were written for."""
    return (
        is_plain(stack, TransformerStack)
        and has_only(stack, STACK_NAMES)
        and is_plain(stack.blocks, nn.ModuleList)
        and knows_settings(stack.config, STACK_SETTINGS)
        and knows_blocks(list(stack.blocks))
    )
