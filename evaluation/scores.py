"""From batches of uint8 images to one result line: every metric asked for in one pass over exactly N images.

The images go through the feature network once; a metric sees batches, or at the end the features of all images.
Axes: B batch, C channels, H W image, F features, N images.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.metric import NO_ROWS, Metric, Network, ScoredBatch, WholeSet
from evaluation.networks.feature_networks import FeatureExtractor, spatial_extractor
from evaluation.protocol import shard_indices
from evaluation.sample_ledger import SampleLedger
from evaluation.statistics import ALONE, Gaussian, Ranks

ImageBatch = Tensor | Mapping[str, Tensor]
"""uint8 images (B, C, H, W), alone or as {"image", "index" (global), "label", "caption", "original"}, of which all but
the first are optional: see `ScoredBatch`."""


@dataclass(frozen=True)
class Origin:
    """How the images came about, written into the result line as given.

    Args:
        seed, sampling: of the draws, and their settings.
        checkpoint: hash of the weights.
        facts: further entries.
    """

    seed: int | None = None
    sampling: Mapping[str, object] = field(default_factory=dict)
    checkpoint: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, entries: Mapping[str, Any]) -> Origin:
        """Of the entries of a result line."""
        own = {name: value for name, value in entries.items() if name in ("seed", "sampling", "checkpoint")}
        return cls(**own, facts={name: value for name, value in entries.items() if name not in own})


def score_images(
    batches: Iterable[ImageBatch],
    metrics: Iterable[Metric],
    extractor: FeatureExtractor | None = None,
    *,
    num_images: int,
    ranks: Ranks = ALONE,
    origin: Origin = Origin(),
) -> dict[str, Any]:
    """Scores exactly `num_images` images and returns the result line (JSON-ready, the same on every rank).

    Args:
        batches: this rank's images, uint8. Without an `index` they are taken in the order of
            `shard_indices(num_images, rank, world_size)`.
        metrics: in the order in which their values stand in the line. Where one needs the features of all images, a
            `FeatureBank` among them serves it.
        extractor: the feature network; None where no metric needs one.
        num_images: images over all ranks.

    Returns:
        The line. `warnings` lists what makes a value less than it seems, such as fewer than 2,048 images or singular
        covariances behind a Frechet distance. `references` has the images behind every name, 0 where that is unknown.

    Raises:
        ValueError: not exactly `num_images` images, images that are not uint8, missing labels, fewer than 2 images,
            references of other features, or one name for references of different sizes.
    """
    started = time.perf_counter()
    metrics = list(metrics)
    sizes = reference_sizes(metrics)
    bank = _bank(metrics, extractor, num_images)
    watching = metrics if bank is None or bank in metrics else [*metrics, bank]
    accumulate(batches, extractor, watching, num_images, ranks)
    whole = WholeSet(NO_ROWS, torch.zeros(0, dtype=torch.int64)) if bank is None else bank.whole_set()
    results = [metric.result(whole) for metric in metrics]
    networks = {entry: network for result in results for entry, network in result.networks.items()}
    described = next(iter(networks.values()), None) if extractor is None else extractor
    line: dict[str, Any] = {
        "metrics": {name: value for result in results for name, value in result.values.items()},
        "num_images": num_images,
        "references": {name: {"num_images": size} for name, size in sizes.items()},
        "features": None if described is None else _features(described),
        "seed": origin.seed,
        "sampling": dict(origin.sampling),
        "checkpoint": origin.checkpoint,
        "warnings": [text for result in results for text in result.warnings],
    }
    for result in results:
        line |= result.facts
    line |= {"seconds": round(time.perf_counter() - started, 3), **origin.facts}
    return line | {
        entry: {"name": network.name, "resize": network.resize, "fingerprint": network.fingerprint}
        for entry, network in networks.items()
    }


def _bank(metrics: Sequence[Metric], extractor: FeatureExtractor | None, num_images: int) -> FeatureBank | None:
    for metric in metrics:
        if isinstance(metric, FeatureBank):
            return metric
    if not any(metric.needs_whole_set for metric in metrics):
        return None
    assert extractor is not None, "whole sets are sets of features"
    return FeatureBank(extractor.dim, num_images, extractor.device)


def _features(network: Network) -> dict[str, object]:
    return {
        "name": network.name,
        "dim": network.dim,
        "num_classes": network.num_classes,
        "resize": network.resize,
        "fingerprint": network.fingerprint,
    }


def reference_sizes(metrics: Iterable[Metric]) -> dict[str, int]:
    """Images behind every reference by name, 0 where that is not known (published moments may not say it).

    Raises:
        ValueError: one name stands for sets of different sizes.
    """
    sizes: dict[str, int] = {}
    for metric in metrics:
        for name, size in metric.reference_sizes().items():
            known = sizes.get(name) or size
            if size and known != size:
                raise ValueError(f"reference {name!r} stands for {known} images and for {size}: give them two names")
            sizes[name] = known
    return sizes


def reference_statistics(
    batches: Iterable[ImageBatch], extractor: FeatureExtractor, *, num_images: int, ranks: Ranks = ALONE
) -> Gaussian:
    """Moments of the features of exactly `num_images` images; arguments and errors as for `score_images`."""
    distance = FrechetDistance(extractor, {})
    accumulate(batches, extractor, [distance], num_images, ranks)
    return distance.statistics.gaussian()


def accumulate(
    batches: Iterable[ImageBatch],
    extractor: FeatureExtractor | None,
    metrics: Sequence[Metric],
    num_images: int,
    ranks: Ranks = ALONE,
) -> None:
    """Runs every batch through the network once, feeds all metrics, checks N and sums over ranks."""
    assert extractor is not None or not any(metric.needs_network for metric in metrics), "a metric needs a network"
    spatial = any(metric.needs_spatial for metric in metrics)
    ledger = SampleLedger(num_images, ranks.device if extractor is None else extractor.device)
    for batch, index_B in _numbered(batches, shard_indices(num_images, ranks.rank, ranks.world_size)):
        ledger.update(index_B)
        scored = _scored(batch, index_B, extractor, spatial)
        for metric in metrics:
            metric.update(scored)
    ledger.close(ranks.reduce)
    for metric in metrics:
        metric.all_reduce(ranks.reduce)


def _scored(
    batch: Mapping[str, Tensor], index_B: Tensor, extractor: FeatureExtractor | None, spatial: bool
) -> ScoredBatch:
    image_BCHW = batch["image"]
    features_BF = logits_BY = spatial_BF = NO_ROWS
    if extractor is not None and spatial:
        features_BF, logits_BY, spatial_BF = spatial_extractor(extractor).with_spatial(image_BCHW)
    elif extractor is not None:
        features_BF, logits_BY = extractor(image_BCHW)
    return ScoredBatch(
        image_BCHW,
        index_B,
        features_BF,
        logits_BY,
        spatial_BF,
        batch.get("label"),
        batch.get("caption"),
        batch.get("original"),
    )


def metric_value(line: Mapping[str, object], kind: str, reference: str | None = None) -> float:
    """Value of the only metric of this kind (`fid`, `is`, `is-std`, `accuracy`) and reference in a result line.

    Raises:
        ValueError: none or several; the message lists the names there are.
    """
    metrics = line["metrics"]
    assert isinstance(metrics, Mapping), "not a result line"
    ending = "" if reference is None else f"_vs_{reference}"
    names = [name for name in metrics if name.startswith(f"{kind}_") and name.endswith(ending)]
    if len(names) != 1:
        raise ValueError(f"{len(names)} metrics of kind {kind!r}{ending}: the line has {', '.join(metrics)}")
    return metrics[names[0]]


def _numbered(batches: Iterable[ImageBatch], expected: range) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
    """Batches and their global indices: given, or the shard's in order."""
    position = 0
    for given in batches:
        batch = given if isinstance(given, Mapping) else {"image": given}
        index_B = batch.get("index")
        if index_B is None:
            # Beyond the shard's end the numbering goes on, so that the ledger sees the surplus.
            positions_B = torch.arange(position, position + len(batch["image"]))
            index_B = expected.start + positions_B * expected.step
        position += len(batch["image"])
        yield batch, index_B
