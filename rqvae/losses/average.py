"""Averages of loss terms over a pass through a data set."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic import sync


class TermAverage:
    """Means of named per-sample scalars over batches of different sizes, on any number of ranks.

    Sums are float64 and stay on the device of the values: `update` never waits for it.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def update(self, terms: Mapping[str, Tensor], num_samples: int) -> None:
        """Adds batch means `terms`, each weighted with the batch's number of samples."""
        for name, value in terms.items():
            weighted = value.detach().double() * num_samples
            self.sums[name] = self.sums[name] + weighted if name in self.sums else weighted
        self.count += num_samples

    def mean(self) -> dict[str, Tensor]:
        """name -> mean over the samples of all ranks (every rank must have the same names and call this together)."""
        if not self.sums:
            return {}
        values = [*self.sums.values()]
        packed = torch.stack([*values, values[0].new_tensor(float(self.count))])
        sync.all_reduce_sum(packed)
        return dict(zip(self.sums, packed[:-1] / packed[-1].clamp_min(1.0), strict=True))
