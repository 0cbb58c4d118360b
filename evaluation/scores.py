"""From batches of uint8 images to one result line: FID, inception score, recognition accuracy; exactly N images.

Every score is a small accumulator (`update` with a batch, `all_reduce` over ranks, `metrics` at the end); the images
go through the feature network once. Axes: B batch, C channels, H W image, F features, Y classes, N images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evaluation.features import FeatureExtractor
from evaluation.frechet import frechet_between
from evaluation.inception_score import StreamingInceptionScore
from evaluation.protocol import metric_name, shard_indices
from evaluation.statistics import Gaussian, Reduce, StreamingStatistics, no_reduce

ImageBatch = Tensor | Mapping[str, Tensor]
"""uint8 images (B, C, H, W), alone or as {"image", "index" (global, optional), "label" (optional)}."""


class ScoredBatch(NamedTuple):
    """One batch after the feature network."""

    features_BF: Tensor
    logits_BY: Tensor
    index_B: Tensor
    label_B: Tensor | None


class Accumulator(Protocol):
    """A score in the making."""

    def update(self, batch: ScoredBatch) -> None:
        """Takes in a batch of this rank."""

    def all_reduce(self, reduce: Reduce) -> None:
        """Sums over ranks; called once, on every rank, after the last update."""

    def metrics(self) -> dict[str, float]:
        """Full metric names and values."""


class FrechetScores:
    """FID (or rFID) against any number of named references."""

    def __init__(self, extractor: FeatureExtractor, references: Mapping[str, Gaussian], kind: str = "fid"):
        self.statistics = StreamingStatistics(extractor.dim, extractor.device)
        self.references = {metric_name(kind, extractor.label, extractor.resize, r): g for r, g in references.items()}

    def update(self, batch: ScoredBatch) -> None:
        self.statistics.update(batch.features_BF)

    def all_reduce(self, reduce: Reduce) -> None:
        self.statistics = self.statistics.all_reduce(reduce)

    def metrics(self) -> dict[str, float]:
        gaussian = self.statistics.gaussian()
        return {name: frechet_between(gaussian, reference) for name, reference in self.references.items()}


class InceptionScores:
    """Inception score and its deviation over splits."""

    def __init__(self, extractor: FeatureExtractor, num_images: int, splits: int):
        self.names = [metric_name(k, extractor.label, extractor.resize, splits=splits) for k in ("is", "is-std")]
        self.score = StreamingInceptionScore(num_images, extractor.num_classes, splits, extractor.device)

    def update(self, batch: ScoredBatch) -> None:
        self.score.update(batch.logits_BY, batch.index_B)

    def all_reduce(self, reduce: Reduce) -> None:
        self.score.all_reduce(reduce)

    def metrics(self) -> dict[str, float]:
        return dict(zip(self.names, self.score.result()))


class RecognitionAccuracy:
    """Share of images in which the classifier recognises the class each was asked for.

    Raises:
        ValueError: the feature network does not know the data set's classes, or a batch has no labels.
    """

    def __init__(self, extractor: FeatureExtractor):
        if not extractor.recognises_labels:
            raise ValueError(f"{extractor.name} does not know the data set's classes: accuracy needs the classifier")
        self.name = metric_name("accuracy", extractor.label, extractor.resize)
        self.correct_and_total = torch.zeros(2, dtype=torch.int64, device=extractor.device)

    def update(self, batch: ScoredBatch) -> None:
        if batch.label_B is None:
            raise ValueError("recognition accuracy needs the class that each image was asked for (`label`)")
        correct = (batch.logits_BY.argmax(1) == batch.label_B.to(batch.logits_BY.device)).sum()
        self.correct_and_total += torch.stack([correct, correct.new_tensor(len(batch.logits_BY))])

    def all_reduce(self, reduce: Reduce) -> None:
        reduce(self.correct_and_total)

    def metrics(self) -> dict[str, float]:
        correct, total = self.correct_and_total.tolist()
        return {self.name: correct / total}


class SampleLedger:
    """Counts how often each global index 0..N-1 was seen; every one must be seen exactly once."""

    def __init__(self, num_images: int, device: torch.device | str = "cpu"):
        self.seen_N = torch.zeros(num_images, dtype=torch.int32, device=device)

    def update(self, index_B: Tensor) -> None:
        if len(index_B) and not 0 <= index_B.min() <= index_B.max() < len(self.seen_N):
            raise ValueError(f"got more images than the {len(self.seen_N)} announced (index {index_B.max().item()})")
        index_B = index_B.to(self.seen_N.device)
        self.seen_N.index_add_(0, index_B, torch.ones_like(index_B, dtype=torch.int32))

    def close(self, reduce: Reduce) -> None:
        """Sums over ranks and raises a ValueError unless every image came exactly once."""
        reduce(self.seen_N)
        missing, repeated = (self.seen_N == 0).sum().item(), (self.seen_N > 1).sum().item()
        if missing or repeated:
            raise ValueError(f"{len(self.seen_N)} images announced: {missing} missing, {repeated} more than once")


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
) -> dict[str, object]:
    """Scores exactly `num_images` images and returns the result line (JSON-ready, the same on every rank).

    Args:
        batches: this rank's images, uint8. Without an `index` they are taken in the order of
            `shard_indices(num_images, rank, world_size)`.
        extractor: the feature network.
        num_images: images over all ranks.
        references: name (`train`, `val`, ...) -> moments; one FID each.
        kind: `fid` or `rfid`, the first part of that metric's name.
        splits: splits of the inception score (at most one per image); None leaves it out.
        accuracy: also the share of images recognised as their `label`.
        reduce: in-place sum of a tensor over ranks.
        seed, sampling, checkpoint: written into the line as given (checkpoint: a hash).
        keep_moments: called with the moments of the images' features, on every rank (needs `references`).

    Raises:
        ValueError: not exactly `num_images` images, images that are not uint8, missing labels, fewer than 2 images.
    """
    started = time.perf_counter()
    accumulators: list[Accumulator] = []
    if references:
        accumulators.append(FrechetScores(extractor, references, kind))
    if splits is not None:
        accumulators.append(InceptionScores(extractor, num_images, min(splits, num_images)))
    if accuracy:
        accumulators.append(RecognitionAccuracy(extractor))
    accumulate(batches, extractor, accumulators, num_images, reduce=reduce, rank=rank, world_size=world_size)
    if keep_moments is not None and references:
        keep_moments(accumulators[0].statistics.gaussian())
    return {
        "metrics": {name: value for accumulator in accumulators for name, value in accumulator.metrics().items()},
        "num_images": num_images,
        "references": {name: {"num_images": reference.num} for name, reference in (references or {}).items()},
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
        "seconds": round(time.perf_counter() - started, 3),
    }


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
) -> None:
    """Runs every batch through the network once, feeds all accumulators, checks N and sums over ranks."""
    accumulators = list(accumulators)
    ledger = SampleLedger(num_images, extractor.device)
    for image_BCHW, index_B, label_B in _numbered(batches, shard_indices(num_images, rank, world_size)):
        ledger.update(index_B)
        scored = ScoredBatch(*extractor(image_BCHW), index_B, label_B)
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
