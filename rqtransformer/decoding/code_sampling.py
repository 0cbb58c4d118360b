"""Conditions -> codes, with key-value caches: one body step per position, one head step per depth.

Legend: B batch, P given positions, T = H*W positions, D code depth, E code-vector size, C width, V vocabulary,
L condition length.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rqstack.arguments import check_flag, shown
from rqtransformer.decoding.allowed_codes import Allowed, CodeFilter
from rqtransformer.decoding.decode_program import borrow_program, filled_up
from rqtransformer.decoding.decoder import Decoder
from rqtransformer.decoding.head_walk import code_vectors
from rqtransformer.decoding.position_step import DrawInputs, PositionStep
from rqtransformer.decoding.sampling_request import Guidance, SamplingRequest, check_request
from rqtransformer.decoding.served_model import knows_model, knows_request
from rqtransformer.embedding import ImageTokenizer
from rqtransformer.finite_draws import check_drawn
from rqtransformer.given_values import whole_number
from rqtransformer.model import RQTransformer


class SampledBatch(NamedTuple):
    """One batch of `sample_batches`: codes (B, H, W, D), conditions (B,) or (B, L) or None, global sample indices."""

    codes: Tensor
    cond: Tensor | None
    indices: list[int]


class PartialCodes(NamedTuple):
    """One step of `sample_stream`.

    Attributes:
        position: how many positions (raster order) are finished.
        codes: (B, H, W, D); what is not finished yet is 0, and `NOT_DRAWN` what cannot be drawn. The next step writes
            into the same tensor.
    """

    position: int
    codes: Tensor


def sample(model: RQTransformer, tokenizer: ImageTokenizer | None, cond: Any = None, **arguments: Any) -> Tensor:
    """Draws code maps (B, H, W, D), int64.

    The noise of a sample is a function of (seed, its index, position, depth) only; batch size and rank do not matter.

    Args:
        model: on any device; runs in eval mode and is put back afterwards.
        tokenizer: the stage-1 model whose codebooks embed the codes.
        cond: None, class ids (B,) or token ids (B, L), in a tensor, an array or lists.
        arguments: those of `sample_stream`.

    Raises:
        ValueError: for settings out of range, shapes that do not fit, or guidance of a model without null condition;
            `NonFiniteError`, one of these, where the model's numbers are not finite.
    """
    for partial in sample_stream(model, tokenizer, cond, **arguments):
        codes_BHWD = partial.codes
    return codes_BHWD


def check_codes(codes_BHWD: Tensor, model: RQTransformer, tokenizer: ImageTokenizer | None) -> Tensor:
    """Codes of `sample(..., checked=False)` as they are.

    Raises:
        NonFiniteError: naming what is not finite, for codes that could not be drawn.
    """
    return check_drawn(codes_BHWD, model, _named_books(model, tokenizer))


def _named_books(model: RQTransformer, tokenizer: ImageTokenizer | None) -> Iterator[tuple[str, Tensor]]:
    """A generator: a tokenizer may compute its code vectors, and only a draw that failed asks for them."""
    for depth, book in enumerate(code_vectors(model, tokenizer)):
        yield f"codebook of depth {depth}", book


def sample_stream(
    model: RQTransformer,
    tokenizer: ImageTokenizer | None,
    cond: Any = None,
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
    allowed: Allowed | None = None,
    amp_dtype: torch.dtype | None = None,
    weights: str = "dense",
    graphs: bool | None = None,
    rows: int | None = None,
    checked: bool = True,
    **more_rules: Any,
) -> Iterator[PartialCodes]:
    """`sample`, position by position: yields what is given, then once per position, for previews.

    Nothing waits for the device before the last position, and nothing at all with `checked` off. The model is in
    decoding mode until the iterator ends or is closed.

    Args:
        model, tokenizer, cond: see `sample`.
        num_samples: B; needed only if neither `cond`, `prefix`, `known` nor `indices` says it.
        temperature, top_k, top_p: one value or one per depth; None switches a filter off.
        cfg_scale: classifier-free guidance: a number, one per position, or a schedule such as "linear:4"
            (`sampling_request.guidance_scales`); 1 or None is the plain model.
        seed: of all noise.
        start_index: global index of the first sample; the others follow.
        indices: global index of every sample, instead of `start_index`.
        prefix: codes (B, P, D) of the first P positions in raster order, or (B, h, W, D) of the first h rows of a code
            map, kept as they are.
        known: (mask, codes (B, H, W, D)): codes where the mask is True are kept, the others drawn in raster order, each
            given all codes before it. The mask is (H, W), (B, H, W) or (B, H, W, D).
        allowed: a function that is shown all codes so far, (B, N) in the order of the draws, and answers which may come
            next: a bool mask (V,) or (B, V). The rules of the draw see the others at -inf, under guidance too; codes
            of `prefix` and `known` are kept whatever it says. It is called once per code, so codes are then drawn one
            by one (neither as one compiled call nor as a recorded graph).
        amp_dtype: type of products and caches, for example torch.bfloat16; the residual stream keeps its own.
        weights: dense, or int8 (`packing.WeightFormat`).
        graphs: decode in fixed buffers and replay each position as one CUDA graph, both kept with the model for the
            next call (`decode_program`); None does so on a GPU. A model or a request that is not known as a whole
            (`served_model`) decodes without.
        rows: samples of a full batch, if this is the last and smaller one of several: with graphs it is filled up, and
            nothing is recorded anew.
        checked: look at the end whether all codes could be drawn; off: the caller does with `check_codes`, later.
        more_rules: further fields of `DrawSettings`, one value or one per depth.

    Raises:
        ValueError: see `sample`.
        NonFiniteError: instead of the last step, where the model's numbers are not finite; a plain ValueError where
            `allowed` left no code to draw.
    """
    request = check_request(
        model,
        tokenizer,
        cond,
        num_samples=num_samples,
        draw={"temperature": temperature, "top_k": top_k, "top_p": top_p, **more_rules},
        cfg_scale=cfg_scale,
        start_index=start_index,
        indices=indices,
        prefix=prefix,
        known=known,
        allowed=allowed,
    )
    seed, rows = whole_number("seed", seed), 0 if rows is None else whole_number("rows", rows, 0)
    if amp_dtype is not None and not (isinstance(amp_dtype, torch.dtype) and amp_dtype.is_floating_point):
        raise ValueError(f"amp_dtype={shown(amp_dtype)} must be None or torch.float32, torch.bfloat16 or torch.float16")
    if graphs is not None:
        check_flag("graphs", graphs)
    device = model.pos_emb_hw.device
    # Made here, outside of inference mode, so that a caller may train on what is drawn.
    codes_BTD = torch.zeros(request.batch_size, model.num_positions, model.depth, dtype=torch.long, device=device)
    given = request.prefix_BPD.shape[1]
    codes_BTD[:, :given] = request.prefix_BPD
    codes_BHWD = codes_BTD.unflatten(1, model.config.block_size[:2])
    yield PartialCodes(given, codes_BHWD)
    if given < model.num_positions:
        code_filter = CodeFilter.of(request.allowed, request.batch_size, device)
        walk = _Walk(model, tokenizer, request, seed, amp_dtype, weights, code_filter)
        fixed = device.type == "cuda" if graphs is None else graphs
        with model.decoding_mode(amp_dtype, weights):
            # kernels on fixed buffers read the position from the device: only known modules do so everywhere
            if fixed and request.allowed is None and knows_model(model) and knows_request(request):
                positions = _draw_in_fixed_buffers(walk, codes_BTD, rows)
            else:
                positions = _draw_plainly(walk, codes_BTD)
            with contextlib.closing(positions):
                for position in positions:
                    if checked and position == model.num_positions:
                        if walk.code_filter is not None:
                            walk.code_filter.check()
                        check_codes(codes_BHWD, model, tokenizer)
                    yield PartialCodes(position, codes_BHWD)


@dataclass(frozen=True)
class _Walk:
    """One walk through a model that others may decode with too; see `sample_stream`."""

    model: RQTransformer
    tokenizer: ImageTokenizer | None
    request: SamplingRequest
    seed: int
    amp_dtype: torch.dtype | None
    weights: str
    code_filter: CodeFilter | None

    @property
    def cache_dtype(self) -> torch.dtype:
        return self.amp_dtype or self.model.pos_emb_hw.dtype

    def use_weights(self) -> None:
        self.model.use_weights(self.amp_dtype, self.weights)


@torch.inference_mode()
def _draw_plainly(walk: _Walk, codes_BTD: Tensor) -> Generator[int, None, None]:
    """Draws the positions after the prefix into `codes_BTD`; yields how many are finished."""
    model, request = walk.model, walk.request
    decoder = Decoder(model, walk.tokenizer, request.cond_BL, request.body_prefix_BPD, walk.cache_dtype)
    inputs = DrawInputs.of(request, walk.seed, model.num_positions)
    compiled = decoder.compiled_position(request)
    step = PositionStep(decoder, request.settings, inputs, codes_BTD, compiled, walk.code_filter)
    for finished in range(request.prefix_BPD.shape[1] + 1, model.num_positions + 1):
        walk.use_weights()
        step()
        yield finished


@torch.inference_mode()
def _draw_in_fixed_buffers(walk: _Walk, codes_BTD: Tensor, rows: int) -> Generator[int, None, None]:
    """The same with a program that is kept for the next walk; see `decode_program`."""
    model, batch_size = walk.model, walk.request.batch_size
    request, books = filled_up(walk.request, rows), code_vectors(model, walk.tokenizer)
    given = request.prefix_BPD.shape[1]
    inputs = DrawInputs.of(request, walk.seed, model.num_positions)  # copied to the device beside what still runs aside
    program = borrow_program(model, books, request, inputs, walk.cache_dtype)
    intact = False
    try:
        for position in range(given, model.num_positions):
            intact = False
            walk.use_weights()
            with program.recorder.aside():
                if position == given:
                    program.start(request, inputs, books)
                else:
                    program.draw_next()
                codes_BTD[:, position] = program.codes_BTD[:batch_size, position]
            intact = True  # also for a caller who wants no more
            yield position + 1
    finally:
        if intact:
            model.decoding.give_back(program)


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
    batch_size, start_index = whole_number("batch_size", batch_size, 1), whole_number("start_index", start_index)
    if isinstance(indices, Sized) and isinstance(conditions, Sized) and len(indices) != len(conditions):
        raise ValueError(f"{len(indices)} indices do not fit {len(conditions)} conditions")
    numbered = zip(itertools.count(start_index) if indices is None else indices, conditions)
    rows = 0
    while batch := list(itertools.islice(numbered, batch_size)):
        rows = max(rows, len(batch))
        index = [int(i) for i, _ in batch]
        cond = None
        if batch[0][1] is not None:
            cond = _together([entry for _, entry in batch])
        codes_BHWD = sample(model, tokenizer, cond, num_samples=len(batch), indices=index, rows=rows, **settings)
        yield SampledBatch(codes_BHWD, cond, index)


def _together(conditions: Sequence[Any]) -> Tensor:
    """One entry per sample -> ids (B,) or (B, L)."""
    try:
        return torch.stack([torch.as_tensor(condition) for condition in conditions])
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"conditions {shown(conditions)} must be class ids, or token ids of one length") from None
