"""Counter-based randomness for numpy: every draw is a pure function of integers (`rqstack.counter_noise`).

Nothing here touches a global generator, so a draw does not depend on workers, ranks, batch sizes or what was drawn
before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rqstack.counter_noise import mix, signed

Key = int | NDArray[np.int64]


def hash_keys(*keys: Key) -> NDArray[np.uint64]:
    """Hash integer keys (broadcast against each other, order matters) to uniform uint64 values."""
    state = np.zeros((), dtype=np.int64)
    with np.errstate(over="ignore"):  # wrap-around is the arithmetic meant here
        for key in keys:
            state = mix(state ^ _as_int64(key))
    return state.view(np.uint64)


def uniforms(count: int, *keys: Key) -> NDArray[np.float64]:
    """`count` float64 draws in [0, 1) per key: shape (*broadcast shape of the keys, count)."""
    base = hash_keys(*keys)
    bits = hash_keys(base[..., None].view(np.int64), np.arange(count))
    return (bits >> np.uint64(11)) * 2.0**-53


def permutation(num_samples: int, *keys: int) -> NDArray[np.int64]:
    """A permutation of range(num_samples) (int64) that depends on the keys only."""
    return np.argsort(hash_keys(*keys, np.arange(num_samples)), kind="stable")


def _as_int64(key: Key) -> NDArray[np.int64]:
    return np.asarray(signed(key) if isinstance(key, int) else key, dtype=np.int64)
