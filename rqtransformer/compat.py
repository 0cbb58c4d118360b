"""The names and calls of the `RQ-transformer` package: a program changes its import line.

The models are `HierarchicalTransformer`s. Weights of that package cannot be loaded: its two-level model reads outputs
that have not seen the latest codes, and its N-level model never learns the first token; these train every token on the
output that knows all tokens before it and nothing else.

Legend: B batch, N tokens, V vocabulary, S_0 ... S_last parts per block of every level.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.arguments import check_counts, check_flag, check_kind, is_number, shown
from rqtransformer.hierarchical import HierarchicalTransformer
from rqtransformer.hierarchical_config import HierarchicalConfig


class NextTokenModel(HierarchicalTransformer):
    """Logits for the token after every token, as that package returns them, instead of for the token itself.

    Args:
        config: `max_seq_len` as the user gave it. Level 0 gets a place more, for the logits after a full sequence:
            they exist there too, and nothing trains them.
    """

    def __init__(self, config: HierarchicalConfig):
        check_kind("config", config, HierarchicalConfig).validate()
        self.max_seq_len = tuple(config.max_seq_len)
        longer = (self.max_seq_len[0] + 1, *self.max_seq_len[1:])
        super().__init__(dataclasses.replace(config, max_seq_len=longer))

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor:
        """Ids, nested or flat -> logits of the next token in their shape with V behind, or the mean cross entropy.

        `model(ids)[:, i]` of flat ids is the prediction of token i + 1: its last row draws the next token. No ids,
        (B, 0), give one row, (B, 1, V): the prediction of the first token. The loss predicts every token, the first
        one included, from the tokens before it.
        """
        ids, full = self.checked_ids(ids), math.prod(self.max_seq_len)
        if math.prod(ids.shape[1:]) > full:
            raise ValueError(
                f"ids of shape {tuple(ids.shape)} hold more than {full} tokens, max_seq_len={self.max_seq_len}"
            )
        if check_flag("return_loss", return_loss):
            return self.loss(ids)
        if ids.ndim > 2:
            self._nested(ids)  # raises
        logits_BNV = self.token_logits(F.pad(ids.flatten(1), (0, 1)))
        if logits_BNV.shape[1] > 1:
            logits_BNV = logits_BNV[:, 1:]
        return logits_BNV if ids.ndim == 2 else logits_BNV.unflatten(1, ids.shape[1:])

    def generate(  # type: ignore[override]  # the call of that package, which has other names and a share for top-k
        self,
        prime: Any = None,
        filter_thres: float = 0.9,
        temperature: float = 1.0,
        default_batch_size: int = 1,
        seed: int | None = None,
    ) -> Tensor:
        """Draws full sequences (B, S_0, ..., S_last), which begin with `prime`. Dropout is off while it runs.

        Args:
            prime: ids to continue, nested or flat.
            filter_thres: the share of the vocabulary, its least likely ids, that is never drawn; at 1 the most likely
                id is left.
            temperature: of the draw.
            default_batch_size: sequences drawn without a prime.
            seed: ours; None draws other sequences at every call, from torch's global random state.
        """
        if not is_number(filter_thres) or not 0.0 <= filter_thres <= 1.0:
            raise ValueError(f"filter_thres={shown(filter_thres)} must be at least 0 and at most 1")
        kept = max(1, math.floor(round((1 - filter_thres) * self.config.num_tokens, 9)))
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        return super().generate(
            prime,
            batch_size=default_batch_size,
            num_blocks=self.max_seq_len[0],
            temperature=temperature,
            top_k=kept,
            seed=seed,
        )


class HierarchicalCausalTransformer(NextTokenModel):
    """A causal transformer of any number of levels, coarse to fine.

    Args:
        num_tokens, dim, dim_head, heads, attn_dropout, ff_mult, ff_dropout: sizes and rates of all levels.
        depth, max_seq_len: layers, and parts per block, of every level.
        pad_id: an id that is no target. None, the default here: every id is a token, 0 too.
        rel_pos_bias: attention scores fall with the distance (ALiBi), besides the absolute positions.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        depth: Sequence[int],
        max_seq_len: Sequence[int],
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.0,
        ff_mult: int = 4,
        ff_dropout: float = 0.0,
        pad_id: int | None = None,
        rel_pos_bias: bool = True,
    ):
        super().__init__(
            HierarchicalConfig(
                num_tokens=num_tokens,
                dim=dim,
                depth=check_counts("depth", depth, 0),
                max_seq_len=check_counts("max_seq_len", max_seq_len),
                heads=heads,
                dim_head=dim_head,
                kv_heads=1,
                ff_mult=ff_mult,
                attn_dropout=attn_dropout,
                ff_dropout=ff_dropout,
                norm="rms",
                alibi=check_flag("rel_pos_bias", rel_pos_bias),
                pad_id=pad_id,
            )
        )


class RQTransformer(NextTokenModel):
    """Two levels: positions, and the codes of one position. Logits are flat, (B, positions x codes, V).

    Args:
        max_spatial_seq_len, depth_seq_len: most positions, and codes per position.
        spatial_layers, depth_layers: of the two levels.
        others: see `HierarchicalCausalTransformer`.
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        dim: int,
        max_spatial_seq_len: int,
        depth_seq_len: int,
        spatial_layers: int,
        depth_layers: int,
        dim_head: int = 64,
        heads: int = 8,
        attn_dropout: float = 0.0,
        ff_mult: int = 4,
        ff_dropout: float = 0.0,
        pad_id: int | None = None,
    ):
        super().__init__(
            HierarchicalConfig(
                num_tokens=num_tokens,
                dim=dim,
                depth=(spatial_layers, depth_layers),
                max_seq_len=(max_spatial_seq_len, depth_seq_len),
                heads=heads,
                dim_head=dim_head,
                ff_mult=ff_mult,
                attn_dropout=attn_dropout,
                ff_dropout=ff_dropout,
                pad_id=pad_id,
            )
        )

    def forward(self, ids: Tensor, return_loss: bool = False) -> Tensor:
        """See `NextTokenModel.forward`."""
        out = super().forward(ids, return_loss)
        return out if return_loss or ids.ndim == 2 else out.flatten(1, -2)
