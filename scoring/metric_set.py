"""The table of metrics, and which of them a script was asked for.

A new metric is its own file in `evaluation/metrics` and a row here. Legend: N images, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from runtime.errors import UserError

# the names are choices of a flag, which are read before torch is imported: each metric is imported where it is built
if TYPE_CHECKING:
    from evaluation.metrics.metric import Metric
    from evaluation.networks.clip_features import ClipFeatures
    from evaluation.networks.feature_networks import FeatureExtractor
    from evaluation.references.reference_files import Reference

Part = TypeVar("Part")


@dataclass(frozen=True)
class MetricInputs:
    """What metrics are made from; a script gives what the metrics it lets through need.

    Args:
        num_images: N over all ranks.
        extractor, reference: the feature network, and what is compared with in its features.
        clip, captions: the CLIP network and the captions of the images, by number.
        train_on_samples: the classification accuracy score of the samples, once they are whole.
        numbered: the images have numbers of their own, and not only places in a listing.
    """

    num_images: int
    extractor: FeatureExtractor | None = None
    reference: Reference | None = None
    clip: ClipFeatures | None = None
    captions: Sequence[str] = ()
    train_on_samples: Callable[[], dict[str, float]] | None = None
    numbered: bool = True

    def features(self) -> tuple[FeatureExtractor, Reference]:
        """What everything that compares features needs."""
        assert self.extractor is not None and self.reference is not None
        return self.extractor, self.reference


def _fid(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.frechet import FrechetDistance

    extractor, reference = inputs.features()
    return FrechetDistance(extractor, {reference.name: reference.moments})


def _inception_score(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.inception_score import InceptionScore, MixedInceptionScore

    assert inputs.extractor is not None
    score = InceptionScore if inputs.numbered else MixedInceptionScore
    return score(inputs.extractor, inputs.num_images)


def _kid(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.kid import KernelDistance

    extractor, reference = inputs.features()
    features_NF = _held(reference, reference.features_NF, "kid", "features of its images")
    return KernelDistance(extractor, {reference.name: features_NF})


def _prdc(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.manifold import ManifoldOverlap

    extractor, reference = inputs.features()
    features_NF = _held(reference, reference.features_NF, "prdc", "features of its images")
    return ManifoldOverlap(extractor, {reference.name: features_NF})


def _sfid(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.spatial_frechet import SpatialFrechetDistance

    extractor, reference = inputs.features()
    moments = _held(reference, reference.spatial, "sfid", "moments of spatial features")
    return SpatialFrechetDistance(extractor, {reference.name: moments})


def _class_fid(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.class_frechet import ClassFrechetDistance

    extractor, reference = inputs.features()
    classes = _held(reference, reference.classes, "class-fid", "features with classes")
    return ClassFrechetDistance(extractor, {reference.name: classes})


def _accuracy(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.recognition import RecognitionAccuracy

    assert inputs.extractor is not None
    return RecognitionAccuracy(inputs.extractor)


def _cas(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.classification_accuracy import ClassificationAccuracy

    assert inputs.train_on_samples is not None
    return ClassificationAccuracy(inputs.train_on_samples)


def _clip(inputs: MetricInputs) -> Metric:
    from evaluation.metrics.clip_score import ClipScore

    assert inputs.clip is not None
    return ClipScore(inputs.clip, inputs.captions)


def _held(reference: Reference, part: Part | None, metric: str, what: str) -> Part:
    if part is None:
        raise UserError(
            f"metrics={metric} needs {what}, which reference {reference.name} does not hold; give its "
            "images, or make it with `python -m scoring.reference make --keep-features --spatial`"
        )
    return part


def _spatial_features(features: str) -> str | None:
    if features.startswith("inception"):
        return None
    return f"metrics=sfid: {features} has no spatial features; it needs --features inception"


def _own_classes(features: str) -> str | None:
    if features == "classifier":
        return None
    return "metrics=accuracy needs --features classifier, which knows the data set's classes"


def _some_classes(extractor: FeatureExtractor) -> str | None:
    if extractor.num_classes:
        return None
    return f"metrics=is: {extractor.label} has no classes, which the inception score needs"


@dataclass(frozen=True)
class MetricRow:
    """One metric of the scripts.

    Args:
        about: what it is, in words.
        build: makes it; UserError where the reference does not hold what it needs.
        place: where its values stand in a result line.
        by_captions: it compares images with their captions alone, by the CLIP network; all others go with a reference.
        keeps_features: it needs the features of all reference images, not only their moments.
        keeps_spatial: it needs the moments of their spatial features.
        labelled: it needs the classes of the samples.
        refuses_name: what is wrong with a feature network of this name; asked before it is built.
        refuses: what is wrong with a feature network.
    """

    about: str
    build: Callable[[MetricInputs], Metric]
    place: int
    by_captions: bool = False
    keeps_features: bool = False
    keeps_spatial: bool = False
    labelled: bool = False
    refuses_name: Callable[[str], str | None] = lambda features: None
    refuses: Callable[[FeatureExtractor], str | None] = lambda extractor: None


METRICS = {
    "fid": MetricRow("Frechet distance", _fid, place=0),
    "is": MetricRow("inception score", _inception_score, place=2, refuses=_some_classes),
    "kid": MetricRow("kernel inception distance", _kid, place=4, keeps_features=True),
    "prdc": MetricRow("precision, recall, density, coverage", _prdc, place=5, keeps_features=True),
    "sfid": MetricRow(
        "Frechet distance of spatial features", _sfid, place=1, keeps_spatial=True, refuses_name=_spatial_features
    ),
    "class-fid": MetricRow("Frechet distance of every class", _class_fid, place=6, keeps_features=True, labelled=True),
    "accuracy": MetricRow(
        "share recognised as their class (features=classifier)",
        _accuracy,
        place=3,
        labelled=True,
        refuses_name=_own_classes,
    ),
    "cas": MetricRow("classification accuracy score", _cas, place=7, labelled=True),
    "clip": MetricRow("CLIP score of images and their captions", _clip, place=8, by_captions=True),
}
DEFAULT_METRICS = "fid,is"


@dataclass(frozen=True)
class MetricSet:
    """Names out of `METRICS`, each once, in the order given."""

    names: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> MetricSet:
        """`fid,is,kid` -> a set; `[fid, is]` is read too.

        Raises:
            UserError: no metric, or an unknown one.
        """
        names = tuple(dict.fromkeys(word.strip().lower() for word in text.strip("[] ").split(",") if word.strip()))
        unknown = [name for name in names if name not in METRICS]
        if unknown or not names:
            raise UserError(f"metrics={text!r}: choose from {', '.join(METRICS)}")
        return cls(names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __or__(self, other: MetricSet) -> MetricSet:
        return MetricSet(tuple(dict.fromkeys((*self.names, *other.names))))

    @property
    def rows(self) -> dict[str, MetricRow]:
        """Their rows, in the order of the table."""
        return {name: row for name, row in METRICS.items() if name in self}

    @property
    def by_reference(self) -> bool:
        """Whether a feature network and a reference are needed."""
        return any(not row.by_captions for row in self.rows.values())

    @property
    def keeps_features(self) -> bool:
        """Whether the features of all reference images are needed, not only their moments."""
        return any(row.keeps_features for row in self.rows.values())

    @property
    def keeps_spatial(self) -> bool:
        """Whether the moments of spatial features are needed."""
        return any(row.keeps_spatial for row in self.rows.values())

    @property
    def labelled(self) -> tuple[str, ...]:
        """Those that need the classes of the samples."""
        return tuple(sorted(name for name, row in self.rows.items() if row.labelled))

    def check_name(self, features: str) -> None:
        """UserError when a feature network of this name cannot give one of them; asked before it is built."""
        for row in self.rows.values():
            if reason := row.refuses_name(features):
                raise UserError(reason)

    def check(self, extractor: FeatureExtractor) -> None:
        """UserError when the feature network cannot give one of them."""
        for row in self.rows.values():
            if reason := row.refuses(extractor):
                raise UserError(reason)

    def build(self, inputs: MetricInputs) -> dict[str, Metric]:
        """The metrics by name, in the order of a result line.

        Raises:
            UserError: the reference does not hold what one needs.
        """
        built = {name: row.build(inputs) for name, row in self.rows.items()}
        return dict(sorted(built.items(), key=lambda item: METRICS[item[0]].place))
