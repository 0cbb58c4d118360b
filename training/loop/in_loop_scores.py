"""Scores while training: rFID of reconstructions (stage 1) or FID of samples (stage 2), and the best snapshot by it.

Nothing here is random beyond what the stage derives from (seed, image index), and nothing is stored in checkpoints:
the best value so far is read from the metadata of the best snapshot. Scoring changes no weight and no later step.

Legend: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evaluation.metrics.frechet import FrechetDistance
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.scores import reference_statistics, score_images
from evaluation.statistics import Gaussian
from runtime import distributed
from runtime.errors import one_line
from scoring.result_lines import BY_FREQUENCY, by_frequency
from scoring.scoring_data import ScoringData, ranks_of
from scoring.settings import FeatureSettings
from training.checkpoints.snapshot_writer import SnapshotWriter
from training.experiment import InLoopScoreConfig
from training.stage import Stage

AUTOMATIC = {"colour": ("inception", "efficientnet-lite0", "classifier"), "grey": ("inception", "classifier")}


def find_features(config: InLoopScoreConfig, data: ScoringData) -> FeatureExtractor:
    """The first feature network of the config that can be had; every rank must call it.

    Raises:
        ValueError: none can; the line says why.
    """
    names: tuple[str, ...] = (config.features,)
    if config.features == "auto":
        names = AUTOMATIC["colour" if _in_colour(data) else "grey"]
    reasons = []
    for name in names:
        settings = FeatureSettings(name, config.features_weights, cache=config.features_cache)
        try:
            return data.features(settings)
        except (ValueError, OSError) as error:
            reasons.append(one_line(error))
    raise ValueError("; ".join(reasons))


def _in_colour(data: ScoringData) -> bool:
    """Whether there are images in colour; images that cannot be had (those behind latents) say nothing."""
    try:
        return data.split("train").colour
    except (ValueError, OSError):
        return False


class InLoopScores:
    """Scores a stage every `config.every_steps` steps; see `InLoopScoreConfig`.

    Args:
        extractor: what the images are compared with.
        data: both splits of the run's data set.
        snapshots: keeps the best one.

    Raises:
        ValueError: the split has less than two images.
    """

    def __init__(
        self,
        config: InLoopScoreConfig,
        stage: Stage,
        extractor: FeatureExtractor,
        data: ScoringData,
        snapshots: SnapshotWriter,
    ) -> None:
        self.config, self.stage, self.extractor, self.data, self.snapshots = config, stage, extractor, data, snapshots
        self.num_images = config.num_images
        if stage.score_kind == "rfid":
            self.num_images = min(config.num_images, len(data.split(stage.score_split)))
        if self.num_images < 2:
            raise ValueError(f"the {stage.score_split} split has {self.num_images} images, a distance takes 2 or more")
        self._reference: tuple[str, Gaussian] | None = None

    def describe(self) -> str:
        """One line on what is scored."""
        kind, every = self.stage.score_kind, self.config.every_steps
        return f"{kind} of {self.num_images} images every {every} steps, features {self.extractor.label}"

    def due(self, step: int, last: bool) -> bool:
        """Whether there is something to score after this step."""
        every = self.config.every_steps
        return every is not None and (last or step % every == 0)

    def measure(self) -> dict[str, float]:
        """The distance under its full name, the same on every rank, and the number of images."""
        name, moments = self.reference()
        distance = FrechetDistance(self.extractor, {name: moments}, self.stage.score_kind)
        with self.stage.averaged():
            line = score_images(
                self.stage.images_to_score(self.data, self.num_images),
                [distance],
                self.extractor,
                num_images=self.num_images,
                ranks=ranks_of(self.data.env),
            )
        metrics = line["metrics"]
        if self.config.classes == BY_FREQUENCY:
            metrics = {by_frequency(name): value for name, value in metrics.items()}
        return {**metrics, "num_images": self.num_images}

    def reference(self) -> tuple[str, Gaussian]:
        """Name and moments of what the images are compared with, computed once.

        FID takes the whole split. rFID takes the originals of the very images that are reconstructed; where these are
        not the whole split, their number is part of the name.
        """
        if self._reference is None:
            self._reference = self._measure_reference()
        return self._reference

    def _measure_reference(self) -> tuple[str, Gaussian]:
        split = self.stage.score_split
        if self.stage.score_kind == "fid" or self.num_images == len(self.data.split(split)):
            return split, self.data.moments(split, self.extractor)
        originals = self.data.spread_batches(split, self.num_images)
        ranks = ranks_of(self.data.env)
        moments = reference_statistics(originals, self.extractor, num_images=self.num_images, ranks=ranks)
        return f"{split}{self.num_images}", moments

    def keep_best(self, progress: Mapping[str, Any], scores: Mapping[str, Any], validation: Mapping[str, Any]) -> None:
        """Writes `snapshots/best` when the distance is the lowest so far; every rank must call it."""
        if not self.config.keep_best:
            return
        ((name, value),) = [item for item in scores.items() if item[0].startswith(self.stage.score_kind)]
        if distributed.run_on_main(lambda: math.isfinite(value) and value < self._best_value(name)):
            reason = {"metric": name, "value": value, "num_images": self.num_images}
            self.snapshots.save_best(self.stage.snapshot(), progress, {**validation, **scores}, reason)

    def _best_value(self, name: str) -> float:
        """The lowest value so far; infinite when there is none, or one of another metric."""
        known = self.snapshots.best_reason()
        return known["value"] if known.get("metric") == name else math.inf
