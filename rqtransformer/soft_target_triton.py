"""The cross entropy of a chunk of rows in one GPU kernel: loss terms and the gradient of the logits.

`targets._chunk` says the same in a dozen passes over rows and vocabulary and judges it. Here every row of logits,
and of the scores whose softmax is the target, is read twice: for the sums (online softmax: Milakov and Gimelshein,
2018) and for the gradient. Sums are fp32.

Import it only where `rqstack.triton_kernels.use_kernel` says so: it needs Triton. It is tested in Triton's interpreter;
it was never run on a GPU.

Legend: N rows, n rows of a chunk, D code depth, V vocabulary, K codes that have a target, at most V; v entries of a
block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KNOWN_TYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
MAX_BLOCK = 4096
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _rows_kernel(
    logits_ptr: tl.tensor,
    scores_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    gradient_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    sums_ptr: tl.tensor,
    logits_stride: tl.tensor,
    scores_stride: tl.tensor,
    codes_stride: tl.tensor,
    gradient_stride: tl.tensor,
    num_rows: tl.tensor,
    vocabulary: tl.tensor,
    num_scores: tl.tensor,
    eps: tl.tensor,
    SOFT: tl.constexpr,
    GRADIENT: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program: one row. Strides are of rows."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * logits_stride
    scores_ptr += row * scores_stride
    code = tl.load(codes_ptr + row * codes_stride)
    lane_v = tl.arange(0, BLOCK)

    best, total = float("-inf"), 0.0
    score_best, score_total, expected = float("-inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        entry_v = start + lane_v
        logit_v = tl.load(logits_ptr + entry_v, mask=entry_v < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(best, tl.max(logit_v, axis=0))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(best - safe) + tl.sum(tl.exp(logit_v - safe), axis=0)
        best = higher
        if SOFT:
            has_score_v = entry_v < num_scores
            score_v = tl.load(scores_ptr + entry_v, mask=has_score_v, other=float("-inf")).to(tl.float32)
            score_higher = tl.maximum(score_best, tl.max(score_v, axis=0))
            score_safe = tl.where(score_higher == float("-inf"), 0.0, score_higher)
            shrink = tl.exp(score_best - score_safe)
            weight_v = tl.exp(score_v - score_safe)
            score_total = score_total * shrink + tl.sum(weight_v, axis=0)
            expected = expected * shrink + tl.sum(tl.where(has_score_v, weight_v * logit_v, 0.0), axis=0)
            score_best = score_higher

    log_norm = best + tl.log(total + eps)
    # a code that is none makes the loss infinite
    is_code = (code >= 0) & (code < vocabulary)
    code_logit = tl.load(logits_ptr + code, mask=is_code, other=float("-inf")).to(tl.float32)
    nll = log_norm - code_logit
    loss = nll
    if SOFT:
        loss = log_norm - expected / score_total
    tl.store(sums_ptr + row, loss)
    tl.store(sums_ptr + num_rows + row, nll)
    tl.store(sums_ptr + 2 * num_rows + row, tl.where(is_code & (code_logit >= best), 1.0, 0.0))

    if GRADIENT:
        gradient_ptr += row * gradient_stride
        for start in range(0, vocabulary, BLOCK):
            entry_v = start + lane_v
            inside_v = entry_v < vocabulary
            logit_v = tl.load(logits_ptr + entry_v, mask=inside_v, other=float("-inf")).to(tl.float32)
            slope_v = tl.exp(logit_v - log_norm)
            if SOFT:
                score_v = tl.load(scores_ptr + entry_v, mask=entry_v < num_scores, other=float("-inf")).to(tl.float32)
                slope_v -= tl.exp(score_v - score_best) / score_total
            else:
                slope_v -= tl.where(entry_v == code, 1.0, 0.0)
            if SCALED:
                slope_v *= tl.load(scale_ptr)
            tl.store(gradient_ptr + entry_v, slope_v.to(gradient_ptr.dtype.element_ty), mask=inside_v)


def serves(logits_NDV: Tensor, codes_ND: Tensor) -> bool:
    """Whether `cross_entropy_rows` knows chunks of these; where it runs is `use_kernel`'s to say."""
    return (
        type(logits_NDV) is type(codes_ND) is Tensor
        and logits_NDV.dim() == 3
        and logits_NDV.dtype in KNOWN_TYPES
        and logits_NDV.is_contiguous()
        and codes_ND.dtype == torch.int64
        and codes_ND.shape == logits_NDV.shape[:2]
        and codes_ND.device == logits_NDV.device
        and logits_NDV.numel() > 0
    )


def cross_entropy_rows(
    logits_nV: Tensor,
    codes_n: Tensor,
    scores_nK: Tensor | None,
    eps: float,
    gradient_nV: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Sums over the rows of loss, code NLL and hits: (3,), fp32.

    Args:
        logits_nV: entries of a row beside each other.
        codes_n: int64.
        scores_nK: the targets are their softmax; fp32, entries of a row beside each other. None: the codes.
        eps: inside the logarithm of the sum of exponentials.
        gradient_nV: is overwritten with (softmax - target) * scale, entries of a row beside each other.
        scale: a number on the device, fp32; 1 when left out.
    """
    num_rows, vocabulary = logits_nV.shape
    sums_3n = torch.empty(3, num_rows, device=logits_nV.device, dtype=torch.float32)
    scores, gradient = (sums_3n if tensor is None else tensor for tensor in (scores_nK, gradient_nV))
    _rows_kernel[(num_rows,)](
        logits_nV,
        scores,
        codes_n,
        gradient,
        sums_3n if scale is None else scale,
        sums_3n,
        logits_nV.stride(0),
        scores.stride(0),
        codes_n.stride(0),
        gradient.stride(0),
        num_rows,
        vocabulary,
        0 if scores_nK is None else scores_nK.shape[1],
        eps,
        SOFT=scores_nK is not None,
        GRADIENT=gradient_nV is not None,
        SCALED=scale is not None,
        BLOCK=min(MAX_BLOCK, triton.next_power_of_2(vocabulary)),
        num_warps=NUM_WARPS,
    )
    return sums_3n.sum(dim=1)
