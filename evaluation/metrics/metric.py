"""What every metric is: it takes in batches after the feature network, sums over ranks, and gives named values.

Axes: B batch, C channels, H W image, F features, Y classes, N images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evaluation.statistics import Reduce

NO_ROWS = torch.zeros(0, 0)


@dataclass(frozen=True)
class ScoredBatch:
    """One batch after the feature network.

    Attributes:
        image_BCHW: uint8.
        index_B: the images' global numbers.
        features_BF, logits_BY, spatial_BF: of the feature network; no columns where there is no network, or it has
            none.
        label_B: the class that each image was asked for, if the batch has one.
        caption_B: the number of its caption, likewise.
        original_BCHW: uint8, what it is a reconstruction of, likewise.
    """

    image_BCHW: Tensor
    index_B: Tensor
    features_BF: Tensor = NO_ROWS
    logits_BY: Tensor = NO_ROWS
    spatial_BF: Tensor = NO_ROWS
    label_B: Tensor | None = None
    caption_B: Tensor | None = None
    original_BCHW: Tensor | None = None


class WholeSet(NamedTuple):
    """Every image's features, float32 (N, F) on the CPU, and class, int64 (N,), -1 where it came without one."""

    features_NF: Tensor
    label_N: Tensor


class Network(Protocol):
    """What a result line says of a network."""

    name: str
    resize: str
    dim: int
    num_classes: int
    fingerprint: str


@dataclass(frozen=True)
class MetricResult:
    """What a metric found.

    Attributes:
        values: full metric name -> value.
        warnings: what makes the values less than they seem.
        facts: further entries of the result line.
        networks: its name in the result line -> network that the metric brings along.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    networks: Mapping[str, Network] = field(default_factory=dict)


class Metric(ABC):
    """A metric of one set of images.

    Attributes:
        needs_network: its batches must carry features.
        needs_spatial: they must carry spatial features too.
        needs_whole_set: `result` looks at the features of all images, not only at what `update` saw.
    """

    needs_network = True
    needs_spatial = False
    needs_whole_set = False

    def reference_sizes(self) -> Mapping[str, int]:
        """Images behind every reference by name, 0 where that is not known."""
        return {}

    def update(self, batch: ScoredBatch) -> None:
        """Takes in a batch of this rank."""
        return

    def all_reduce(self, reduce: Reduce) -> None:
        """Sums over ranks; called once, on every rank, after the last update."""
        return

    @abstractmethod
    def result(self, whole: WholeSet) -> MetricResult:
        """The values, the same on every rank. `whole` is empty unless `needs_whole_set`."""
