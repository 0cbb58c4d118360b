"""Sizes and switches of a hierarchical transformer, and the table of ways to sum up a block.

Legend: S parts of a block, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from rqstack.arguments import check_choice, check_count, check_counts, check_flag, check_number, shown
from rqtransformer.attention import NORMS
from rqtransformer.config import BlockConfig


class SumOfParts(nn.Module):
    """(..., S, C) -> (..., C): a block as the sum of its parts."""

    def __init__(self, num_parts: int, dim: int):
        super().__init__()

    def forward(self, parts: Tensor) -> Tensor:
        """Any number of leading axes."""
        return parts.sum(dim=-2)


class MapOfParts(nn.Linear):
    """(..., S, C) -> (..., C): a linear map of the parts side by side."""

    def __init__(self, num_parts: int, dim: int):
        super().__init__(num_parts * dim, dim)

    def forward(self, parts: Tensor) -> Tensor:
        """Any number of leading axes."""
        return super().forward(parts.flatten(-2))


MERGES = {"sum": SumOfParts, "concat": MapOfParts}


@dataclass(frozen=True)
class HierarchicalConfig:
    """Sizes and switches of a hierarchical transformer.

    Attributes:
        num_tokens: vocabulary.
        dim: width of all levels.
        depth: layers of every level, coarse to fine.
        max_seq_len: parts per block of every level. The first is the most blocks a sequence may have, unless
            `absolute_positions` is off: then there is no limit.
        heads, dim_head, kv_heads: of the attention; kv_heads = 1 is multi-query attention, None one for every head.
        norm: layer or rms.
        absolute_positions: a learned embedding per slot of every level. alibi: scores fall with the distance.
        merge: a block is summed up as the sum of its parts, or as a linear map of their concatenation (which keeps
            their order).
        pad_id: a token id that is no target and adds nothing to the summaries; None: every id is a token.
    """

    num_tokens: int
    dim: int
    depth: Sequence[int]
    max_seq_len: Sequence[int]
    heads: int = 8
    dim_head: int = 64
    kv_heads: int | None = None
    ff_mult: int = 4
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    norm: str = "layer"
    absolute_positions: bool = True
    alibi: bool = False
    merge: str = "sum"
    pad_id: int | None = None

    def validate(self) -> None:
        """Raises ValueError in one line for values that do not fit together."""
        for name in ("num_tokens", "dim", "heads", "dim_head", "ff_mult"):
            check_count(name, getattr(self, name))
        check_counts("depth", self.depth, 0)
        check_counts("max_seq_len", self.max_seq_len)
        if len(self.depth) != len(self.max_seq_len) or len(self.depth) < 2:
            raise ValueError(
                f"depth={shown(tuple(self.depth))} and max_seq_len={shown(tuple(self.max_seq_len))} must have one "
                "entry per level, for two levels or more"
            )
        if self.kv_heads is not None and self.heads % check_count("kv_heads", self.kv_heads):
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}")
        for name in ("attn_dropout", "ff_dropout"):
            check_number(name, getattr(self, name), 0, 1, below=True)
        check_choice("norm", self.norm, tuple(NORMS))
        check_choice("merge", self.merge, tuple(MERGES))
        if self.pad_id is not None:
            check_count("pad_id", self.pad_id, 0, self.num_tokens - 1)
        for name in ("absolute_positions", "alibi"):
            check_flag(name, getattr(self, name))
        if not self.absolute_positions and not self.alibi:
            raise ValueError("without absolute_positions and alibi the model could not tell positions apart")

    @property
    def stack(self) -> BlockConfig:
        """The blocks of every level."""
        return BlockConfig(
            n_head=self.heads,
            head_dim=self.dim_head,
            n_kv_head=self.kv_heads,
            mlp_ratio=self.ff_mult,
            attn_pdrop=self.attn_dropout,
            resid_pdrop=self.ff_dropout,
            norm=self.norm,
            alibi=self.alibi,
        )
