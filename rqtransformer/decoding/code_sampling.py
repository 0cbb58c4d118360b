"""Conditions -> codes, with key-value caches: one body step per position, one head step per depth.

Legend: B batch, P given positions, T = H*W positions, D code depth, E code-vector size, C width, V vocabulary,
L condition length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rqstack.counter_noise import uniform_noise
from rqtransformer.decoding.decoder import Decoder
from rqtransformer.decoding.logits import guide
from rqtransformer.decoding.sampling_request import Guidance, SamplingRequest, check_request
from rqtransformer.decoding.served_model import knows_model, knows_request
from rqtransformer.decoding.truncation import draw_truncated
from rqtransformer.embedding import ImageTokenizer
from rqtransformer.fast.cuda_graph import StepGraph
from rqtransformer.model import RQTransformer
from rqtransformer.native import NativePosition


class SampledBatch(NamedTuple):
    """One batch of `sample_batches`: codes (B, H, W, D), conditions (B,) or (B, L) or None, global sample indices."""

    codes: Tensor
    cond: Tensor | None
    indices: list[int]


class PartialCodes(NamedTuple):
    """One step of `sample_stream`.

    Attributes:
        position: how many positions (raster order) are finished.
        codes: (B, H, W, D); what is not finished yet is 0. The next step writes into the same tensor.
    """

    position: int
    codes: Tensor


def sample(
    model: RQTransformer, tokenizer: ImageTokenizer | None, cond: Tensor | None = None, **arguments: Any
) -> Tensor:
    """Draws code maps (B, H, W, D), int64.

    The noise of a sample is a function of (seed, its index, position, depth) only; batch size and rank do not matter.

    Args:
        model: on any device; runs in eval mode and is put back afterwards.
        tokenizer: the stage-1 model whose codebooks embed the codes.
        cond: None, class ids (B,) or token ids (B, L).
        arguments: those of `sample_stream`.

    Raises:
        ValueError: for settings out of range, shapes that do not fit, or guidance of a model without null condition.
    """
    for partial in sample_stream(model, tokenizer, cond, **arguments):
        codes_BHWD = partial.codes
    return codes_BHWD


def sample_stream(
    model: RQTransformer,
    tokenizer: ImageTokenizer | None,
    cond: Tensor | None = None,
    *,
    num_samples: int | None = None,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] | None = None,
    top_p: float | Sequence[float] | None = None,
    cfg_scale: Guidance = None,
    seed: int = 0,
    start_index: int = 0,
    indices: Sequence[int] | Tensor | None = None,
    prefix: Tensor | None = None,
    known: tuple[Tensor, Tensor] | None = None,
    amp_dtype: torch.dtype | None = None,
    weights: str = "dense",
    graphs: bool | None = None,
    **more_rules: Any,
) -> Iterator[PartialCodes]:
    """`sample`, position by position: yields what is given, then once per position, for previews.

    Nothing waits for the device until the caller looks at the codes. The model is in decoding mode until the iterator
    ends or is closed.

    Args:
        model, tokenizer, cond: see `sample`.
        num_samples: B; needed only if neither `cond`, `prefix`, `known` nor `indices` says it.
        temperature, top_k, top_p: one value or one per depth; None switches a filter off.
        cfg_scale: classifier-free guidance: a number, one per position, or a schedule such as "linear:4"
            (`sampling_request.guidance_scales`); 1 or None is the plain model.
        seed: of all noise.
        start_index: global index of the first sample; the others follow.
        indices: global index of every sample, instead of `start_index`.
        prefix: codes (B, P, D) of the first P positions in raster order, kept as they are.
        known: (mask, codes (B, H, W, D)): codes where the mask is True are kept, the others drawn in raster order, each
            given all codes before it. The mask is (H, W), (B, H, W) or (B, H, W, D).
        amp_dtype: type of products and caches, for example torch.bfloat16; the residual stream keeps its own.
        weights: dense, or int8 (`packing.WeightFormat`).
        graphs: replay each position as one CUDA graph; None does so on a GPU. A model or a request that is not known
            as a whole (`served_model`) decodes without.
        more_rules: further fields of `DrawSettings`, one value or one per depth.

    Raises:
        ValueError: see `sample`.
    """
    request = check_request(
        model,
        cond,
        num_samples=num_samples,
        draw={"temperature": temperature, "top_k": top_k, "top_p": top_p, **more_rules},
        cfg_scale=cfg_scale,
        start_index=start_index,
        indices=indices,
        prefix=prefix,
        known=known,
    )
    device = model.pos_emb_hw.device
    # Made here, outside of inference mode, so that a caller may train on what is drawn.
    codes_BTD = torch.zeros(request.batch_size, model.num_positions, model.depth, dtype=torch.long, device=device)
    given = request.prefix_BPD.shape[1]
    codes_BTD[:, :given] = request.prefix_BPD
    codes_BHWD = codes_BTD.unflatten(1, model.config.block_size[:2])
    yield PartialCodes(given, codes_BHWD)
    if given < model.num_positions:
        with model.decoding_mode(amp_dtype, weights):
            use_graphs = device.type == "cuda" if graphs is None else graphs
            for position in _draw_positions(model, tokenizer, request, codes_BTD, seed, amp_dtype, use_graphs):
                yield PartialCodes(position, codes_BHWD)


@torch.inference_mode()
def _draw_positions(
    model: RQTransformer,
    tokenizer: ImageTokenizer | None,
    request: SamplingRequest,
    codes_BTD: Tensor,
    seed: int,
    amp_dtype: torch.dtype | None,
    on_device: bool,
) -> Iterator[int]:
    """Draws the positions after the prefix into `codes_BTD`; yields how many are finished."""
    prefix_BPD = request.prefix_BPD if request.scale_T is None else request.prefix_BPD.repeat(2, 1, 1)
    dtype = amp_dtype or model.pos_emb_hw.dtype
    # steps of fixed kernels read the position from the device: only known modules do so everywhere
    on_device = on_device and knows_model(model) and knows_request(request)
    decoder = Decoder(model, tokenizer, request.cond_BL, prefix_BPD, dtype, on_device)
    step = _PositionStep(decoder, request, codes_BTD, seed)
    run = StepGraph(step, decoder) if on_device and codes_BTD.is_cuda else step
    for finished in range(prefix_BPD.shape[1] + 1, model.num_positions + 1):
        run()
        yield finished


class _PositionStep:
    """Draws the D codes of the decoder's position into the code map."""

    def __init__(self, decoder: Decoder, request: SamplingRequest, codes_BTD: Tensor, seed: int):
        self.decoder, self.request, self.codes_BTD = decoder, request, codes_BTD
        num_positions, depth = codes_BTD.shape[1:]
        addresses = list(itertools.product(range(num_positions), range(depth)))
        self.noise_TDB = uniform_noise(seed, request.index_B, addresses).unflatten(0, (num_positions, depth))
        self.scale_T1: Tensor | None = None
        if request.scale_T is not None:
            self.scale_T1 = torch.tensor(request.scale_T, device=codes_BTD.device).unsqueeze(1)
        self.on_device = decoder.on_device
        self.compiled: NativePosition | None = decoder.compiled_position(request)

    def __call__(self) -> None:
        """All depths of one position."""
        decoder, request = self.decoder, self.request
        index = decoder.position_index() if self.on_device else decoder.position
        noise_DB = self._at(self.noise_TDB, index)
        if self.compiled is not None:
            self._write(decoder.draw_position(self.compiled, noise_DB), index)
            return
        scale = None if self.scale_T1 is None else self._at(self.scale_T1, index)
        known_BD = given_BD = None
        if request.known_BTD is not None and request.codes_BTD is not None:
            known_BD = self._at(request.known_BTD, index, axis=1)
            given_BD = self._at(request.codes_BTD, index, axis=1)
        drawn = []
        for depth, settings in enumerate(request.settings):
            logits = decoder.logits()
            if scale is not None:
                conditional, unconditional = logits.float().chunk(2)
                logits = guide(conditional, unconditional, scale)
            code_B = draw_truncated(logits, noise_DB[depth], settings)
            if known_BD is not None and given_BD is not None:
                code_B = torch.where(known_BD[:, depth], given_BD[:, depth], code_B)
            drawn.append(code_B)
            if depth + 1 == len(request.settings):  # before the decoder moves on
                self._write(torch.stack(drawn, dim=1), index)
            decoder.push(code_B if scale is None else code_B.repeat(2))

    def _at(self, values: Tensor, index: Tensor | int, axis: int = 0) -> Tensor:
        if isinstance(index, Tensor):
            return values.index_select(axis, index).squeeze(axis)
        return values.select(axis, index)

    def _write(self, codes_BD: Tensor, index: Tensor | int) -> None:
        if isinstance(index, Tensor):
            self.codes_BTD.index_copy_(1, index, codes_BD.unsqueeze(1))
        else:
            self.codes_BTD[:, index] = codes_BD


def sample_batches(
    model: RQTransformer,
    tokenizer: ImageTokenizer | None,
    conditions: Iterable[Any],
    batch_size: int,
    *,
    indices: Iterable[int] | None = None,
    start_index: int = 0,
    **settings: Any,
) -> Iterator[SampledBatch]:
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
