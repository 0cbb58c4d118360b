"""Randomness that is derived, not stored: every draw belongs to named keys such as (seed, rank, step)."""

from __future__ import annotations

import hashlib
import operator
import random

import numpy as np
import torch

_SEED_BITS = 63


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed that depends on every key, their types and their order; the same on every machine and version."""
    text = "\x1f".join(_canonical(key) for key in keys)
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") & ((1 << _SEED_BITS) - 1)


def seed_everything_for_step(seed: int, rank: int, step: int) -> None:
    """Seed Python, NumPy and torch (all devices) for one step of one rank.

    Called at the start of every step, so that a resumed run draws what the uninterrupted one would have drawn.
    """
    derived = derive_seed("step", seed, rank, step)
    random.seed(derived)
    np.random.seed(derived & 0xFFFFFFFF)
    torch.manual_seed(derived)


def generator(device: torch.device | str, *keys: int | str) -> torch.Generator:
    """A torch generator on `device` seeded from `keys`; it shares no state with any other."""
    return torch.Generator(device=device).manual_seed(derive_seed(*keys))


def _canonical(key: int | str) -> str:
    if isinstance(key, str):
        return f"s{len(key)}:{key}"
    return f"i:{operator.index(key)}"
