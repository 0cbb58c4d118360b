"""The features of exactly N images, in the order of their global index: what scores over whole sets are taken on.

Memory grows with N (4 bytes x N x F, on every rank), so a bank is made only for the scores that need one.
Axes: N images, F features, B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.statistics import Reduce

_ROWS_PER_REDUCTION = 8192


class FeatureBank(Metric):
    """A metric without values of its own: the features of all images, float32 on the CPU.

    Row i belongs to the image of global index i, whichever rank or batch it came by.

    Args:
        dim: number of features F.
        num_images: N over all ranks.
        device: where blocks of rows go to be summed over ranks.

    Attributes:
        features_NF: the features; complete on every rank after `all_reduce`.
        label_N: int64 classes, -1 where an image came without one.
    """

    def __init__(self, dim: int, num_images: int, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.features_NF = torch.zeros(num_images, dim)
        self._label_plus_one_N = torch.zeros(num_images, dtype=torch.int64)

    @property
    def label_N(self) -> Tensor:
        return self._label_plus_one_N - 1

    def update(self, batch: ScoredBatch) -> None:
        self.store(batch.features_BF, batch.index_B, batch.label_B)

    def store(self, features_BF: Tensor, index_B: Tensor, label_B: Tensor | None = None) -> None:
        """Stores the rows of a batch.

        Raises:
            ValueError: the batch is not (B, F), or an index is outside 0..N-1.
        """
        num_images, dim = self.features_NF.shape
        if features_BF.shape != (len(index_B), dim):
            raise ValueError(f"features must be ({len(index_B)}, {dim}), got {tuple(features_BF.shape)}")
        index_B = index_B.cpu()
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < num_images:
            raise ValueError(f"indices must be in 0..{num_images - 1}, got {index_B.min()}..{index_B.max()}")
        self.features_NF[index_B] = features_BF.detach().to("cpu", torch.float32)
        if label_B is not None:
            self._label_plus_one_N[index_B] = label_B.detach().cpu().long() + 1

    def all_reduce(self, reduce: Reduce) -> None:
        """Gathers the rows of all ranks on every rank, exactly (a row is zero on all ranks but one), in blocks."""
        for rows in (*self.features_NF.split(_ROWS_PER_REDUCTION), self._label_plus_one_N):
            shared = rows.to(self.device)
            reduce(shared)
            rows.copy_(shared)

    def whole_set(self) -> WholeSet:
        """What metrics over whole sets are taken on."""
        return WholeSet(self.features_NF, self.label_N)

    def result(self, whole: WholeSet) -> MetricResult:
        return MetricResult()
