"""Mean and covariance of a stream of feature vectors, in float64, in memory that does not grow with the stream.

Axes: N vectors, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Reduce = Callable[[Tensor], object]
"""Sums a tensor over all ranks, in place."""


def no_reduce(tensor: Tensor) -> None:
    """The reduction of a single process: nothing to add."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a set of images: this one's place among them, and how sums go over all.

    Args:
        reduce: sums a tensor over all ranks, in place.
        device: where it can see tensors.
    """

    reduce: Reduce = no_reduce
    rank: int = 0
    world_size: int = 1
    device: torch.device | str = "cpu"


ALONE = Ranks()


class Gaussian(NamedTuple):
    """First two moments of `num` feature vectors: mean (F,), covariance (F, F) with divisor num - 1; both float64."""

    mean_F: Tensor
    covariance_FF: Tensor
    num: int


class StreamingStatistics:
    """Count, mean and scatter matrix of feature vectors that arrive in batches.

    Batches are merged by the parallel update of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm
    for computing sample variances", 1979): the scatter is always about the current mean, so nothing cancels, and the
    result depends on batch sizes and ranks by rounding only.

    Args:
        dim: number of features F.
        device: where the sums live (float64; must be where the reduction over ranks can see them).
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.dim = dim
        self.count = 0
        self.mean_F = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter_FF = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features_NF: Tensor) -> StreamingStatistics:
        """Adds the rows of a batch (any float type, any N including 0).

        Raises:
            ValueError: the batch is not (N, dim).
        """
        if features_NF.dim() != 2 or features_NF.shape[1] != self.dim:
            raise ValueError(f"features must be (N, {self.dim}), got {tuple(features_NF.shape)}")
        if len(features_NF):
            features_NF = features_NF.detach().to(self.mean_F)
            batch_mean_F = features_NF.mean(0)
            centred_NF = features_NF - batch_mean_F
            self._shift_in(len(features_NF), batch_mean_F)
            self.scatter_FF.addmm_(centred_NF.T, centred_NF)
        return self

    def merge(self, other: StreamingStatistics) -> StreamingStatistics:
        """Adds everything `other` has seen."""
        if other.dim != self.dim:
            raise ValueError(f"cannot merge statistics of {other.dim} features into {self.dim}")
        if other.count:
            self._shift_in(other.count, other.mean_F.to(self.mean_F))
            self.scatter_FF.add_(other.scatter_FF.to(self.mean_F))
        return self

    def _shift_in(self, count: int, mean_F: Tensor) -> None:
        """Moves the mean for `count` new vectors with mean `mean_F`; their own scatter is added by the caller."""
        total = self.count + count
        delta_F = mean_F - self.mean_F
        self.scatter_FF.addr_(delta_F, delta_F, alpha=self.count * count / total)
        self.mean_F.add_(delta_F, alpha=count / total)
        self.count = total

    def tensors(self, centre_F: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Sum form about `centre_F` (default zero): count (1,), sum (F,), sum of outer products (F, F) of x - centre.

        Additive over ranks that share the centre. Loses digits when the centre is far from the mean: see `all_reduce`.
        """
        delta_F = self.mean_F if centre_F is None else self.mean_F - centre_F
        count = self.mean_F.new_tensor([self.count])
        return count, delta_F * self.count, torch.addr(self.scatter_FF, delta_F, delta_F, alpha=self.count)

    @classmethod
    def from_tensors(
        cls, count: Tensor, sum_F: Tensor, outer_FF: Tensor, centre_F: Tensor | None = None
    ) -> StreamingStatistics:
        """Statistics from (summed) `tensors` about the same centre."""
        self = cls(len(sum_F), sum_F.device)
        self.count = int(count.item())
        delta_F = sum_F / max(self.count, 1)
        self.mean_F = delta_F if centre_F is None else delta_F + centre_F
        self.scatter_FF = torch.addr(outer_FF, delta_F, delta_F, alpha=-self.count)
        return self

    def all_reduce(self, reduce: Reduce) -> StreamingStatistics:
        """Statistics over all ranks. Two sums: the means first, then the scatters about the joint mean (exact form)."""
        count, sum_F, _ = self.tensors()
        moments = torch.cat([count, sum_F])
        reduce(moments)
        joint_mean_F = moments[1:] / moments[0].clamp(min=1)
        _, _, outer_FF = self.tensors(joint_mean_F)
        reduce(outer_FF)
        return self.from_tensors(moments[:1], torch.zeros_like(sum_F), outer_FF, joint_mean_F)

    def gaussian(self) -> Gaussian:
        """Mean and covariance (divisor count - 1, exactly symmetric).

        Raises:
            ValueError: fewer than two vectors were seen.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        covariance_FF = self.scatter_FF / (self.count - 1)
        return Gaussian(self.mean_F.clone(), (covariance_FF + covariance_FF.T) / 2, self.count)


def statistics_of(batches: Iterable[Tensor], dim: int, device: torch.device | str = "cpu") -> StreamingStatistics:
    """Statistics of an iterable of feature batches (N, dim)."""
    statistics = StreamingStatistics(dim, device)
    for features_NF in batches:
        statistics.update(features_NF)
    return statistics
