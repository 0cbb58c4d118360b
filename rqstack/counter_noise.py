"""Noise as a function of its address: integers are hashed, no generator is asked.

A draw depends on nothing but the integers that name it: not on workers, ranks, batches, devices or what was drawn
before. The mix is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), the same on every platform.

The hashes take int64, as torch tensors or numpy arrays of any shape, whose sums and products wrap around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor


class Int64(Protocol):
    """int64 in torch or numpy: what the hashes do with it."""

    def __add__(self, other: int, /) -> Any: ...

    def __xor__(self, other: Any, /) -> Any: ...

    def __rshift__(self, other: int, /) -> Any: ...


Integers = TypeVar("Integers", bound=Int64)
INT64_MAX = 2**63 - 1


def signed(value: int) -> int:
    """A number as int64 keeps it: modulo 2**64, the upper half below zero."""
    value %= 2**64
    return value - 2**64 if value > INT64_MAX else value


_INCREMENT, _FACTOR_1, _FACTOR_2 = map(signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def finalize(value: Integers) -> Integers:
    """The last steps of SplitMix64: a bijection that spreads neighbours over all 64 bits."""
    value = (value ^ shift_right(value, 30)) * _FACTOR_1
    value = (value ^ shift_right(value, 27)) * _FACTOR_2
    return value ^ shift_right(value, 31)


def mix(value: Integers) -> Integers:
    """SplitMix64 after the state `value`."""
    return finalize(value + _INCREMENT)


def shift_right(value: Integers, bits: int) -> Integers:
    """Shift that fills with zeros; that of int64 repeats the sign bit."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def hash_int64(value: Tensor) -> Tensor:
    """int64 values -> their hash, spread evenly over 0 .. 2**63 - 1."""
    return finalize(value) & INT64_MAX


def hash_uniform(value: Tensor) -> Tensor:
    """int64 values -> reproducible numbers in [-1, 1), fp32."""
    return (hash_int64(value) >> 39).float() / 2**23 - 1


def uniform_noise(seed: int, sample_index_B: Tensor, addresses: Sequence[tuple[int, int]]) -> Tensor:
    """Independent uniform numbers in [0, 1), fp64, one row per (position, depth) and one column per sample (index)."""
    position_A, depth_A = torch.tensor(addresses, dtype=torch.int64, device="cpu").unbind(1)
    key_A = mix(mix(mix(torch.tensor(signed(seed), device="cpu")) ^ position_A) ^ depth_A)
    key_A1 = key_A.to(sample_index_B.device, non_blocking=True).unsqueeze(1)
    bits_AB = mix(mix(sample_index_B.to(torch.int64)).unsqueeze(0) ^ key_A1)
    return shift_right(bits_AB, 11).double() * 2.0**-53
