"""From batches of uint8 images to one result line: every score asked for in one pass over exactly N images.

The images go through the feature network once; every score is a small accumulator (`metrics.accumulators`), or is
taken at the end on a bank of all features. Axes: B batch, C channels, H W image, F features, N images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics.accumulators import (
    Accumulator,
    BankFeeder,
    FrechetScores,
    InceptionScores,
    RecognitionAccuracy,
    SampleLedger,
    ScoredBatch,
    SpatialFrechetScores,
)
from evaluation.metrics.class_scores import ClassFrechetScores, ClassMoments, count_images
from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.kid import KernelScores, KernelSettings
from evaluation.metrics.manifold import ManifoldScores, ManifoldSettings
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import shard_indices
from evaluation.statistics import Gaussian, Reduce, no_reduce

PUBLISHED_KID, PUBLISHED_MANIFOLD = KernelSettings(), ManifoldSettings()

ImageBatch = Tensor | Mapping[str, Tensor]
"""uint8 images (B, C, H, W), alone or as {"image", "index" (global, optional), "label" (optional)}."""


def score_images(
    batches: Iterable[ImageBatch],
    extractor: FeatureExtractor,
    *,
    num_images: int,
    references: Mapping[str, Gaussian] | None = None,
    kind: str = "fid",
    splits: int | None = 10,
    accuracy: bool = False,
    reduce: Reduce = no_reduce,
    rank: int = 0,
    world_size: int = 1,
    seed: int | None = None,
    sampling: Mapping[str, object] | None = None,
    checkpoint: str | None = None,
    keep_moments: Callable[[Gaussian], None] | None = None,
    kid: Mapping[str, Tensor] | None = None,
    manifold: Mapping[str, Tensor] | None = None,
    spatial: Mapping[str, Gaussian] | None = None,
    per_class: Mapping[str, Mapping[int, ClassMoments]] | None = None,
    kid_settings: KernelSettings = PUBLISHED_KID,
    manifold_settings: ManifoldSettings = PUBLISHED_MANIFOLD,
    keep_bank: Callable[[FeatureBank], None] | None = None,
) -> dict[str, object]:
    """Scores exactly `num_images` images and returns the result line (JSON-ready, the same on every rank).

    Args:
        batches: this rank's images, uint8. Without an `index` they are taken in the order of
            `shard_indices(num_images, rank, world_size)`.
        extractor: the feature network.
        num_images: images over all ranks.
        references: name (`train`, `val`, ...) -> moments; one FID each.
        kind: `fid` or `rfid`, the first part of that metric's name.
        splits: splits of the inception score (at most one per image); None leaves it out, and so does a feature
            network without classes.
        accuracy: also the share of images recognised as their `label`.
        reduce: in-place sum of a tensor over ranks.
        seed, sampling, checkpoint: written into the line as given (checkpoint: a hash).
        keep_moments: called with the moments of the images' features, on every rank (needs `references`).
        kid, manifold: name -> reference features (N, F): KID; precision, recall, density and coverage.
        spatial: name -> moments of the spatial features: sFID (`inception` only).
        per_class: name -> class -> moments or features (N, F) of that class: one FID per class, and their mean.
        kid_settings, manifold_settings: written into the metrics' names, the seed of KID into the line.
        keep_bank: called with all images' features, on every rank.

    Returns:
        The line. `warnings` lists what makes a Frechet distance less than it seems: fewer than 2,048 images, singular
        covariances, classes left out. `per_class` (only when asked for): metric name -> class -> FID.

    Raises:
        ValueError: not exactly `num_images` images, images that are not uint8, missing labels, fewer than 2 images,
            references of other features.
    """
    started = time.perf_counter()
    accumulators: list[Accumulator] = []
    if references:
        accumulators.append(FrechetScores(extractor, references, kind))
    if spatial:
        accumulators.append(SpatialFrechetScores(extractor, spatial, "s" + kind))
    if splits is not None and extractor.num_classes:
        accumulators.append(InceptionScores(extractor, num_images, min(splits, num_images)))
    if accuracy:
        accumulators.append(RecognitionAccuracy(extractor))
    finishers: list[Any] = []
    if kid or manifold or per_class or keep_bank is not None:
        bank = FeatureBank(extractor.dim, num_images, extractor.device)
        accumulators.append(BankFeeder(bank))
        if kid:
            finishers.append(KernelScores(extractor, bank, kid, kid_settings))
        if manifold:
            finishers.append(ManifoldScores(extractor, bank, manifold, manifold_settings))
        if per_class:
            finishers.append(ClassFrechetScores(extractor, bank, per_class, "class-" + kind))
    accumulate(
        batches,
        extractor,
        accumulators,
        num_images,
        reduce=reduce,
        rank=rank,
        world_size=world_size,
        spatial=bool(spatial),
    )
    if keep_moments is not None and references:
        keep_moments(accumulators[0].statistics.gaussian())  # type: ignore[attr-defined]
    if keep_bank is not None:
        keep_bank(bank)
    scores = [*accumulators, *finishers]
    metrics = {name: value for score in scores for name, value in score.metrics().items()}
    line: dict[str, object] = {
        "metrics": metrics,
        "num_images": num_images,
        "references": {
            name: {"num_images": count}
            for name, count in _reference_sizes(references, spatial, kid, manifold, per_class).items()
        },
        "features": {
            "name": extractor.name,
            "dim": extractor.dim,
            "num_classes": extractor.num_classes,
            "resize": extractor.resize,
            "fingerprint": extractor.fingerprint,
        },
        "seed": seed,
        "sampling": dict(sampling or {}),
        "checkpoint": checkpoint,
        "warnings": [text for score in scores if hasattr(score, "warnings") for text in score.warnings()],
    }
    if kid:
        line["kid_seed"] = kid_settings.seed
    if per_class:
        line["per_class"] = finishers[-1].tables()
    return {**line, "seconds": round(time.perf_counter() - started, 3)}


def _reference_sizes(
    references: Mapping[str, Gaussian] | None,
    spatial: Mapping[str, Gaussian] | None,
    kid: Mapping[str, Tensor] | None,
    manifold: Mapping[str, Tensor] | None,
    per_class: Mapping[str, Mapping[int, ClassMoments]] | None,
) -> dict[str, int]:
    """Images behind every reference by name, 0 where that is not known (published moments may not say it).

    Raises:
        ValueError: one name stands for sets of different sizes.
    """
    sizes: dict[str, int] = {}
    found = [(name, gaussian.num) for part in (references, spatial) for name, gaussian in (part or {}).items()]
    found += [(name, len(features_NF)) for part in (kid, manifold) for name, features_NF in (part or {}).items()]
    for name, size in found:
        known = sizes.get(name) or size
        if size and known != size:
            raise ValueError(f"reference {name!r} stands for {known} images and for {size}: give them two names")
        sizes[name] = known
    for name, classes in (per_class or {}).items():
        sizes.setdefault(name, sum(count_images(moments) for moments in classes.values()))
    return sizes


def reference_statistics(
    batches: Iterable[ImageBatch],
    extractor: FeatureExtractor,
    *,
    num_images: int,
    reduce: Reduce = no_reduce,
    rank: int = 0,
    world_size: int = 1,
) -> Gaussian:
    """Moments of the features of exactly `num_images` images; arguments and errors as for `score_images`."""
    scores = FrechetScores(extractor, {})
    accumulate(batches, extractor, [scores], num_images, reduce=reduce, rank=rank, world_size=world_size)
    return scores.statistics.gaussian()


def accumulate(
    batches: Iterable[ImageBatch],
    extractor: FeatureExtractor,
    accumulators: Iterable[Accumulator],
    num_images: int,
    *,
    reduce: Reduce = no_reduce,
    rank: int = 0,
    world_size: int = 1,
    spatial: bool = False,
) -> None:
    """Runs every batch through the network once, feeds all accumulators, checks N and sums over ranks.

    With `spatial` the batches carry the extractor's spatial features too.
    """
    accumulators = list(accumulators)
    ledger = SampleLedger(num_images, extractor.device)
    for image_BCHW, index_B, label_B in _numbered(batches, shard_indices(num_images, rank, world_size)):
        ledger.update(index_B)
        features_BF, logits_BY, *more = (extractor.with_spatial if spatial else extractor)(image_BCHW)
        scored = ScoredBatch(features_BF, logits_BY, index_B, label_B, *more)
        for accumulator in accumulators:
            accumulator.update(scored)
    ledger.close(reduce)
    for accumulator in accumulators:
        accumulator.all_reduce(reduce)


def metric_value(line: Mapping[str, object], kind: str, reference: str | None = None) -> float:
    """Value of the only metric of this kind (`fid`, `is`, `is-std`, `accuracy`) and reference in a result line.

    Raises:
        ValueError: none or several; the message lists the names there are.
    """
    metrics: Mapping[str, float] = line["metrics"]  # type: ignore[assignment]
    ending = "" if reference is None else f"_vs_{reference}"
    names = [name for name in metrics if name.startswith(f"{kind}_") and name.endswith(ending)]
    if len(names) != 1:
        raise ValueError(f"{len(names)} metrics of kind {kind!r}{ending}: the line has {', '.join(metrics)}")
    return metrics[names[0]]


def _numbered(batches: Iterable[ImageBatch], expected: range) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Images, global indices (given, or the shard's in order) and labels if any."""
    position = 0
    for batch in batches:
        batch = batch if isinstance(batch, Mapping) else {"image": batch}
        image_BCHW, index_B = batch["image"], batch.get("index")
        if index_B is None:
            # Beyond the shard's end the numbering goes on, so that the ledger sees the surplus.
            positions_B = torch.arange(position, position + len(image_BCHW))
            index_B = expected.start + positions_B * expected.step
        position += len(image_BCHW)
        yield image_BCHW, index_B, batch.get("label")
