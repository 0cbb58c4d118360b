"""Scores of saved images, against a reference or against their captions.

Legend: N images, F features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.metrics.classification_accuracy import classification_accuracy_score
from evaluation.metrics.feature_bank import FeatureBank
from evaluation.networks.clip_features import ClipFeatures
from evaluation.references.reference_files import Reference
from evaluation.report import ImageSet, write_report
from evaluation.scores import Origin, score_images
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError
from scoring.comparison import Comparison
from scoring.image_source import ImageSource
from scoring.metric_set import MetricInputs, MetricSet
from scoring.result_lines import line_of_captions, named_by_sampling, reference_facts
from scoring.scoring_data import ranks_of

RUN_FACTS = ("seed", "sampling", "checkpoint", "tokenizer", "dataset")


@dataclass(frozen=True)
class SavedScores:
    """Saved images and what is asked about them.

    Args:
        fake_path: the images, as the user wrote it.
        samples: the same, opened.
        labelled: they have classes.
        clip, captions: of the CLIP score.
    """

    fake_path: str
    samples: ImageSource
    labelled: bool
    metrics: MetricSet
    env: DistEnv
    batch_size: int
    clip: ClipFeatures | None = None
    captions: Sequence[str] = ()

    def against_captions(self) -> dict[str, Any]:
        """The result line of images that are compared with nothing but their captions."""
        inputs = MetricInputs(len(self.samples), clip=self.clip, captions=self.captions)
        batches = self.samples.batches(self.batch_size, self.env.rank, self.env.world_size)
        line = score_images(
            batches, self.metrics.build(inputs).values(), num_images=len(self.samples), ranks=ranks_of(self.env)
        )
        found = run_facts(Path(self.fake_path).expanduser())
        return line_of_captions(line, {"fake_path": self.fake_path, **found, "seconds": line["seconds"]})

    def against(self, comparison: Comparison, page: Path | None = None) -> dict[str, Any]:
        """The result line of everything that needs a reference; where a `page` is given, the report too.

        Raises:
            UserError: the images, the reference or the feature network do not hold what a metric needs.
        """
        self._check(comparison, page)
        extractor = comparison.features()
        self.metrics.check(extractor)
        keeps_features = self.metrics.keeps_features or page is not None
        reference = comparison.reference(extractor, keeps_features, self.metrics.keeps_spatial)
        train = self._training(comparison) if "cas" in self.metrics else None
        inputs = MetricInputs(
            len(self.samples), extractor, reference, self.clip, self.captions, train, self.samples.numbered
        )
        metrics = list(self.metrics.build(inputs).values())
        bank = None if page is None else FeatureBank(extractor.dim, len(self.samples), extractor.device)
        facts = {
            "fake_path": self.fake_path,
            "ref_dataset": comparison.spec,
            "reference": reference_facts(reference),
            "mixed_sizes": comparison.config.mixed_sizes,
            "unreadable": 0,
        }
        line = score_images(
            self.samples.batches(self.batch_size, self.env.rank, self.env.world_size),
            metrics if bank is None else [*metrics, bank],
            extractor,
            num_images=len(self.samples),
            ranks=ranks_of(self.env),
            origin=Origin.of(run_facts(Path(self.fake_path).expanduser()) | facts),
        )
        line = named_by_sampling(line)
        line["unreadable"] = len(self.samples.skipped)  # known when all were read
        if page is not None and bank is not None and self.env.is_main:
            line["neighbours"] = self._write_report(page, line, bank, comparison, reference)
        return line

    def _check(self, comparison: Comparison, page: Path | None) -> None:
        if page is not None and comparison.images is None:
            raise UserError(f"--report shows reference images, and {comparison.spec} holds none")
        self.metrics.check_name(comparison.settings.name)
        if self.metrics.labelled and not self.labelled:
            raise UserError(
                f"metrics={self.metrics.labelled[0]} needs the classes of the samples: files such as "
                "000012_class7.png, or an array `labels`"
            )

    def _training(self, comparison: Comparison) -> Callable[[], dict[str, float]]:
        """Trains the classifier on the samples and tests it on the reference images, when it is called."""
        images, num_classes = comparison.images, comparison.num_classes
        if images is None or num_classes is None:
            raise UserError("metrics=cas needs ref_dataset to be a data set or images with classes")
        return lambda: distributed.run_on_main(
            lambda: classification_accuracy_score(
                self.samples.batches(self.batch_size),
                images(shared=False),
                num_classes,
                reference=comparison.name,
                cache_dir=comparison.settings.cache,
            )
        )

    def _write_report(
        self, page: Path, line: dict[str, Any], bank: FeatureBank, comparison: Comparison, reference: Reference
    ) -> dict[str, float]:
        assert reference.features_NF is not None and comparison.images is not None
        return write_report(
            page,
            line,
            ImageSet(self.fake_path, bank.features_NF, partial(self.samples.batches, self.batch_size)),
            ImageSet(reference.source, reference.features_NF, partial(comparison.images, shared=False)),
            self.env.device,
            comparison.data.split("train").class_names if comparison.data is not None else (),
        )


def run_facts(path: Path) -> dict[str, Any]:
    """Seed, settings and hashes that a sampling run wrote beside its images; nothing for other images."""
    for folder in (path, path.parent):
        file = folder / "result.json"
        if file.is_file():
            written = json.loads(file.read_text(encoding="utf-8"))
            return {name: written[name] for name in RUN_FACTS if name in written}
    return {}
