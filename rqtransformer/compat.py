"""The names and calls of the `RQ-transformer` package: a program changes its import line.

The models are `HierarchicalTransformer`s. Weights of that package cannot be loaded: its two-level model reads outputs
that have not seen the latest codes, and its N-level model never learns the first token; these train every token on the
output that knows all tokens before it and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rqtransformer.hierarchical import HierarchicalConfig, HierarchicalTransformer


class HierarchicalCausalTransformer(HierarchicalTransformer):
    """A causal transformer of any number of levels, coarse to fine.

    Args:
        num_tokens, dim, dim_head, heads, attn_dropout, ff_mult, ff_dropout: sizes and rates of all levels.
        depth, max_seq_len: layers, and parts per block, of every level.
        pad_id: an id that is no target. None, the default here: every id is a token, 0 too.
        rel_pos_bias: attention scores fall with the distance (ALiBi), besides the absolute positions.
    """

    def __init__(self, *, num_tokens: int, dim: int, depth: Sequence[int], max_seq_len: Sequence[int],
                 dim_head: int = 64, heads: int = 8, attn_dropout: float = 0.0, ff_mult: int = 4,
                 ff_dropout: float = 0.0, pad_id: int | None = None, rel_pos_bias: bool = True):
        super().__init__(HierarchicalConfig(
            num_tokens=num_tokens, dim=dim, depth=tuple(depth), max_seq_len=tuple(max_seq_len), heads=heads,
            dim_head=dim_head, kv_heads=1, ff_mult=ff_mult, attn_dropout=attn_dropout, ff_dropout=ff_dropout,
            norm="rms", alibi=rel_pos_bias, pad_id=pad_id,
        ))

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor:
        """Ids, nested or flat -> logits with the vocabulary behind, or the mean cross entropy."""
        return self.loss(ids) if return_loss else super().forward(ids)

    def generate(self, prime: Tensor | None = None, filter_thres: float = 0.9, temperature: float = 1.0,
                 default_batch_size: int = 1, seed: int | None = None) -> Tensor:
        """Draws full sequences (B, S_0, ..., S_last), which begin with `prime`.

        Args:
            prime: ids to continue, nested or flat.
            filter_thres: the share of the vocabulary, its least likely ids, that is never drawn.
            temperature: of the draw.
            default_batch_size: sequences drawn without a prime.
            seed: ours; None draws other sequences at every call, from torch's global random state.
        """
        if not 0.0 <= filter_thres < 1.0:
            raise ValueError(f"filter_thres={filter_thres} must be at least 0 and below 1")
        kept = max(1, math.ceil(round((1 - filter_thres) * self.config.num_tokens, 9)))
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        return super().generate(prime, batch_size=default_batch_size, temperature=temperature, top_k=kept, seed=seed)


class RQTransformer(HierarchicalCausalTransformer):
    """Two levels: positions, and the codes of one position. Logits are flat, (B, positions x codes, V).

    Args:
        max_spatial_seq_len, depth_seq_len: most positions, and codes per position.
        spatial_layers, depth_layers: of the two levels.
        others: see `HierarchicalCausalTransformer`.
    """

    def __init__(self, *, num_tokens: int, dim: int, max_spatial_seq_len: int, depth_seq_len: int,
                 spatial_layers: int, depth_layers: int, dim_head: int = 64, heads: int = 8,
                 attn_dropout: float = 0.0, ff_mult: int = 4, ff_dropout: float = 0.0, pad_id: int | None = None):
        super().__init__(
            num_tokens=num_tokens, dim=dim, depth=(spatial_layers, depth_layers),
            max_seq_len=(max_spatial_seq_len, depth_seq_len), dim_head=dim_head, heads=heads,
            attn_dropout=attn_dropout, ff_mult=ff_mult, ff_dropout=ff_dropout, pad_id=pad_id, rel_pos_bias=False,
        )

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor:
        """See `HierarchicalCausalTransformer.forward`."""
        out = super().forward(ids, return_loss)
        return out if return_loss or ids.ndim == 2 else out.flatten(1, -2)
