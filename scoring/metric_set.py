"""Which metrics a script was asked for, and what a reference has to hold for them.

Legend: N images, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.reference_files import Reference
from runtime.errors import UserError

METRICS = {
    "fid": "Frechet distance",
    "is": "inception score",
    "kid": "kernel inception distance",
    "prdc": "precision, recall, density, coverage",
    "sfid": "Frechet distance of spatial features",
    "class-fid": "Frechet distance of every class",
    "accuracy": "share recognised as their class (features=classifier)",
    "cas": "classification accuracy score",
    "clip": "CLIP score of images and their captions",
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

    @property
    def needs_features(self) -> bool:
        """Whether the features of all reference images are needed, not only their moments."""
        return any(name in self for name in ("kid", "prdc", "class-fid"))

    @property
    def needs_spatial(self) -> bool:
        return "sfid" in self

    def check_name(self, features: str) -> None:
        """UserError when a feature network of this name cannot give one of them; asked before it is built."""
        if "sfid" in self and not features.startswith("inception"):
            raise UserError(f"metrics=sfid: {features} has no spatial features; it needs --features inception")
        if "accuracy" in self and features != "classifier":
            raise UserError("metrics=accuracy needs --features classifier, which knows the data set's classes")

    def check(self, extractor: FeatureExtractor) -> None:
        """UserError when the feature network has no classes and the inception score is asked for."""
        if "is" in self and not extractor.num_classes:
            raise UserError(f"metrics=is: {extractor.label} has no classes, which the inception score needs")

    def arguments(self, reference: Reference) -> dict[str, Any]:
        """Keyword arguments of `evaluation.scores.score_images`; `cas` and `clip` are not its business.

        Raises:
            UserError: the reference does not hold what a metric needs.
        """
        name, found = reference.name, {}
        if "fid" in self:
            found["references"] = {name: reference.moments}
        for metric, keyword in (("kid", "kid"), ("prdc", "manifold")):
            if metric in self:
                found[keyword] = {name: self._held(reference, reference.features_NF, metric, "features of its images")}
        if "sfid" in self:
            found["spatial"] = {name: self._held(reference, reference.spatial, "sfid", "moments of spatial features")}
        if "class-fid" in self:
            found["per_class"] = {name: self._held(reference, reference.classes, "class-fid", "features with classes")}
        return {**found, "splits": 10 if "is" in self else None, "accuracy": "accuracy" in self}

    @staticmethod
    def _held(reference: Reference, part: Any, metric: str, what: str) -> Any:
        if part is None:
            raise UserError(
                f"metrics={metric} needs {what}, which reference {reference.name} does not hold; give its "
                "images, or make it with `python -m scoring.reference make --keep-features --spatial`"
            )
        return part
