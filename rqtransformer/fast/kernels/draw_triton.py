"""From logits to a code in one GPU kernel: guidance, temperature, top-k, top-p and inversion, nothing sorted.

The rule is that of `decoding.truncation`, in the arithmetic of `native/draw.cpp`: weights are fp32, sums of them fp64.
Every cut is found by halving a range: of the scores at the cuts, of the code numbers at the inversion. What is asked
at each step is the sum of the weights that a condition keeps. The sum is always the same tree of additions, and
rounding keeps order, so keeping one weight more never lowers it: each search has exactly one answer, which no order of
threads changes, and a code without weight is never drawn.

What differs from the plain form are last bits: its weights come from another exponential (both are within a few
units in the last place) and its running sums are fp32. So a code can differ where the uniform number, or p, lies within
about 1e-6 of a boundary of the cumulated distribution. Top-k has no sums and is the same to the last tie. On a GPU the
plain form multiplies by 1 / temperature; here the division is rounded once, as on a CPU.

A row, a score and a weight per code, lives in the registers of one program, 16 codes per thread for V = 16384.
Longer rows spill to the cache; reading the row anew in each of about 80 passes would cost as much.

Legend: B batch, V vocabulary; v the codes of a row, padded to a power of two.
"""

from __future__ import annotations

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from rqtransformer.draw_settings import DrawSettings

