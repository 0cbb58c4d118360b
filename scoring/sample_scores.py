"""Scores of freshly drawn samples, in one pass with their saving.

Legend: N images, F features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.metric import Metric
from evaluation.networks.clip_features import ClipFeatures
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.reference_files import Reference
from evaluation.report import ImageSet, write_report
from evaluation.scores import Origin, accumulate, score_images
from evaluation.statistics import Gaussian
from rqstack.snapshots import weights_digest
from runtime import distributed
from runtime.errors import UserError
from scoring.image_source import open_source
from scoring.metric_set import MetricInputs, MetricSet
from scoring.reference_loading import load_reference
from scoring.result_lines import line_of_captions, named_by_sampling, reference_facts
from scoring.scoring_data import ScoringData, ranks_of, split_name


@dataclass(frozen=True)
class Comparing:
    """What samples are compared with.

    Args:
        reference: a split of the data set, or an `.npz` file of moments.
        report: also write `metrics.html`, which shows reference images.
    """

    reference: str
    report: bool = False

    def check(self, score: bool = True) -> None:
        """UserError for what cannot work, before any model is read; `score`: whether scores are asked for at all."""
        if self.report and not score:
            raise UserError("--report shows scores, and --no-stats-saving asks for none")
        if not self.is_file:
            split_name(self.reference)
        elif self.report:
            raise UserError("--report shows reference images: --reference must be a split of the data set")

    @property
    def is_file(self) -> bool:
        """Whether it is a file, and not a split."""
        return self.reference.endswith(".npz")

    def find(self, data: ScoringData, extractor: FeatureExtractor, metrics: MetricSet) -> Reference:
        """The reference, with what the metrics and the report need of it."""
        if self.is_file:
            return load_reference(self.reference, extractor)
        name = split_name(self.reference)
        return data.reference(name, extractor, metrics.keeps_features or self.report, metrics.keeps_spatial)


@dataclass(frozen=True)
class SampleSet:
    """Samples on their way to disk.

    Args:
        num: N over all ranks.
        directory: where they are saved.
        seed, sampling: how they are drawn.
        stage1, stage2: the models.
    """

    num: int
    directory: Path
    seed: int
    sampling: dict[str, Any]
    stage1: nn.Module
    stage2: nn.Module

    def origin(self) -> dict[str, Any]:
        """For the result line, with the hashes of the weights."""
        return {
            "seed": self.seed,
            "sampling": self.sampling,
            "checkpoint": weights_digest(self.stage2),
            "tokenizer": weights_digest(self.stage1),
        }


class SampleScores:
    """Draws samples to the end and scores them.

    Args:
        metrics: which; none just counts.
        comparing, extractor: of the metrics that compare features; None where there is none.
        clip, captions: of the CLIP score.
        labelled: the samples' `label` is a class of the data set.
    """

    def __init__(
        self,
        metrics: MetricSet,
        data: ScoringData,
        comparing: Comparing,
        extractor: FeatureExtractor | None = None,
        clip: ClipFeatures | None = None,
        captions: Sequence[str] = (),
        labelled: bool = False,
    ) -> None:
        self.metrics, self.data, self.comparing = metrics, data, comparing
        self.extractor, self.clip, self.captions, self.labelled = extractor, clip, captions, labelled
        if extractor is not None and extractor.recognises_labels and labelled:
            self.metrics = metrics | MetricSet(("accuracy",))

    def line(self, batches: Iterable[dict[str, Tensor]], samples: SampleSet) -> dict[str, Any] | None:
        """The result line; None where nothing is asked for, and then exactly N samples were drawn all the same."""
        ranks = ranks_of(self.data.env)
        if not self.metrics.names:
            accumulate(batches, None, (), samples.num, ranks)
            return None
        if self.extractor is None:
            inputs = MetricInputs(samples.num, clip=self.clip, captions=self.captions)
            line = score_images(batches, self.metrics.build(inputs).values(), num_images=samples.num, ranks=ranks)
            return line_of_captions(line, samples.origin())
        reference = self.comparing.find(self.data, self.extractor, self.metrics)
        inputs = MetricInputs(samples.num, self.extractor, reference, self.clip, self.captions)
        named = self.metrics.build(inputs)
        metrics: list[Metric] = list(named.values())
        bank = FeatureBank(self.extractor.dim, samples.num, self.extractor.device) if self.comparing.report else None
        origin = Origin.of(
            {
                "dataset": self.data.config.name,
                **({"credit": credit} if (credit := self.data.credit) else {}),
                **samples.origin(),
                "reference": reference_facts(reference),
            }
        )
        line = score_images(
            batches,
            metrics if bank is None else [*metrics, bank],
            self.extractor,
            num_images=samples.num,
            ranks=ranks,
            origin=origin,
        )
        line = named_by_sampling(line)
        if isinstance(distance := named.get("fid"), FrechetDistance):
            save_moments(samples.directory, distance.statistics.gaussian())
        if bank is not None and distributed.is_main():
            line["neighbours"] = self._write_report(samples.directory, line, bank, reference)
        return line

    def _write_report(
        self, directory: Path, line: dict[str, Any], bank: FeatureBank, reference: Reference
    ) -> dict[str, float]:
        assert reference.features_NF is not None
        names = self.data.split("train").class_names if self.labelled else ()
        saved, originals = open_source(str(directory)), partial(self.data.uint8_batches, reference.name, shared=False)
        return write_report(
            directory / "metrics.html",
            line,
            ImageSet(str(directory), bank.features_NF, partial(saved.batches, self.data.batch_size), names),
            ImageSet(reference.source, reference.features_NF, originals),
            self.data.env.device,
            self.data.split("train").class_names,
        )


def save_moments(directory: Path, moments: Gaussian) -> None:
    """The features' moments under the names that other FID tools read."""
    if distributed.is_main():
        mu, sigma = moments.mean_F.cpu().numpy(), moments.covariance_FF.cpu().numpy()
        np.savez(directory / "stats.npz", mu=mu, sigma=sigma, num_images=moments.num)
