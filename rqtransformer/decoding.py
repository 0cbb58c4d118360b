"""Conditions -> codes, with key-value caches: one body step per position, one head step per depth.

Legend: B batch, P given positions, T = H*W positions, D code depth, E code-vector size, C width, V vocabulary,
L condition length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer.embedding import ImageTokenizer
from rqtransformer.logits import guide, invert_cdf, sampling_probs, uniform_noise
from rqtransformer.model import RQTransformer


class Decoder:
    """Steps through the codes of a batch: `logits()` of the next code, `push(code)`, and so on.

    Only the code just pushed is embedded; everything else is in the caches, which are allocated here, once.

    Args:
        model: in `RQTransformer.decoding_mode`.
        tokenizer: gives the codebooks; may be None if the model uses only its own token table.
        cond_BL: condition ids.
        prefix_BPD: codes of the first P < T positions.
        dtype: of the caches.
    """

    def __init__(self, model: RQTransformer, tokenizer: ImageTokenizer | None, cond_BL: Tensor, prefix_BPD: Tensor,
                 dtype: torch.dtype):
        self.model = model
        self.position, self.depth = prefix_BPD.shape[1], 0
        batch_size, device = len(cond_BL), cond_BL.device
        depths = range(model.depth)
        books = None
        if model.input_mlp is not None or model.head_mlp is not None:
            books = [tokenizer.codebook(d) for d in depths]
        self._input_tables = books if model.input_mlp is not None else [model.tok_emb.table(d) for d in depths]
        self._head_tables = books if model.head_mlp is not None else [model.tok_emb.table(d) for d in depths]
        length = cond_BL.shape[1] + model.num_positions - 1
        self._body_cache = model.body_transformer.new_cache(batch_size, length, dtype, device)
        self._head_cache = model.head_transformer.new_cache(batch_size, model.depth, dtype, device)
        vectors_BPDE = None
        if model.input_mlp is not None:
            vectors_BPDE = _look_up(self._input_tables, prefix_BPD)
        body_out_BSC = model.body_transformer(model.body_input(cond_BL, prefix_BPD, vectors_BPDE), self._body_cache)
        self._slot_BC = body_out_BSC[:, -1]
        self._input_sum: Tensor | None = None
        self._head_sum: Tensor | None = None

    def logits(self) -> Tensor:
        """Logits (B, V) of the next code. Call once per code."""
        x_B1C = (self._slot_BC + self.model.pos_emb_d[:, self.depth]).unsqueeze(1)
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
        self.position, self.depth = self.position + 1, 0
        if self.position < self.model.num_positions:
            self._slot_BC = self._body_step()
        self._input_sum = self._head_sum = None
        self._head_cache.reset()

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
        if self.model.input_mlp is not None:
            token_BC = self.model.project_input(token_BC)
        token_BC = token_BC + self.model.pos_emb_hw[:, self.position - 1]
        return self.model.body_transformer(token_BC.unsqueeze(1), self._body_cache).squeeze(1)


class SampledBatch(NamedTuple):
    """One batch of `sample_batches`: codes (B, H, W, D), conditions (B,) or (B, L) or None, global sample indices."""

    codes: Tensor
    cond: Tensor | None
    indices: list[int]


@torch.no_grad()
def sample(model: RQTransformer, tokenizer: ImageTokenizer | None, cond: Tensor | None = None, *,
           num_samples: int | None = None, temperature: float | Sequence[float] = 1.0,
           top_k: int | Sequence[int] | None = None, top_p: float | Sequence[float] | None = None,
           cfg_scale: float | None = None, seed: int = 0, start_index: int = 0,
           indices: Sequence[int] | Tensor | None = None, prefix: Tensor | None = None,
           amp_dtype: torch.dtype | None = None) -> Tensor:
    """Draws code maps (B, H, W, D), int64.

    The noise of a sample is a function of (seed, its index) only; batch size and rank do not matter.

    Args:
        model: on any device; runs in eval mode and is put back afterwards.
        tokenizer: the stage-1 model whose codebooks embed the codes.
        cond: None, class ids (B,) or token ids (B, L).
        num_samples: B; needed only if neither `cond`, `prefix` nor `indices` says it.
        temperature, top_k, top_p: one value or one per depth; None switches a filter off.
        cfg_scale: classifier-free guidance; 1 or None is the plain model.
        seed: of all noise.
        start_index: global index of the first sample; the others follow.
        indices: global index of every sample, instead of `start_index`.
        prefix: codes (B, P, D) of the first P positions in raster order, kept as they are.
        amp_dtype: run under autocast with this type, for example torch.bfloat16.

    Raises:
        ValueError: for settings out of range, shapes that do not fit, or guidance of a model without null condition.
    """
    device = model.pos_emb_hw.device
    batch_size = _batch_size(num_samples, cond, prefix, indices)
    prefix_BPD = _checked_prefix(model, prefix, batch_size, device)
    settings = _settings_per_depth(model, temperature, top_k, top_p)
    cond_BL = _checked_condition(model, cond, batch_size, device)
    guided = cfg_scale is not None and cfg_scale != 1.0
    if guided:
        cond_BL = torch.cat([cond_BL, _null_condition_like(model, cond_BL)])
    sample_index_B = _sample_indices(indices, start_index, batch_size, device)
    codes_BTD = torch.empty(batch_size, model.num_positions, model.depth, dtype=torch.long, device=device)
    first = prefix_BPD.shape[1]
    codes_BTD[:, :first] = prefix_BPD
    if first == model.num_positions:
        return codes_BTD.unflatten(1, model.config.block_size[:2])
    addresses = list(itertools.product(range(first, model.num_positions), range(model.depth)))
    noise_AB = uniform_noise(seed, sample_index_B, addresses)
    cache_dtype = amp_dtype or model.pos_emb_hw.dtype
    autocast = torch.autocast(device.type, dtype=amp_dtype, enabled=amp_dtype is not None)
    with model.decoding_mode(amp_dtype), autocast:
        repeats = 2 if guided else 1
        decoder = Decoder(model, tokenizer, cond_BL, prefix_BPD.repeat(repeats, 1, 1), cache_dtype)
        for (position, depth), noise_B in zip(addresses, noise_AB.unbind(0)):
            logits = decoder.logits()
            if guided:
                logits = guide(*logits.float().chunk(2), cfg_scale)
            code_B = invert_cdf(sampling_probs(logits, *settings[depth]), noise_B)
            codes_BTD[:, position, depth] = code_B
            decoder.push(code_B.repeat(repeats) if guided else code_B)
    return codes_BTD.unflatten(1, model.config.block_size[:2])


def sample_batches(model: RQTransformer, tokenizer: ImageTokenizer | None, conditions: Iterable, batch_size: int, *,
                   indices: Iterable[int] | None = None, start_index: int = 0, **settings) -> Iterator[SampledBatch]:
    """Draws one code map per condition, batch after batch.

    Args:
        model, tokenizer: see `sample`.
        conditions: one entry per sample: a class id, token ids (L,), or None for a model without condition.
        batch_size: samples drawn together; the last batch may be smaller.
        indices: global index of every sample; counted from `start_index` when left out.
        settings: passed on to `sample`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    numbered = zip(itertools.count(start_index) if indices is None else indices, conditions)
    while batch := list(itertools.islice(numbered, batch_size)):
        index = [int(i) for i, _ in batch]
        cond = None
        if batch[0][1] is not None:
            cond = torch.stack([torch.as_tensor(entry) for _, entry in batch])
        codes_BHWD = sample(model, tokenizer, cond, num_samples=len(batch), indices=index, **settings)
        yield SampledBatch(codes_BHWD, cond, index)


