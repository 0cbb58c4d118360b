"""Nearest training images of samples: does a generator write what it was shown?

Distances are Euclidean, in feature space. A sample counts as close when its nearest training image is nearer than
nearly all training images (99 %) are to each other: without memorisation that is about one sample in a hundred.

Axes: M samples, N training images, F features, K neighbours; R C rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.errors import UserError

CLOSE_SHARE = 0.01
_TILE = 2048


class Neighbours(NamedTuple):
    """The K nearest training images of each sample, nearest first: distances float64 (M, K), indices int64 (M, K)."""

    distance_MK: Tensor
    index_MK: Tensor


def nearest_neighbours(
    features_MF: Tensor,
    training_NF: Tensor,
    k: int = 5,
    device: torch.device | str = "cpu",
    own_M: Tensor | None = None,
) -> Neighbours:
    """The nearest rows of `training_NF`. Memory does not grow with M x N.

    Args:
        features_MF, training_NF: features of the same network.
        k: neighbours of each, at most N.
        device: where tiles of distances are computed, in float64.
        own_M: for rows that are training images themselves, their indices, which do not count; None counts all.

    Raises:
        ValueError: k outside 1..N (N - 1 with `own_M`), or different numbers of features.
    """
    if features_MF.shape[1] != training_NF.shape[1]:
        raise ValueError(f"cannot compare {features_MF.shape[1]} features with {training_NF.shape[1]}")
    most = len(training_NF) - (own_M is not None)
    if not 1 <= k <= most:
        raise ValueError(f"{k} neighbours of {len(training_NF)} training images: choose 1..{most}")
    centre_F = training_NF.double().mean(0)
    found = [
        _nearest_of_rows(
            _centred(features_MF[rows], centre_F, device),
            training_NF,
            centre_F,
            k,
            None if own_M is None else own_M[rows].to(device),
        )
        for rows in torch.arange(len(features_MF)).split(_TILE)
    ]
    if not found:
        return Neighbours(torch.zeros(0, k, dtype=torch.float64), torch.zeros(0, k, dtype=torch.int64))
    distance_MK, index_MK = (torch.cat(part) for part in zip(*found))
    return Neighbours(distance_MK, index_MK)


def _nearest_of_rows(
    rows_RF: Tensor, training_NF: Tensor, centre_F: Tensor, k: int, own_R: Tensor | None
) -> tuple[Tensor, Tensor]:
    best_RK = rows_RF.new_full((len(rows_RF), 0), torch.inf)
    index_RK = torch.zeros(len(rows_RF), 0, dtype=torch.int64, device=rows_RF.device)
    for start in range(0, len(training_NF), _TILE):
        columns_CF = _centred(training_NF[start : start + _TILE], centre_F, rows_RF.device)
        squared_RC = (
            (rows_RF.square().sum(1)[:, None] + columns_CF.square().sum(1))
            .addmm_(rows_RF, columns_CF.T, alpha=-2)
            .clamp_(min=0)
        )
        index_C = torch.arange(start, start + len(columns_CF), device=rows_RF.device)
        if own_R is not None:
            squared_RC.masked_fill_(index_C == own_R[:, None], torch.inf)
        best_RK = torch.cat([best_RK, squared_RC], 1)
        index_RK = torch.cat([index_RK, index_C.expand(len(rows_RF), -1)], 1)
        best_RK, order_RK = best_RK.topk(min(k, best_RK.shape[1]), largest=False)
        index_RK = index_RK.gather(1, order_RK)
    return _differences(rows_RF.cpu(), training_NF, centre_F, index_RK.cpu())


def _differences(rows_RF: Tensor, training_NF: Tensor, centre_F: Tensor, index_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Distances to the rows that were found, from differences: the expanded square leaves a rest of its large terms,
    so that a copy of an image would lie at a distance from it. Nearest first, as they now are.
    """
    distance_RK = torch.stack(
        [
            (rows_RF - _centred(training_NF[index_R], centre_F, "cpu")).square().sum(1).sqrt()
            for index_R in index_RK.unbind(1)
        ],
        1,
    )
    distance_RK, order_RK = distance_RK.sort(dim=1, stable=True)
    return distance_RK, index_RK.gather(1, order_RK)


def _centred(rows_RF: Tensor, centre_F: Tensor, device: torch.device | str) -> Tensor:
    """About a common point, where the expanded square loses fewer digits."""
    return (rows_RF.double() - centre_F).to(device)


class Closeness(NamedTuple):
    """How near samples are to training images.

    Attributes:
        threshold: the distance that 1 % of training images fall below to their own nearest other training image.
        close_share: share of samples below it.
        median, training_median: of nearest distances, samples to training images and training images to each other.
    """

    threshold: float
    close_share: float
    median: float
    training_median: float


def closeness(
    neighbours: Neighbours, training_NF: Tensor, device: torch.device | str = "cpu", probes: int = 2048
) -> Closeness:
    """Compares the samples' nearest distances with those of training images (at most `probes`, evenly spread).

    Raises:
        ValueError: fewer than 2 training images.
    """
    own_M = spread(probes, len(training_NF))
    among_M = nearest_neighbours(training_NF[own_M], training_NF, 1, device, own_M).distance_MK[:, 0]
    nearest_M = neighbours.distance_MK[:, 0]
    threshold = among_M.quantile(CLOSE_SHARE).item()
    return Closeness(
        threshold, (nearest_M < threshold).double().mean().item(), nearest_M.median().item(), among_M.median().item()
    )


def spread(count: int, total: int) -> Tensor:
    """At most `count` of 0..total-1, evenly spaced, int64."""
    count = min(count, total)
    return torch.arange(count) * total // max(count, 1)


class Taken(NamedTuple):
    """An image of a stream, and its label where it has one."""

    image_CHW: Tensor
    label: int | None


def take_images(batches: Iterable[Mapping[str, Tensor]], indices: Sequence[int]) -> dict[int, Taken]:
    """The images with these global indices out of a stream of batches (`image`, `index`, maybe `label`), which is read
    until all are there.

    Raises:
        UserError: the stream ends before.
    """
    wanted = set(indices)
    found: dict[int, Taken] = {}
    stream = iter(batches)
    while len(found) < len(wanted):
        batch = next(stream, None)
        if batch is None:
            raise UserError(f"{len(wanted) - len(found)} of {len(wanted)} images for the report were not found")
        labels = batch["label"].tolist() if "label" in batch else [None] * len(batch["image"])
        for index, image_CHW, label in zip(batch["index"].tolist(), batch["image"], labels):
            if index in wanted:
                found[index] = Taken(image_CHW.cpu(), label)
    return found
