"""Top-k and top-p without a full sort of the vocabulary: find the lowest logit that stays, then draw.

The rule is that of `logits.sampling_probs`: ties at the k-th largest logit all stay, and the code that crosses p stays.
Of several equally likely codes at the crossing the first ones stay.

Legend: B batch, V vocabulary, M largest logits looked at (more than k of them).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from rqstack.triton_kernels import trial_numbers, use_kernel
from rqtransformer import native
from rqtransformer.decoding.logits import guide, invert_cdf, sampling_probs
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.finite_draws import NOT_DRAWN

SMALLEST_BLOCK = 64
# exp(-104) is 0 in fp32: lower logits have no probability with any filter.
NEGLIGIBLE = 104.0
# The rules that the fast draws of this file and of `native` know; they apply them in the order of the table.
KNOWN_RULES = frozenset({"temperature", "top_k", "top_p"})


def is_known_draw(settings: DrawSettings) -> bool:
    """Whether the fast draws know every rule that is switched on."""
    return KNOWN_RULES.issuperset(settings.in_force())


def draw_truncated(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings, scale: Tensor | None = None) -> Tensor:
    """Logits -> codes (B,): `invert_cdf(sampling_probs(logits, settings), uniform)`, faster where it knows the rules.

    With rules that it knows it never waits for a device other than the CPU. With a guidance scale the logits are
    (2B, V), those with the condition first, and what is drawn from is their `guide`. `NOT_DRAWN` where the logits
    hold a NaN or +inf, or nothing but -inf.
    """
    if use_kernel(draw_trial, logits_BV.device):
        from rqtransformer.fast.kernels import draw_triton

        if draw_triton.serves(logits_BV, uniform_B, settings, scale):
            return draw_triton.draw(logits_BV, uniform_B, settings, scale)
    return _draw_plainly(logits_BV, uniform_B, settings, scale)


def draw_trial(device: torch.device) -> bool:
    """Whether the Triton kernel draws the codes of the plain form on this device."""
    from rqtransformer.fast.kernels import draw_triton

    uniform_B = (0.5 + 0.499 * trial_numbers(8, device=device, pace=0.37)).double()
    cases = [DrawSettings(1.0, None, None), DrawSettings(0.7, 40, None), DrawSettings(1.0, 300, 0.8)]
    for vocabulary in (300, 1000):
        logits_BV = 4 * trial_numbers(16, vocabulary, device=device)
        scale = torch.full((1,), 2.0, device=device)
        for settings in cases:
            for given, guidance in ((logits_BV[:8], None), (logits_BV, scale)):
                drawn_B = draw_triton.draw(given, uniform_B, settings, guidance)
                if not torch.equal(drawn_B, _draw_plainly(given, uniform_B, settings, guidance)):
                    return False
    return True


def _draw_plainly(logits_BV: Tensor, uniform_B: Tensor, settings: DrawSettings, scale: Tensor | None) -> Tensor:
    if scale is not None:
        conditional_BV, unconditional_BV = logits_BV.float().chunk(2)
        logits_BV = guide(conditional_BV, unconditional_BV, scale)
    if not is_known_draw(settings):
        return invert_cdf(sampling_probs(logits_BV, settings), uniform_B)
    scores_BV = logits_BV.float()
    if native.serves(scores_BV):
        return native.draw(scores_BV, uniform_B, settings)
    if settings.temperature != 1.0:
        scores_BV = scores_BV / settings.temperature
    top_k = None if settings.top_k is None or settings.top_k >= scores_BV.shape[1] else settings.top_k
    top_p = None if settings.top_p == 1.0 else settings.top_p
    if top_k is None and top_p is None:
        return _invert(scores_BV.softmax(dim=-1), uniform_B)
    if scores_BV.device.type != "cpu" or not _numpy_sorts():
        kept_BV = kept_codes(scores_BV, top_k, top_p)
        return _invert(scores_BV.masked_fill(~kept_BV, float("-inf")).softmax(dim=-1), uniform_B)
    return _invert(_probs_above_cut(scores_BV, top_k, top_p), uniform_B)


def kept_codes(scores_BV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Which codes (B, V) stay: the same kernels whatever the values, so it needs no look at them.

    All codes of a row with a NaN or +inf: what is drawn from must have it, too.
    """
    count = scores_BV.shape[1] if top_k is None else top_k
    best_BM = scores_BV.topk(count, dim=-1).values
    threshold_B1 = best_BM[:, -1:]
    broken_B1 = ~best_BM[:, :1].isfinite()  # a NaN comes first
    if top_p is None:
        return (scores_BV >= threshold_B1) | broken_B1
    weight_BM = (best_BM - best_BM[:, :1]).exp()
    cumulated_BM = weight_BM.cumsum(dim=-1)
    tied_B1 = (scores_BV >= threshold_B1).sum(dim=-1, keepdim=True) - count  # those topk had no room for
    last_B1 = weight_BM[:, -1:]
    limit_B1 = top_p * (cumulated_BM[:, -1:] + tied_B1 * last_B1)
    number_B1 = 1 + (cumulated_BM[:, :-1] < limit_B1).sum(dim=-1, keepdim=True)
    missing_B1 = ((limit_B1 - cumulated_BM[:, -1:]) / last_B1.clamp_min(torch.finfo(torch.float32).tiny)).ceil()
    missing_B1 = torch.minimum(missing_B1.clamp_min(0).long(), tied_B1)
    cut_B1 = best_BM.gather(1, number_B1 - 1)
    room_B1 = number_B1 + missing_B1 - (scores_BV > cut_B1).sum(dim=-1, keepdim=True)
    at_cut_BV = scores_BV == cut_B1
    return (scores_BV > cut_B1) | (at_cut_BV & (at_cut_BV.cumsum(dim=-1) <= room_B1)) | broken_B1


