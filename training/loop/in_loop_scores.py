"""Scores while training: rFID of reconstructions (stage 1) or FID of samples (stage 2), and the best snapshot by it.

Nothing here is random beyond what the stage derives from (seed, image index), and nothing is stored in checkpoints:
the best value so far is read from the metadata of the best snapshot. Scoring changes no weight and no later step.

Legend: B batch, C channels, H W image, N images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.scores import reference_statistics, score_images
from evaluation.statistics import Gaussian
from runtime import distributed
from runtime.atomic import is_complete, remove_directory
from runtime.errors import one_line
from runtime.runlog import RunLog
from sampling.trained_models import read_metadata
from scoring.scoring_data import Batches, ScoringData
from training.experiment import InLoopScoreConfig

BEST = "best"
AUTOMATIC = ("inception", "classifier")


class ScoredStage(Protocol):
    """What a stage gives to be scored.

    Attributes:
        score_kind: `rfid` or `fid`, the first part of the metric's name.
        score_split: the split it is compared with.
    """

    score_kind: str
    score_split: str

    def images_to_score(self, data: ScoringData, num_images: int) -> Batches:
        """This rank's share of exactly `num_images` uint8 images, with the weights that are in place."""

    def averaged(self) -> Any:
        """Context with the EMA weights in place; does nothing without EMA."""


WriteSnapshot = Callable[[str, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], None]
"""Name, progress, metrics, what the metadata say besides -> a snapshot directory."""


class InLoopScores:
    """Scores a stage every `config.every_steps` steps; see `InLoopScoreConfig`.

    Without a feature network `measure` gives nothing, after one warning.

    Args:
        data: both splits of the run's data set.
        snapshots: the run's `snapshots` directory.
        write_snapshot: writes `snapshots/<name>`, called on the main process.
    """

    def __init__(
        self,
        config: InLoopScoreConfig,
        stage: ScoredStage,
        data: ScoringData,
        log: RunLog,
        snapshots: Path,
        write_snapshot: WriteSnapshot,
    ):
        self.config, self.stage, self.data, self.log = config, stage, data, log
        self.best, self.write_snapshot = snapshots / BEST, write_snapshot
        self.num_images = config.num_images
        if stage.score_kind == "rfid":
            self.num_images = min(config.num_images, len(data.split(stage.score_split)))
        self.extractor = None if config.every_steps is None else self._find_features()
        self._reference: tuple[str, Gaussian] | None = None

    def due(self, step: int, last: bool) -> bool:
        """Whether there is something to score after this step."""
        every = self.config.every_steps
        return every is not None and self.extractor is not None and (last or step % every == 0)

    def _find_features(self) -> FeatureExtractor | None:
        names = AUTOMATIC if self.config.features == "auto" else (self.config.features,)
        reasons = []
        for name in names:
            flags = argparse.Namespace(
                features=name, features_weights=self.config.features_weights, features_cache=self.config.features_cache
            )
            try:
                extractor = self.data.features(flags)
            except (ValueError, OSError) as error:
                reasons.append(one_line(error))
                continue
            self.log.info(
                f"{self.stage.score_kind} of {self.num_images} images every {self.config.every_steps} steps, "
                f"features {extractor.label}"
            )
            return extractor
        if distributed.is_main():
            self.log.warning(f"no {self.stage.score_kind} while training: {'; '.join(reasons)}")
        return None

    def measure(self) -> dict[str, float]:
        """The distance under its full name, the same on every rank, and the number of images."""
        name, moments = self.reference()
        with self.stage.averaged():
            line = score_images(
                self.stage.images_to_score(self.data, self.num_images),
                self.extractor,
                num_images=self.num_images,
                references={name: moments},
                kind=self.stage.score_kind,
                splits=None,
                reduce=distributed.all_reduce_sum_,
                rank=self.data.env.rank,
                world_size=self.data.env.world_size,
            )
        return {**line["metrics"], "num_images": self.num_images}

    def reference(self) -> tuple[str, Gaussian]:
        """Name and moments of what the images are compared with, computed once.

        FID takes the whole split. rFID takes the originals of the very images that are reconstructed; where these are
        not the whole split, their number is part of the name.
        """
        if self._reference is None:
            split = self.stage.score_split
            whole = self.stage.score_kind == "fid" or self.num_images == len(self.data.split(split))
            if whole:
                self._reference = split, self.data.moments(split, self.extractor)
            else:
                self._reference = (
                    f"{split}{self.num_images}",
                    reference_statistics(
                        self.data.spread_batches(split, self.num_images),
                        self.extractor,
                        num_images=self.num_images,
                        reduce=distributed.all_reduce_sum_,
                        rank=self.data.env.rank,
                        world_size=self.data.env.world_size,
                    ),
                )
        return self._reference

    def keep_best(self, progress: Mapping[str, Any], scores: Mapping[str, Any], validation: Mapping[str, Any]) -> None:
        """Writes `snapshots/best` when the distance is the lowest so far; every rank must call it."""
        if not self.config.keep_best:
            return
        ((name, value),) = [item for item in scores.items() if item[0].startswith(self.stage.score_kind)]
        extra = {BEST: {"metric": name, "value": value, "num_images": self.num_images}}

        if distributed.run_on_main(lambda: math.isfinite(value) and value < self._best_value(name)):
            self.write_snapshot(BEST, progress, {**validation, **scores}, extra)

    def _best_value(self, name: str) -> float:
        """The lowest value so far; infinite when there is none, or one of another metric."""
        if not is_complete(self.best):
            return math.inf
        known = read_metadata(self.best).get(BEST, {})
        return known["value"] if known.get("metric") == name else math.inf


def discard_best_after(snapshots: Path, step: int) -> None:
    """Removes a best snapshot of a later step than the one a run resumes at: that trajectory is given up.

    The steps that are repeated find it again, because nothing before it was better.
    """
    best = snapshots / BEST
    if is_complete(best) and read_metadata(best)["step"] > step:
        remove_directory(best)
