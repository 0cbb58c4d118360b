"""Codes -> pixels in batches that fit a memory budget.

Legend: B batch, H W grid, D code depth; C H W in BCHW: image channels, height, width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rqtransformer.embedding import ImageTokenizer

DEFAULT_BUDGET = 2 * 2**30
# What one operation reads and writes is not all that is alive: skip connections, workspaces.
SAFETY = 2


def decode_in_batches(tokenizer: ImageTokenizer, codes_BHWD: Tensor, *, memory_budget: int = DEFAULT_BUDGET,
                      batch_size: int | None = None) -> Iterator[Tensor]:
    """Codes -> images in [-1, 1], some at a time, in order.

    Args:
        tokenizer: gives `decode_code`.
        codes_BHWD: any number of code maps.
        memory_budget: bytes that the activations of one batch may take; at least one image is decoded at a time.
        batch_size: images at a time, instead of the budget.

    Raises:
        ValueError: if the budget or the batch size is below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    if memory_budget < 1:
        raise ValueError(f"memory_budget={memory_budget} must be at least 1 byte")
    return _decode(tokenizer, codes_BHWD, memory_budget, batch_size)


@torch.no_grad()
def _decode(tokenizer: ImageTokenizer, codes_BHWD: Tensor, memory_budget: int,
            batch_size: int | None) -> Iterator[Tensor]:
    start = 0
    if batch_size is None and len(codes_BHWD):
        first_1HWD = codes_BHWD[:1]
        with _LargestOperation() as largest:
            first_1CHW = tokenizer.decode_code(first_1HWD)
        yield first_1CHW
        batch_size = max(1, memory_budget // max(1, SAFETY * largest.bytes))
        start = 1
    for part in codes_BHWD[start:].split(batch_size or 1):
        if len(part):
            yield tokenizer.decode_code(part)


class _LargestOperation(TorchDispatchMode):
    """Remembers the most bytes that one operation's tensors took, weights included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)}
        self.bytes = max(self.bytes, sum(tensor.nbytes for tensor in tensors.values()))
        return out