def _probs_above_cut(scores_BV: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """The truncated distribution from one threshold per row; rows with a tie at their threshold take the long way."""
    below_BM = _smallest(-scores_BV, scores_BV.shape[1] if top_k is None else top_k + 1)  # of the negative scores
    lowest_B1 = below_BM[:, :1]
    at_k_B2 = below_BM if top_k is None else below_BM[:, top_k - 1 : top_k + 1]
    if top_p is None:
        cut_B1, next_B1 = at_k_B2.unbind(1)
        cut_B1, tied_B1 = cut_B1.unsqueeze(1), (cut_B1 == next_B1).unsqueeze(1)
    else:
        kept_Bk = below_BM if top_k is None else below_BM[:, :top_k]
        cumulated_Bk = (lowest_B1 - kept_Bk).exp_().cumsum(dim=-1)
        last_B1 = torch.searchsorted(cumulated_Bk, top_p * cumulated_Bk[:, -1:])  # the code that crosses p
        last_B1 = last_B1.clamp_(max=kept_Bk.shape[1] - 1)  # beyond it where the sum is not finite
        cut_B1 = below_BM.gather(1, last_B1)
        tied_B1 = cut_B1 == below_BM.gather(1, last_B1.add_(1).clamp_(max=below_BM.shape[1] - 1))
        if top_k is not None:  # a tie at k changes the mass that p is a share of
            tied_B1 |= at_k_B2[:, :1] == at_k_B2[:, 1:]
    floor_B1 = torch.minimum(cut_B1, lowest_B1 + NEGLIGIBLE)
    # At or above the cut, as one pass each: x - cut is 0 only where x is the cut.
    probs_BV = torch.threshold_(scores_BV + floor_B1, -1e-45, float("-inf")).softmax(dim=-1)
    if tied_B1.any():
        rows = tied_B1.squeeze(1).nonzero().squeeze(1)
        kept_RV = kept_codes(scores_BV[rows], top_k, top_p)
        probs_BV[rows] = scores_BV[rows].masked_fill(~kept_RV, float("-inf")).softmax(dim=-1)
    return probs_BV


def _smallest(values_BV: Tensor, count: int) -> Tensor:
    """At least `count` smallest values of every row, rising; the values given are overwritten.

    Blocks are sorted on their own and merged two by two: of a rising and a falling sequence of equal length the smaller
    of each pair are the smallest half (Batcher, 1968). numpy sorts short rows with vector instructions, in place.
    """
    rows, block = values_BV.shape
    while block % 2 == 0 and block // 2 >= max(count, SMALLEST_BLOCK):
        block //= 2
    rising = values_BV.view(-1, block)
    rising.numpy().sort(axis=1)
    while len(rising) > rows:
        first, second = rising.view(-1, 2, block).unbind(1)
        rising = torch.minimum(first, second.flip(1))
        rising.numpy().sort(axis=1)
    return rising


@functools.cache
def _numpy_sorts() -> bool:
    try:
        torch.zeros(1).numpy()
    except RuntimeError:
        return False
    return True


def _invert(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """`invert_cdf`; on a CPU, whose sums run from first to last and never fall, by bisection."""
    if probs_BV.device.type != "cpu":
        return invert_cdf(probs_BV, uniform_B)
    cumulated_BV = probs_BV.cumsum(dim=-1)
    total_B = cumulated_BV[:, -1]
    largest_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    value_B = torch.minimum((uniform_B * total_B).to(total_B.dtype), largest_B)
    code_B = torch.searchsorted(cumulated_BV, value_B.unsqueeze(1), right=True).squeeze(1)
    return code_B.where(total_B > 0, NOT_DRAWN)
