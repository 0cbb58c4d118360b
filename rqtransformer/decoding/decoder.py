"""A walk through the codes of a batch with key-value caches: one body step per position, one head step per depth.

Legend: B batch, P given positions, D code depth, E code-vector size, C width, V vocabulary, L condition length, S
positions of the body.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer.decoding.head_walk import CodeVectorSource, HeadWalk
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.decoding.served_model import knows_request
from rqtransformer.model import RQTransformer
from rqtransformer.native import NativePosition


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
        self.head = HeadWalk(model, tokenizer, batch_size, dtype)
        self._cond_length = cond_BL.shape[1]
        length = self._cond_length + model.num_positions - 1
        self._body_cache = model.body_transformer.new_cache(batch_size, length, dtype, device, on_device)
        self._context_BC: Tensor | None = None
        self._begin(cond_BL, prefix_BPD)

    def restart(self, cond_BL: Tensor, prefix_BPD: Tensor) -> None:
        """Starts anew in the same memory, with as many samples."""
        self._body_cache.clear()
        self._begin(cond_BL, prefix_BPD)

    def resume(self, position: int, input_sum: Tensor) -> None:
        """Puts the walk where it was when `pending_input` of the position before was kept in `input_sum`.

        What stands on the device stays: a replayed step moves that on, but nothing of Python's.
        """
        self.position = position
        self._body_cache.length = self._cond_length + position - 1
        self._context_BC, self.head.input_sum = None, input_sum

    def _begin(self, cond_BL: Tensor, prefix_BPD: Tensor) -> None:
        self.position = prefix_BPD.shape[1]
        vectors_BPDE = None
        if self.model.input_mlp is not None:
            vectors_BPDE = _look_up(self.head.input_tables, prefix_BPD)
        input_BSC = self.model.body_input(cond_BL, prefix_BPD, vectors_BPDE)
        body_out_BSC = self.model.body_transformer(input_BSC, self._body_cache)
        self._context_BC = body_out_BSC[:, -1].contiguous()
        self.head.begin(self._context_BC)

    @property
    def depth(self) -> int:
        """Of the next code."""
        return 0 if self._context_BC is None else self.head.depth

    def new_input_sum(self, rows: int) -> Tensor:
        """Memory for the `pending_input` of this many rows."""
        table = self.head.input_tables[0]
        return table.new_zeros(rows, table.shape[1])

    @property
    def pending_input(self) -> Tensor:
        """(B, E) or (B, C): what the body is given of the codes of the position just finished."""
        assert self.head.input_sum is not None and self._context_BC is None, "a position ends with its codes pushed"
        return self.head.input_sum

    def position_index(self) -> Tensor:
        """The current position as a tensor (1,) on the device; needs `on_device`."""
        self.context()
        assert self._body_cache.index is not None, "the position is a number, not a tensor"
        return self._body_cache.index - self._cond_length

    def context(self) -> Tensor:
        """The body's output (B, C) for the current position; the first call after a position runs the body."""
        if self._context_BC is None:
            self._context_BC = self._body_step()
            self.head.begin(self._context_BC)
        return self._context_BC

    def logits(self) -> Tensor:
        """Logits (B, V) of the next code. Call once per code."""
        self.context()
        return self.head.logits()

    def push(self, code_B: Tensor) -> None:
        """Takes the code just drawn and moves on to the next depth or position; after the last, there is nothing."""
        if self.head.push(code_B):
            self._finish_position()

    def compiled_position(self, request: SamplingRequest) -> NativePosition | None:
        """All draws of a position as one call (`draw_position`).

        None where something it needs is not compiled, where the request wants guidance or keeps codes, and where it
        does not know the walk, the model or the request (`served_model`).
        """
        if type(self) is not Decoder or not knows_request(request):
            return None
        if request.scale_T is not None or request.known_BTD is not None or request.allowed is not None:
            return None
        return None if self.on_device else self.head.compiled(request.settings)

    def draw_position(self, compiled: NativePosition, uniform_DB: Tensor) -> Tensor:
        """Codes (B, D) of the whole position; moves on to the next."""
        codes_BD = self.head.draw(compiled, self.context(), uniform_DB)
        self._finish_position()
        return codes_BD

    def _finish_position(self) -> None:
        self.position += 1
        self._context_BC = None

    def _body_step(self) -> Tensor:
        token_BC = self.pending_input
        if self.model.input_mlp is not None:
            token_BC = self.model.project_input(token_BC)
        place = self.model.pos_emb_hw
        if self._body_cache.index is None:
            token_BC = token_BC + place[:, self.position - 1]
        else:
            token_BC = token_BC + place[0].index_select(0, self._body_cache.index - self._cond_length)
        return self.model.body_transformer(token_BC.unsqueeze(1), self._body_cache).squeeze(1)


def _look_up(tables: Sequence[Tensor], codes_BPD: Tensor) -> Tensor:
    return torch.stack([F.embedding(codes_BPD[..., d], table) for d, table in enumerate(tables)], dim=-2)