KNOWN_RULES = frozenset({"temperature", "top_k", "top_p"})
KNOWN_TYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
MAX_VOCABULARY = 65536
SMALLEST_BLOCK = 128
CODES_PER_WARP = 512
MIN_WARPS, MAX_WARPS = 4, 32


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _mass(weight_v: tl.tensor, kept_v: tl.tensor) -> tl.tensor:
    return tl.sum(tl.where(kept_v, weight_v, 0.0).to(tl.float64), axis=0)


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _ordered(score: tl.tensor) -> tl.tensor:
    """An fp32 number as an integer (int64) of the same order."""
    bits = score.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _score_of(number: tl.tensor) -> tl.tensor:
    """The inverse of `_ordered`."""
    bits = number.to(tl.int32)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _draw_kernel(
    logits_ptr: tl.tensor,
    uniform_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    num_rows: tl.tensor,
    vocabulary: tl.tensor,
    row_stride: tl.tensor,
    temperature: tl.tensor,
    top_k: tl.tensor,
    top_p_bits: tl.tensor,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: the code of one row."""
    row = tl.program_id(0).to(tl.int64)
    code_v = tl.arange(0, BLOCK)
    inside_v = code_v < vocabulary
    score_v = tl.load(logits_ptr + row * row_stride + code_v, mask=inside_v, other=0.0).to(tl.float32)
    if GUIDED:
        free_v = tl.load(logits_ptr + (row + num_rows) * row_stride + code_v, mask=inside_v, other=0.0).to(tl.float32)
        score_v = free_v + tl.load(scale_ptr).to(tl.float32) * (score_v - free_v)
    if TEMPERED:
        score_v = tl.div_rn(score_v, temperature)
    broken = tl.max(((score_v != score_v) | (score_v == float("inf"))).to(tl.int32), axis=0)
    # The padding is in no set that a search looks at: what it asks about lies above the lowest score.
    lowest = _ordered(tl.min(tl.where(inside_v, score_v, float("inf")), axis=0))
    score_v = tl.where(inside_v, score_v, float("-inf"))
    largest = tl.max(score_v, axis=0)
    highest = _ordered(largest)

    if TOP_K:
        ceiling = highest
        while lowest < ceiling:
            middle = (lowest + ceiling + 1) >> 1
            at_least = tl.sum((score_v >= _score_of(middle)).to(tl.int32), axis=0)
            lowest = tl.where(at_least >= top_k, middle, lowest)
            ceiling = tl.where(at_least >= top_k, ceiling, middle - 1)
            ceiling = tl.where(at_least == top_k, lowest, ceiling)  # exactly these stay
    kept_v = score_v >= _score_of(lowest)
    weight_v = tl.exp(tl.where(kept_v, score_v - largest, float("-inf")))

    if TOP_P:
        limit = _mass(weight_v, kept_v) * top_p_bits.to(tl.float64, bitcast=True)
        cut, ceiling = lowest, highest
        while cut < ceiling:
            middle = (cut + ceiling + 1) >> 1
            reaches = _mass(weight_v, score_v >= _score_of(middle)) >= limit
            cut = tl.where(reaches, middle, cut)
            ceiling = tl.where(reaches, ceiling, middle - 1)
        above_v, at_cut_v = score_v > _score_of(cut), score_v == _score_of(cut)
        # Of the codes at the cut the first ones stay, as many as it takes.
        first = tl.min(tl.where(at_cut_v, code_v, BLOCK), axis=0)
        last = tl.max(tl.where(at_cut_v, code_v, 0), axis=0)
        while first < last:
            half = (first + last) >> 1
            reaches = _mass(weight_v, above_v | (at_cut_v & (code_v <= half))) >= limit
            last = tl.where(reaches, half, last)
            first = tl.where(reaches, first, half + 1)
        weight_v = tl.where(above_v | (at_cut_v & (code_v <= last)), weight_v, 0.0)

    # The first code at which the cumulated weight exceeds the uniform number's share of the total.
    total = _mass(weight_v, inside_v)
    limit = total * tl.load(uniform_ptr + row).to(tl.float64)
    first = tl.min(tl.where(weight_v > 0.0, code_v, BLOCK), axis=0)
    last = tl.max(tl.where(weight_v > 0.0, code_v, 0), axis=0)
    while first < last:
        half = (first + last) >> 1
        exceeds = _mass(weight_v, code_v <= half) > limit
        last = tl.where(exceeds, half, last)
        first = tl.where(exceeds, first, half + 1)
    code = tl.where((total > 0.0) & (broken == 0), last, -1)  # NOT_DRAWN
    tl.store(codes_ptr + row, code.to(tl.int64))


def warps(block: int) -> int:
    """Of a program."""
    return min(MAX_WARPS, max(MIN_WARPS, block // CODES_PER_WARP))


def serves(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings, scale: Tensor | None = None) -> bool:
    """Whether `draw` knows these arguments; where it runs is `use_kernel`'s to say."""
    tensors = (logits_BV, uniform_B) if scale is None else (logits_BV, uniform_B, scale)
    return (
        type(settings) is DrawSettings
        and KNOWN_RULES.issuperset(settings.in_force())
        and all(type(tensor) is Tensor and tensor.device == logits_BV.device for tensor in tensors)
        and logits_BV.dtype in KNOWN_TYPES
        and logits_BV.dim() == 2
        and 1 <= logits_BV.shape[1] <= MAX_VOCABULARY
        and (logits_BV.stride(1) == 1 or logits_BV.shape[1] == 1)
        and uniform_B.dtype in (torch.float32, torch.float64)
        and uniform_B.shape == (len(logits_BV) // (1 if scale is None else 2),)
        and uniform_B.is_contiguous()
        and (scale is None or (scale.dtype == torch.float32 and scale.numel() == 1 and len(logits_BV) % 2 == 0))
    )


def draw(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings, scale: Tensor | None = None) -> Tensor:
    """Logits -> codes (B,), int64, as `decoding.truncation.draw_truncated` draws them; never waits for the device.

    A row without a finite logit, or with one that is NaN or +inf, gets `NOT_DRAWN`.

    Args:
        logits_BV: fp32, bf16 or fp16; a row's entries are neighbours.
        uniform_B: in [0, 1), fp64 or fp32, one per code.
        settings: with no other rule in force than `KNOWN_RULES`.
        scale: of classifier-free guidance, one fp32 number on the device. The logits are then (2B, V): B rows with the
            condition, then B without; `decoding.logits.guide` of the two, in fp32, is drawn from.
    """
    vocabulary, rows = logits_BV.shape[1], len(uniform_B)
    codes_B = torch.empty(rows, dtype=torch.int64, device=logits_BV.device)
    if rows == 0:
        return codes_B
    block = max(SMALLEST_BLOCK, triton.next_power_of_2(vocabulary))
    top_k = vocabulary if settings.top_k is None else min(settings.top_k, vocabulary)
    top_p = 1.0 if settings.top_p is None else settings.top_p
    _draw_kernel[(rows,)](
        logits_BV,
        uniform_B,
        uniform_B if scale is None else scale,
        codes_B,
        rows,
        vocabulary,
        logits_BV.stride(0),
        settings.temperature,
        top_k,
        struct.unpack("q", struct.pack("d", top_p))[0],  # a number would be passed on as fp32
        GUIDED=scale is not None,
        TEMPERED=settings.temperature != 1.0,
        TOP_K=top_k < vocabulary,
        TOP_P=top_p < 1.0,
        BLOCK=block,
        num_warps=warps(block),
        enable_fp_fusion=False,  # guidance rounds its product, as the plain form does
    )
    return codes_B
