"""A walk through the codes of a batch with key-value caches: one body step per position, one head step per depth.

Legend: B batch, P given positions, D code depth, E code-vector size, C width, V vocabulary, L condition length, S
positions of the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer import native
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.decoding.served_model import knows_model, knows_request
from rqtransformer.kv_cache import KVCache
from rqtransformer.model import RQTransformer
from rqtransformer.native import HeadParts, NativePosition, NativeStack


class CodeVectorSource(Protocol):
    """The part of an `ImageTokenizer` that embeds codes."""

    def codebook(self, depth: int) -> Tensor:
        """The code vectors (K, E) of one depth."""
        ...


class Decoder:
    """Steps through the codes of a batch: `logits()` of the next code, `push(code)`, and so on.

    Only the code just pushed is embedded; everything else is in the caches, which are allocated here, once.

    Args:
        model: in `RQTransformer.decoding_mode`.
        tokenizer: gives the codebooks; may be None if the model uses only its own token table.
        cond_BL: condition ids.
        prefix_BPD: codes of the first P < T positions.
        dtype: of the caches.
        on_device: keep the position in a tensor, so that every step is the same kernels; see `KVCache`.
    """

    def __init__(
        self,
        model: RQTransformer,
        tokenizer: CodeVectorSource | None,
        cond_BL: Tensor,
        prefix_BPD: Tensor,
        dtype: torch.dtype,
        on_device: bool = False,
    ):
        self.model, self.on_device = model, on_device
        batch_size, device = len(cond_BL), cond_BL.device
        self._input_tables, self._head_tables = code_tables(model, tokenizer)
        self._cond_length = cond_BL.shape[1]
        length = self._cond_length + model.num_positions - 1
        self._body_cache = model.body_transformer.new_cache(batch_size, length, dtype, device, on_device)
        self._head_cache = model.head_transformer.new_cache(batch_size, model.depth, dtype, device)
        self._depth_tokens = model.pos_emb_d.unbind(1)
        self._context_BC: Tensor | None = None
        self._input_sum: Tensor | None = None
        self._head_sum: Tensor | None = None
        self._begin(cond_BL, prefix_BPD)

    def restart(self, cond_BL: Tensor, prefix_BPD: Tensor) -> None:
        """Starts anew in the same memory, with as many samples."""
        self._body_cache.clear()
        self._begin(cond_BL, prefix_BPD)

    def resume(self, position: int, input_sum: Tensor) -> None:
        """Puts the walk where it was when `pending_input` of the position before was kept in `input_sum`.

        What stands on the device stays: a replayed step moves that on, but nothing of Python's.
        """
        self.position, self.depth = position, 0
        self._body_cache.length = self._cond_length + position - 1
        self._head_cache.reset()
        self._context_BC, self._input_sum, self._head_sum = None, input_sum, None

    def _begin(self, cond_BL: Tensor, prefix_BPD: Tensor) -> None:
        self.position, self.depth = prefix_BPD.shape[1], 0
        self._head_cache.reset()
        self._input_sum = self._head_sum = None
        vectors_BPDE = None
        if self.model.input_mlp is not None:
            vectors_BPDE = _look_up(self._input_tables, prefix_BPD)
        input_BSC = self.model.body_input(cond_BL, prefix_BPD, vectors_BPDE)
        body_out_BSC = self.model.body_transformer(input_BSC, self._body_cache)
        self._context_BC = self._slot_BC = body_out_BSC[:, -1].contiguous()

    def new_input_sum(self, rows: int) -> Tensor:
        """Memory for the `pending_input` of this many rows."""
        return self._input_tables[0].new_zeros(rows, self._input_tables[0].shape[1])

    @property
    def pending_input(self) -> Tensor:
        """(B, E) or (B, C): what the body is given of the codes of the position just finished."""
        assert self._input_sum is not None and not self.depth, "a position ends with its codes pushed"
        return self._input_sum

    def position_index(self) -> Tensor:
        """The current position as a tensor (1,) on the device; needs `on_device`."""
        self.context()
        assert self._body_cache.index is not None, "the position is a number, not a tensor"
        return self._body_cache.index - self._cond_length

    def context(self) -> Tensor:
        """The body's output (B, C) for the current position; the first call after a position runs the body."""
        if self._context_BC is None:
            self._context_BC = self._slot_BC = self._body_step()
            self._input_sum = self._head_sum = None
            self._head_cache.reset()
        return self._context_BC

    def logits(self) -> Tensor:
        """Logits (B, V) of the next code. Call once per code."""
        self.context()
        x_B1C = (self._slot_BC + self._depth_tokens[self.depth]).unsqueeze(1)
        out_BC = self.model.head_transformer(x_B1C, self._head_cache).squeeze(1)
        return self.model.classifier.at_depth(out_BC, self.depth)

    def push(self, code_B: Tensor) -> None:
        """Takes the code just drawn and moves on to the next depth or position; after the last, there is nothing."""
        last = self.depth + 1 == self.model.depth
        input_vector = F.embedding(code_B, self._input_tables[self.depth])
        self._input_sum = input_vector if self._input_sum is None else self._input_sum + input_vector
        if not last:
            self._slot_BC = self._head_token(code_B, input_vector)
            self.depth += 1
            return
        self._finish_position()

    def compiled_position(self, request: SamplingRequest) -> NativePosition | None:
        """All draws of a position as one call (`draw_position`).

        None where something it needs is not compiled, where the request wants guidance or keeps codes, and where it
        does not know the walk, the model or the request (`served_model`).
        """
        model = self.model
        if type(self) is not Decoder or not knows_model(model) or not knows_request(request):
            return None
        if request.scale_T is not None or request.known_BTD is not None or self.on_device:
            return None
        if type(self._head_cache) is not KVCache:
            return None
        packed = [model.classifier.packed_at(depth) for depth in range(model.depth)]
        packed += [] if model.head_mlp is None else [model.packed_head]
        maps = [linear.native for linear in packed if linear is not None and linear.native is not None]
        tables = [*self._input_tables, *self._head_tables, model.pos_emb_d, *model.classifier.layer_norm.parameters()]
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
                input_tables=[table.detach().contiguous() for table in self._input_tables],
                head_tables=[table.detach().contiguous() for table in self._head_tables],
                cumulate=model.config.cumsum_depth_ctx,
                vocab_sizes=model.classifier.vocab_sizes,
            ),
            request.settings,
        )

    def draw_position(self, compiled: NativePosition, uniform_DB: Tensor) -> Tensor:
        """Codes (B, D) of the whole position; moves on to the next."""
        codes_BD, self._input_sum = compiled(self.context(), uniform_DB, self._head_cache)
        self._finish_position()
        return codes_BD

    def _finish_position(self) -> None:
        self.position, self.depth = self.position + 1, 0
        self._context_BC = None

    def _head_token(self, code_B: Tensor, input_vector: Tensor) -> Tensor:
        shared = self._head_tables is self._input_tables
        vector = input_vector if shared else F.embedding(code_B, self._head_tables[self.depth])
        if self.model.head_mlp is None:
            return vector
        if self.model.config.cumsum_depth_ctx and self._head_sum is not None:
            vector = vector + self._head_sum
        self._head_sum = vector
        return self.model.project_head(vector)

    def _body_step(self) -> Tensor:
        token_BC = self._input_sum
        assert token_BC is not None, "a position ends with its codes pushed"
        if self.model.input_mlp is not None:
            token_BC = self.model.project_input(token_BC)
        place = self.model.pos_emb_hw
        if self._body_cache.index is None:
            token_BC = token_BC + place[:, self.position - 1]
        else:
            token_BC = token_BC + place[0].index_select(0, self._body_cache.index - self._cond_length)
        return self.model.body_transformer(token_BC.unsqueeze(1), self._body_cache).squeeze(1)


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


def _look_up(tables: Sequence[Tensor], codes_BPD: Tensor) -> Tensor:
    return torch.stack([F.embedding(codes_BPD[..., d], table) for d, table in enumerate(tables)], dim=-2)