def _look_up(tables: Sequence[Tensor], codes_BPD: Tensor) -> Tensor:
    return torch.stack([F.embedding(codes_BPD[..., d], table) for d, table in enumerate(tables)], dim=-2)


def _batch_size(num_samples: int | None, *givers: Tensor | Sequence[int] | None) -> int:
    sizes = [len(giver) for giver in givers if giver is not None]
    if num_samples is not None:
        sizes.append(num_samples)
    if not sizes:
        raise ValueError("num_samples is needed when neither cond, prefix nor indices says how many samples to draw")
    if len(set(sizes)) > 1 or sizes[0] < 1:
        raise ValueError(f"num_samples, cond, prefix and indices must agree on one positive number, not {sizes}")
    return sizes[0]


def _checked_prefix(model: RQTransformer, prefix: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    if prefix is None:
        return torch.empty(batch_size, 0, model.depth, dtype=torch.long, device=device)
    if prefix.ndim != 3 or prefix.shape[1] > model.num_positions or prefix.shape[2] != model.depth:
        raise ValueError(f"prefix of shape {tuple(prefix.shape)} must be (batch, up to {model.num_positions}, "
                         f"{model.depth})")
    return prefix.to(device)


def _checked_condition(model: RQTransformer, cond: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
    cond_BL = model.condition_ids(None if cond is None else cond.to(device), batch_size, device)
    known = model.cond_emb.num_embeddings
    low, high = (int(bound) for bound in cond_BL.aminmax())  # once, before the loop
    if low < 0 or high >= known:
        raise ValueError(f"condition ids must lie in 0..{known - 1}, not {low}..{high}")
    return cond_BL


def _null_condition_like(model: RQTransformer, cond_BL: Tensor) -> Tensor:
    if not model.config.has_null_condition:
        raise ValueError("guidance (cfg_scale) needs a model trained with condition dropout; this one has "
                         "arch.cond_drop_prob=0")
    return torch.full_like(cond_BL, model.null_condition)


def _sample_indices(indices: Sequence[int] | Tensor | None, start_index: int, batch_size: int,
                    device: torch.device) -> Tensor:
    if indices is None:
        return torch.arange(start_index, start_index + batch_size, device=device)
    return torch.as_tensor(indices, dtype=torch.long).to(device)


def _settings_per_depth(model: RQTransformer, temperature, top_k, top_p) -> list[tuple]:
    columns = []
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) == 1:
            values *= model.depth
        if len(values) != model.depth:
            raise ValueError(f"{name}={value} must be one value or one per depth ({model.depth})")
        columns.append(values)
    settings = list(zip(*columns))
    probe = torch.zeros(1, 2)
    for row in settings:
        sampling_probs(probe, *row)  # raises before anything runs
    return settings
