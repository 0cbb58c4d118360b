"""Keys and values of the positions a stack has already seen: allocated once, written in place.

Legend: B batch, A attention heads, L sequence length, F features per attention head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """A preallocated cache for one stack of transformer blocks.

    `length` is a Python number, so neither writing nor reading waits for the device. Setting it to 0 (`reset`) starts
    a new sequence in the same memory.

    Args:
        num_layers: blocks of the stack.
        batch_size, num_heads, max_length, head_dim: shape of one layer's keys.
        dtype, device: of keys and values.
    """

    def __init__(self, num_layers: int, batch_size: int, num_heads: int, max_length: int, head_dim: int, *,
                 dtype: torch.dtype, device: torch.device | str):
        shape = (2, num_layers, batch_size, num_heads, max_length, head_dim)
        keys, values = torch.zeros(shape, dtype=dtype, device=device)
        self._keys, self._values = keys.unbind(0), values.unbind(0)
        self.max_length = max_length
        self.length = 0

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        self.length = 0

    def write(self, layer: int, key_BALF: Tensor, value_BALF: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new positions to one layer and returns all of that layer's so far.

        `length` does not move: the stack calls `advance` once all layers have written.
        """
        end = self.length + key_BALF.shape[2]
        assert end <= self.max_length, f"cache of {self.max_length} positions cannot take {end}"
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self.length : end] = key_BALF
        values[:, :, self.length : end] = value_BALF
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, num_positions: int) -> None:
        """Makes the positions just written by all layers part of the past."""
        self.length += num_positions
