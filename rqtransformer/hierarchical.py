"""A causal transformer over nested blocks of tokens: the body and head of an RQ-Transformer for any number of levels.

Level 0 runs over the blocks of a sequence, level 1 over the parts of one block, and so on; the last level over tokens.
Slot 0 of a block holds what the level above knows before the block (at level 0 a learned start), slot j the summary of
part j - 1. So the output at slot j knows exactly the tokens before part j: it is the context of part j, and at the last
level the prediction of token j. Every token is predicted once, the first one included, and nothing sees itself.

Legend: B batch, N tokens, M blocks of one level over the whole batch, S parts of a block, C width, V vocabulary.

Lee et al., CVPR 2022 (two levels); Yu et al., MEGABYTE, 2023 (arXiv 2305.07185).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqstack.arguments import check_kind
from rqstack.counter_noise import uniform_noise
from rqstack.module_list import ModuleList
from rqtransformer.attention import NORMS
from rqtransformer.config import StackConfig
from rqtransformer.decoding.allowed_codes import Allowed, CodeFilter, check_allowed
from rqtransformer.decoding.sampling_request import settings_per_depth
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.fast.packing import PackedSlot
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.finite_draws import check_drawn, naming_weights, to_embed
from rqtransformer.given_values import check_codes_below, whole_number, whole_numbers
from rqtransformer.hierarchical_config import MERGES, HierarchicalConfig
from rqtransformer.kv_cache import KVCache
from rqtransformer.recomputation import Recomputation
from rqtransformer.stack import TransformerStack

IGNORED = -100  # target of a token that does not count


class HierarchicalTransformer(nn.Module):
    """Causal model of token ids in nested blocks: (B, S_0, S_1, ..., S_last) or flat (B, N).

    Raises:
        ValueError: for a configuration whose values do not fit together.
    """

    def __init__(self, config: HierarchicalConfig):
        super().__init__()
        check_kind("config", config, HierarchicalConfig).validate()
        self.config = config
        self.token_emb = nn.Embedding(config.num_tokens, config.dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.start = nn.Parameter(torch.randn(config.dim) * 0.02)
        rows = config.max_seq_len if config.absolute_positions else ()
        self.pos_emb = nn.ParameterList(torch.randn(length, config.dim) * 0.02 for length in rows)
        self.levels: ModuleList[TransformerStack] = ModuleList(
            TransformerStack(config.dim, StackConfig(n_layer=layers, block=config.stack)) for layers in config.depth
        )
        self.norms = nn.ModuleList(NORMS[config.norm](config.dim) for _ in config.depth)
        self.merges = nn.ModuleList(MERGES[config.merge](parts, config.dim) for parts in config.max_seq_len[1:])
        self.to_logits = nn.Linear(config.dim, config.num_tokens)
        self._packed_logits = PackedSlot()

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Parts per block of all levels but the first."""
        return tuple(self.config.max_seq_len[1:])

    @property
    def gradient_checkpointing(self) -> Recomputation:
        """Whether blocks are recomputed in the backward pass: less memory, and one more forward or, with `selective`,
        one more of what is no product of matrices."""
        return self.levels[0].gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: Recomputation) -> None:
        for stack in self.levels:
            stack.gradient_checkpointing = enabled

    def forward(self, ids: Tensor) -> Tensor:
        """See `token_logits`."""
        return self.token_logits(ids)

    def token_logits(self, ids: Tensor) -> Tensor:
        """Logits of every token given all tokens before it, in the shape of `ids` with V behind.

        A flat sequence may end anywhere; a nested one has full blocks. The first level may be shorter than its maximum.

        Raises:
            ValueError: for shapes that fit neither form, or too many blocks.
        """
        ids = self.checked_ids(ids)
        nested = self._nested(ids)
        summaries = self.summaries(nested)
        context = self.start.expand(len(nested), -1)
        for level, (stack, norm) in enumerate(zip(self.levels, self.norms)):
            parts_MSC = summaries[level].flatten(0, -3)
            slots_MSC = torch.cat([context.reshape(len(parts_MSC), 1, -1), parts_MSC[:, :-1]], dim=1)
            context = norm(stack(slots_MSC + self.positions(level, slots_MSC.shape[1])))
        logits = self.to_logits(context).view(*nested.shape, -1)
        return logits if ids.ndim > 2 else logits.flatten(1, -2)[:, : ids.shape[1]]

    def checked_ids(self, ids: Any) -> Tensor:
        """Ids (B, ...) of a tensor, an array or lists as an int64 tensor.

        Raises:
            ValueError: for other types, ids without a batch, or, on a CPU, ids outside the vocabulary.
        """
        ids = whole_numbers("ids", ids)
        if ids.ndim < 2:
            raise ValueError(f"ids of shape {tuple(ids.shape)} must be (batch, tokens) or nested blocks")
        if ids.is_cpu and not torch.compiler.is_compiling():  # elsewhere it would wait for the device
            check_codes_below("ids", ids.unsqueeze(-1), [self.config.num_tokens])
        return ids

    def summaries(self, ids: Tensor) -> list[Tensor]:
        """Ids (B, S_0, ..., S_last) -> the parts of every level: (B, S_0, C), (B, S_0, S_1, C), ..., the tokens."""
        parts = [self.embed(ids)]
        for merge in reversed(self.merges):
            parts.insert(0, merge(parts[0]))
        return parts

    def embed(self, ids: Tensor) -> Tensor:
        """Ids (...) -> token embeddings (..., C), zero for padding."""
        tokens = self.token_emb(ids)
        if self.config.pad_id is None:
            return tokens
        return tokens.masked_fill((ids == self.config.pad_id).unsqueeze(-1), 0.0)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross entropy (nats) of all tokens but padding, each counted once; 0 if there is nothing but padding."""
        ids = self.checked_ids(ids)
        target_N = ids.flatten()
        if self.config.pad_id is not None:
            target_N = target_N.masked_fill(target_N == self.config.pad_id, IGNORED)
        total = F.cross_entropy(self.token_logits(ids).flatten(0, -2), target_N, ignore_index=IGNORED, reduction="sum")
        return total / (target_N != IGNORED).sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self,
        prime: Any = None,
        *,
        batch_size: int = 1,
        num_blocks: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        start_index: int = 0,
        allowed: Allowed | None = None,
        **more_rules: Any,
    ) -> Tensor:
        """Draws sequences (B, num_blocks, S_1, ..., S_last), with caches at every level.

        The draw of token n of a sequence depends on (seed, the sequence's index, n) only.

        Args:
            prime: tokens to continue, (B, N) or (B, S_0, ..., S_last); kept as they are.
            batch_size: number of sequences, if there is no prime.
            num_blocks: of the first level; by default its maximum.
            temperature, top_k, top_p: see `DrawSettings`.
            seed, start_index: of the noise; index of the first sequence.
            allowed: which tokens may come next: a function of the tokens so far (B, N), as in `sample_stream`.
            more_rules: further fields of `DrawSettings`.

        Raises:
            ValueError: for a prime that does not fit, settings out of range, logits that are not finite, or a hook that
                leaves nothing to draw.
        """
        device = self.start.device
        num_blocks = self.config.max_seq_len[0] if num_blocks is None else whole_number("num_blocks", num_blocks)
        batch_size, seed = whole_number("batch_size", batch_size, 1), whole_number("seed", seed)
        start_index = whole_number("start_index", start_index)
        settings = settings_per_depth(1, temperature=temperature, top_k=top_k, top_p=top_p, **more_rules)[0]
        given_BN = torch.empty(batch_size, 0, dtype=torch.long, device=device)
        if prime is not None:
            prime = whole_numbers("prime", prime)
            if prime.ndim < 2:
                raise ValueError(f"prime of shape {tuple(prime.shape)} must be (batch, tokens) or nested blocks")
            prime = prime.flatten(1)
            check_codes_below("prime", prime.unsqueeze(-1), [self.config.num_tokens])
            given_BN = prime.to(device)
        total = num_blocks * math.prod(self.block_shape)
        if given_BN.shape[1] > total or not 0 < num_blocks <= self._most_blocks():
            raise ValueError(
                f"{num_blocks} blocks of {math.prod(self.block_shape)} tokens do not hold a prime of "
                f"{given_BN.shape[1]}, or are more than the model's {self._most_blocks()}"
            )
        drawn_BN = torch.empty(len(given_BN), total, dtype=torch.long, device=device)
        drawn_BN[:, : given_BN.shape[1]] = given_BN
        code_filter = CodeFilter.of(check_allowed(allowed), len(given_BN), device)
        if given_BN.shape[1] < total:
            index_B = torch.arange(start_index, start_index + len(given_BN), device=device)
            noise_NB = uniform_noise(seed, index_B, [(position, 0) for position in range(total)])
            with torch.inference_mode(), self.decoding_mode():
                self._draw_into(drawn_BN, given_BN.shape[1], noise_NB, settings, code_filter)
        return drawn_BN.view(len(drawn_BN), num_blocks, *self.block_shape)

    @contextlib.contextmanager
    def decoding_mode(self, form: WeightFormat | None = None) -> Iterator[None]:
        """Eval mode with packed weights; everything is put back at the end."""
        was_training = self.training
        self.eval()
        try:
            with naming_weights(self):
                for stack in self.levels:
                    stack.pack(form or WeightFormat())
                self._packed_logits.fill_from((self.to_logits,), form or WeightFormat())
            yield
        finally:
            for packed in (*self.levels, self._packed_logits):
                packed.unpack(keep=not was_training)
            self.train(was_training)

    def _draw_into(
        self, drawn_BN: Tensor, num_given: int, noise_NB: Tensor, settings: DrawSettings, rules_out: CodeFilter | None
    ) -> None:
        walk = HierarchicalWalk(self, drawn_BN[:, :num_given], drawn_BN.shape[1])
        for position in range(walk.first_position, drawn_BN.shape[1]):
            if position >= num_given:
                logits_BV = walk.logits()
                if rules_out is not None:
                    logits_BV = rules_out(logits_BV, None, drawn_BN[:, :position], self.config.num_tokens)
                drawn_BN[:, position] = draw_truncated(logits_BV, noise_NB[position], settings)
            walk.push(to_embed(drawn_BN[:, position]))
        if rules_out is not None:
            rules_out.check()
        check_drawn(drawn_BN, self)

    def _nested(self, ids: Tensor) -> Tensor:
        if ids.ndim == 2:
            short = -ids.shape[1] % math.prod(self.block_shape)
            fill = 0 if self.config.pad_id is None else self.config.pad_id
            ids = F.pad(ids, (0, short), value=fill).unflatten(1, (-1, *self.block_shape))
        if ids.ndim != len(self.levels) + 1 or tuple(ids.shape[2:]) != self.block_shape or not ids.shape[1]:
            raise ValueError(
                f"ids of shape {tuple(ids.shape)} must be (batch, tokens) or (batch, blocks, "
                f"{', '.join(map(str, self.block_shape))})"
            )
        if ids.shape[1] > self._most_blocks():
            raise ValueError(f"{ids.shape[1]} blocks are more than max_seq_len[0]={self.config.max_seq_len[0]}")
        return ids

    def _most_blocks(self) -> float:
        return self.config.max_seq_len[0] if self.config.absolute_positions else math.inf

    def positions(self, level: int, length: int) -> Tensor | float:
        """Embeddings (S, C) of the first slots of a level; 0 without them."""
        return self.pos_emb[level][:length] if self.config.absolute_positions else 0.0


class HierarchicalWalk:
    """Steps through the tokens of a batch: `logits()` of the next token, `push(token)`, and so on.

    Every level has a cache of one block, allocated here. The blocks that are given whole run in one step of level 0;
    the tokens of a block that is given in part have to be pushed.

    Attributes:
        first_position: the first token that is to be pushed.
    """

    def __init__(self, model: HierarchicalTransformer, given_BN: Tensor, num_tokens: int):
        self.model = model
        block = math.prod(model.block_shape)
        whole = min(given_BN.shape[1], num_tokens - 1) // block
        self.first_position = whole * block
        self.given = given_BN[:, : self.first_position].unflatten(1, (whole, *model.block_shape))
        self.lengths = (num_tokens // block, *model.block_shape)
        dtype, device = model.start.dtype, model.start.device
        self.caches: list[KVCache] = [
            stack.new_cache(len(given_BN), length, dtype, device) for stack, length in zip(model.levels, self.lengths)
        ]
        self._walk = self._run(0, None)
        self._next_output = next(self._walk)  # up to the first token

    def logits(self) -> Tensor:
        """Logits (B, V) of the next token."""
        packed = self.model._packed_logits.active
        return self.model.to_logits(self._next_output) if packed is None else packed(self._next_output)

    def push(self, token_B: Tensor) -> None:
        """Takes the next token; after the last one there is nothing."""
        with contextlib.suppress(StopIteration):
            self._next_output = self._walk.send(token_B)

    def _run(self, level: int, context_BC: Tensor | None) -> Generator[Tensor, Tensor, Tensor]:
        """Walks through one block of `level`: yields the output before each token, is sent the token, returns the
        summary of the block."""
        self.caches[level].reset()
        parts: list[Tensor] = []
        if level == 0:
            parts, output_BC = self._given_blocks()
        else:
            assert context_BC is not None, "a block below the first level has a context"
            output_BC = self._step(level, 0, context_BC)
        while True:
            if level + 1 == len(self.caches):
                token_B = yield output_BC
                parts.append(self.model.embed(token_B))
            else:
                parts.append((yield from self._run(level + 1, output_BC)))
            if len(parts) == self.lengths[level]:
                break
            output_BC = self._step(level, len(parts), parts[-1])
        return self.model.merges[level - 1](torch.stack(parts, dim=1)) if level else output_BC

    def _given_blocks(self) -> tuple[list[Tensor], Tensor]:
        """Summaries of the blocks that are given whole, and the output for the block after them."""
        model, summaries = self.model, self.model.summaries(self.given)[0]
        slots_BSC = torch.cat([model.start.expand(len(self.given), 1, -1), summaries], dim=1)
        hidden_BSC = model.levels[0](slots_BSC + model.positions(0, slots_BSC.shape[1]), self.caches[0])
        return list(summaries.unbind(1)), model.norms[0](hidden_BSC[:, -1])

    def _step(self, level: int, slot: int, input_BC: Tensor) -> Tensor:
        model = self.model
        if model.config.absolute_positions:
            input_BC = input_BC + model.pos_emb[level][slot]
        return model.norms[level](model.levels[level](input_BC.unsqueeze(1), self.caches[level]).squeeze(1))
