"""Keys and values of the positions a stack has already seen: allocated once, written in place.

Legend: B batch, A attention heads, L sequence length, F features per attention head; 2: keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KVCache:
    """A preallocated cache for one stack of transformer blocks.

    `length` is a Python number, so neither writing nor reading waits for the device. Setting it to 0 (`reset`) starts
    a new sequence in the same memory. With `on_device` the length also lives in a tensor, and single positions are
    written and masked by that tensor alone: every step is then the same sequence of kernels, as a graph needs it.

    Attributes:
        memory: all of it, (num_layers, 2, B, A, max_length, F).

    Args:
        num_layers: blocks of the stack.
        batch_size, num_heads, max_length, head_dim: shape of one layer's keys.
        dtype, device: of keys and values.
        on_device: keep the length of single steps in a tensor.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        on_device: bool = False,
    ):
        shape = (num_layers, 2, batch_size, num_heads, max_length, head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self._layers = self.memory.unbind(0)
        self.dtype, self.max_length = dtype, max_length
        self.length = 0
        self._views: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
        self.index = torch.zeros(1, dtype=torch.long, device=device) if on_device else None
        self._slots_L = torch.arange(max_length, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.memory.nbytes

    def reset(self) -> None:
        """Forgets all positions; the memory stays."""
        self.length = 0
        if self.index is not None:
            self.index.zero_()

    def clear(self) -> None:
        """`reset`, and zeros: a masked slot is multiplied by 0 all the same, which nothing infinite survives."""
        self.memory.zero_()
        self.reset()

    def write(self, layer: int, keys_values_2BALF: Tensor) -> tuple[Tensor, Tensor]:
        """Appends the keys and values of new positions to one layer and returns all of that layer's so far.

        `length` does not move: the stack calls `advance` once all layers have written.
        """
        new = keys_values_2BALF.shape[3]
        end = self.length + new
        assert end <= self.max_length, f"cache of {self.max_length} positions cannot take {end}"
        stored = self._layers[layer]
        if self.index is not None and new == 1:
            stored.index_copy_(3, self.index, keys_values_2BALF.to(stored.dtype))
            return stored[0], stored[1]
        stored.narrow(3, self.length, new).copy_(keys_values_2BALF)
        seen = stored.narrow(3, 0, end)
        return seen[0], seen[1]

    def views(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(Place of the next position (2, B, A, 1, F), keys and values up to and with it (B, A, L, F)), made once."""
        found = self._views.get((layer, self.length))
        if found is None:
            assert self.length < self.max_length, f"cache of {self.max_length} positions cannot take {self.length + 1}"
            stored = self._layers[layer]
            seen = stored.narrow(3, 0, self.length + 1)
            found = self._views[layer, self.length] = (stored.narrow(3, self.length, 1), seen[0], seen[1])
        return found

    def filled(self) -> Tensor:
        """How many positions there are, as a tensor (1,) on the device."""
        return self._slots_L.narrow(0, self.length, 1) if self.index is None else self.index

    def layer(self, number: int) -> Tensor:
        """All of one layer (2, B, A, max_length, F)."""
        return self._layers[number]

    def mask(self) -> Tensor | None:
        """Which of all `max_length` slots a single new position sees; None where `write` returns only those."""
        return None if self.index is None else (self._slots_L <= self.index).view(1, 1, 1, -1)

    def advance(self, num_positions: int) -> None:
        """Makes the positions just written by all layers part of the past."""
        self.length += num_positions
        if self.index is not None:
            self.index.add_(num_positions)
