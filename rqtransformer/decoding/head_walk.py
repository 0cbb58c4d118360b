"""The head alone: from the context of a position, step by step, to its D codes.

Legend: B batch, D code depth, E code-vector size, C width, V vocabulary, P given positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer import native
from rqtransformer.decoding.served_model import knows_model
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.kv_cache import KVCache
from rqtransformer.model import RQTransformer
from rqtransformer.native import HeadParts, NativePosition, NativeStack


class CodeVectorSource(Protocol):
    """The part of an `ImageTokenizer` that embeds codes."""

    def codebook(self, depth: int) -> Tensor:
        """The code vectors (K, E) of one depth."""
        ...


class HeadWalk:
    """Steps through the depths of one position after another: `begin(context)`, then D times `logits()`, `push(code)`.

    Args:
        model: in `RQTransformer.decoding_mode`.
        tokenizer: gives the codebooks; may be None if the model uses only its own token table.
        batch_size: rows of the cache, which is allocated here, once.
        dtype: of the cache.

    Attributes:
        depth: of the next code.
        input_sum: the sum of the vectors (B, E) or (B, C) that the body is given for the codes pushed since `begin`.
        input_tables, head_tables: rows that the codes of each depth select, for the body and for the head; one list
            where both read the same.
    """

    def __init__(
        self, model: RQTransformer, tokenizer: CodeVectorSource | None, batch_size: int, dtype: torch.dtype
    ) -> None:
        self.model = model
        self.input_tables, self.head_tables = code_tables(model, tokenizer)
        self.cache = model.head_transformer.new_cache(batch_size, model.depth, dtype, model.pos_emb_d.device)
        self.depth = 0
        self.input_sum: Tensor | None = None
        self._head_sum: Tensor | None = None
        self._depth_tokens = model.pos_emb_d.unbind(1)
        self._slot_BC: Tensor | None = None

    def begin(self, context_BC: Tensor) -> None:
        """Starts a position with the body's output for it."""
        self.cache.reset()
        self.depth, self.input_sum, self._head_sum, self._slot_BC = 0, None, None, context_BC

    def logits(self) -> Tensor:
        """Logits (B, V) of the next code. Call once per code."""
        assert self._slot_BC is not None, "a position begins with its context, and a code is pushed before the next"
        x_B1C = (self._slot_BC + self._depth_tokens[self.depth]).unsqueeze(1)
        out_BC = self.model.head_transformer(x_B1C, self.cache).squeeze(1)
        return self.model.classifier.at_depth(out_BC, self.depth)

    def push(self, code_B: Tensor) -> bool:
        """Takes the code just drawn; whether it was the last of the position."""
        input_vector = F.embedding(code_B, self.input_tables[self.depth])
        self.input_sum = input_vector if self.input_sum is None else self.input_sum + input_vector
        if self.depth + 1 == self.model.depth:
            return True
        self._slot_BC = self._token(code_B, input_vector)
        self.depth += 1
        return False

    def compiled(self, settings: Sequence[DrawSettings]) -> NativePosition | None:
        """All draws of a position as one call (`draw`); None where something it needs is unknown or not compiled."""
        model = self.model
        if type(self) is not HeadWalk or not knows_model(model) or type(self.cache) is not KVCache:
            return None
        packed = [model.classifier.packed_at(depth) for depth in range(model.depth)]
        packed += [] if model.head_mlp is None else [model.packed_head]
        maps = [linear.native for linear in packed if linear is not None and linear.native is not None]
        tables = [*self.input_tables, *self.head_tables, model.pos_emb_d, *model.classifier.layer_norm.parameters()]
        stack = model.head_transformer.packed_step
        if len(maps) < len(packed) or not isinstance(stack, NativeStack):
            return None
        if not all(native.serves(table.detach()) for table in tables):
            return None
        return NativePosition(
            HeadParts(
                stack=stack,
                norm=model.classifier.layer_norm,
                classifiers=maps[: model.depth],
                project=None if model.head_mlp is None else maps[-1],
                tokens_DC=model.pos_emb_d[0].detach().contiguous(),
                input_tables=[table.detach().contiguous() for table in self.input_tables],
                head_tables=[table.detach().contiguous() for table in self.head_tables],
                cumulate=model.config.cumsum_depth_ctx,
                vocab_sizes=model.classifier.vocab_sizes,
            ),
            settings,
        )

    def draw(self, compiled: NativePosition, context_BC: Tensor, uniform_DB: Tensor) -> Tensor:
        """Codes (B, D) of a whole position."""
        codes_BD, self.input_sum = compiled(context_BC, uniform_DB, self.cache)
        return codes_BD

    def _token(self, code_B: Tensor, input_vector: Tensor) -> Tensor:
        shared = self.head_tables is self.input_tables
        vector = input_vector if shared else F.embedding(code_B, self.head_tables[self.depth])
        if self.model.head_mlp is None:
            return vector
        if self.model.config.cumsum_depth_ctx and self._head_sum is not None:
            vector = vector + self._head_sum
        self._head_sum = vector
        return self.model.project_head(vector)


def code_vectors(model: RQTransformer, tokenizer: CodeVectorSource | None) -> list[Tensor]:
    """The code vectors (K, E) of every depth; none where the model has tables of its own."""
    if model.input_mlp is None and model.head_mlp is None:
        return []
    assert tokenizer is not None, "the model embeds codes with the code vectors of a tokenizer"
    return [tokenizer.codebook(depth) for depth in range(model.depth)]


def code_tables(model: RQTransformer, tokenizer: CodeVectorSource | None) -> tuple[list[Tensor], list[Tensor]]:
    """Rows that the codes of each depth select, for the body and for the head; one list where both read the same."""
    books = code_vectors(model, tokenizer)
    for depth, (book, size) in enumerate(zip(books, model.config.vocab_sizes)):
        if len(book) < size or book.shape[1] != model.config.code_dim:
            raise ValueError(
                f"the tokenizer's code vectors of depth {depth}, {tuple(book.shape)}, do not fit a model of "
                f"{size} codes with vectors of {model.config.code_dim} numbers"
            )
    tables = [] if model.tok_emb is None else [model.tok_emb.table(d) for d in range(model.depth)]
    return (
        books if model.input_mlp is not None else tables,
        books if model.head_mlp is not None else tables,
    )
