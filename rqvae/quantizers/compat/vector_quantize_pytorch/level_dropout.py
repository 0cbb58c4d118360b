"""Which levels quantize dropout keeps, as vector-quantize-pytorch draws it."""

from __future__ import annotations

import math
import random

import torch

from rqvae.quantizers import sync

NUM_SEEDS = 10_000


def draw_seed(device: torch.device) -> int:
    """A seed from the global generator, the same on all processes."""
    seed = torch.randint(0, NUM_SEEDS, (), device=device)
    sync.all_reduce_sum(seed)
    return int(seed)


def last_level_kept(num_levels: int, cutoff: int = 0, multiple_of: int = 1, seed: int = 0) -> int:
    """Index of the last level that quantizes: uniform in cutoff .. num_levels - 1, the number of levels rounded up to a
    multiple (which may name a level that does not exist: all are kept then)."""
    last = random.Random(seed).randrange(cutoff, num_levels)
    return math.ceil((last + 1) / multiple_of) * multiple_of - 1
