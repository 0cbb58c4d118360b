"""Counter-based randomness: every draw is a pure function of integers.

Nothing here touches a global generator, so a draw does not depend on workers, ranks, batch sizes or what was drawn
before. The mixing function is the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), which has the same value on
every platform and in every version of NumPy.
"""

from __future__ import annotations

import numpy as np

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)


def hash_keys(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integer keys (broadcast against each other, order matters) to uniform uint64 values."""
    with np.errstate(over="ignore"):  # unsigned wrap-around is the arithmetic meant here
        state = np.zeros((), dtype=np.uint64)
        for key in keys:
            state = _mix((state ^ _as_uint64(key)) + _INCREMENT)
    return state


def uniforms(count: int, *keys: int | np.ndarray) -> np.ndarray:
    """`count` float64 draws in [0, 1) per key: shape (*broadcast shape of the keys, count)."""
    base = hash_keys(*keys)
    bits = hash_keys(base[..., None].view(np.int64), np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(num_samples: int, *keys: int) -> np.ndarray:
    """A permutation of range(num_samples) (int64) that depends on the keys only."""
    return np.argsort(hash_keys(*keys, np.arange(num_samples)), kind="stable")


def _as_uint64(key: int | np.ndarray) -> np.ndarray:
    if isinstance(key, int):
        key %= 1 << 64
        return np.asarray(key, dtype=np.uint64)
    return np.asarray(key, dtype=np.int64).view(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * _FACTOR_1
    x = (x ^ (x >> np.uint64(27))) * _FACTOR_2
    return x ^ (x >> np.uint64(31))
