"""From logits to a code: guidance, temperature, top-k, top-p and a draw that depends on nothing but its own address.

Legend: B batch, T positions, D code depth, V vocabulary; `...` any leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.counter_noise import uniform_noise


def filter_top_k(logits: Tensor, k: int | None) -> Tensor:
    """Logits (..., V) with everything below the k-th largest set to -inf; ties at the k-th largest all stay.

    Raises:
        ValueError: if k is below 1.
    """
    if k is None:
        return logits
    if k < 1:
        raise ValueError(f"top_k={k} must be at least 1, or None for all codes")
    if k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    return logits.masked_fill(logits < threshold, float("-inf"))


def filter_top_p(probs: Tensor, p: float | None) -> Tensor:
    """Probabilities (..., V) cut to the smallest set of most likely codes that reaches p, renormalised.

    The code that crosses p stays (nucleus sampling, Holtzman et al. 2020). Which of several equally likely codes cross
    it is unspecified, as with the published sampler.

    Raises:
        ValueError: if p is not above 0 and at most 1.
    """
    if p is None or p == 1.0:
        return probs
    if not 0.0 < p < 1.0:
        raise ValueError(f"top_p={p} must be above 0 and at most 1, or None for all codes")
    ordered, order = probs.sort(dim=-1, descending=True)
    # The sum before each code is the sum up to its neighbour, not the sum without itself: only then does a sum of
    # exactly p close the set, whatever the subtraction would round to.
    before = F.pad(ordered.cumsum(dim=-1)[..., :-1], (1, 0))
    kept = torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill(before >= p, 0.0))
    return kept / kept.sum(dim=-1, keepdim=True)


def guide(cond_logits: Tensor, uncond_logits: Tensor, scale: Tensor | float) -> Tensor:
    """Classifier-free guidance: scale 0 ignores the condition, 1 is the model itself, above 1 exaggerates it."""
    return uncond_logits + scale * (cond_logits - uncond_logits)


class DrawSettings(NamedTuple):
    """How one code is drawn; `sampling_probs` says what each setting does.

    A rule that is added is a field that is added: the fast draws compare the fields with those they know.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


def sampling_probs(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits (..., V) -> the fp32 distribution that is drawn from: temperature, top-k, softmax, top-p, in this order.

    Raises:
        ValueError: for a temperature that is not above 0, or a k or p out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0 (top_k=1 decodes greedily)")
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    return filter_top_p(filter_top_k(logits, top_k).softmax(dim=-1), top_p)


def draw(probs_BV: Tensor, seed: int, sample_index_B: Tensor, position: int, depth: int) -> Tensor:
    """One code per row (B,), a function of (probabilities, seed, sample index, position, depth) only."""
    uniform_B = uniform_noise(seed, sample_index_B, [(position, depth)])[0]
    return invert_cdf(probs_BV, uniform_B)


def invert_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The code (B,) at which the cumulated probability first exceeds `uniform`; codes of probability 0 never come."""
    # A parallel sum rounds neighbours differently, so a code of probability 0 may seem to add something: hide those.
    cumulated_BV = probs_BV.cumsum(dim=-1).masked_fill_(probs_BV == 0, 0.0)
    total_B = cumulated_BV.amax(dim=-1)
    # Rounding must not push the value up to the total, which no entry exceeds.
    largest_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    value_B = torch.minimum((uniform_B * total_B).to(total_B.dtype), largest_B)
    return (cumulated_BV > value_B.unsqueeze(1)).to(torch.uint8).argmax(dim=-1)
