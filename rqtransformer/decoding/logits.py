"""From logits to a code: guidance, the rules of the draw, and a draw that depends on nothing but its own address.

Legend: B batch, T positions, D code depth, V vocabulary; `...` any leading axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rqstack.counter_noise import uniform_noise
from rqtransformer.draw_settings import DrawSettings
from rqtransformer.finite_draws import NOT_DRAWN


def guide(cond_logits: Tensor, uncond_logits: Tensor, scale: Tensor | float) -> Tensor:
    """Classifier-free guidance: scale 0 ignores the condition, 1 is the model itself, above 1 exaggerates it."""
    return uncond_logits + scale * (cond_logits - uncond_logits)


def sampling_probs(logits: Tensor, settings: DrawSettings) -> Tensor:
    """Logits (..., V) -> the fp32 distribution that is drawn from, by all rules of the settings."""
    rules = settings.in_force().values()
    scores = logits.float()
    for rule, value in rules:
        if not rule.after_softmax:
            scores = rule.apply(scores, value)
    probs = scores.softmax(dim=-1)
    for rule, value in rules:
        if rule.after_softmax:
            probs = rule.apply(probs, value)
    return probs


def draw(probs_BV: Tensor, seed: int, sample_index_B: Tensor, position: int, depth: int) -> Tensor:
    """One code per row (B,), a function of (probabilities, seed, sample index, position, depth) only."""
    uniform_B = uniform_noise(seed, sample_index_B, [(position, depth)])[0]
    return invert_cdf(probs_BV, uniform_B)


def invert_cdf(probs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The code (B,) at which the cumulated probability first exceeds `uniform`; codes of probability 0 never come.

    `NOT_DRAWN` where the probabilities are not finite.
    """
    # A parallel sum rounds neighbours differently, so a code of probability 0 may seem to add something: hide those.
    cumulated_BV = probs_BV.cumsum(dim=-1).masked_fill_(probs_BV == 0, 0.0)
    total_B = cumulated_BV.amax(dim=-1)  # NaN where there is one
    # Rounding must not push the value up to the total, which no entry exceeds.
    largest_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    value_B = torch.minimum((uniform_B * total_B).to(total_B.dtype), largest_B)
    code_B = (cumulated_BV > value_B.unsqueeze(1)).to(torch.uint8).argmax(dim=-1)
    return code_B.where(total_B > 0, NOT_DRAWN)
