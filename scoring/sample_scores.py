"""Scores of freshly drawn samples against a reference, in one pass with their saving.

Legend: N images, F features.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.metrics.accumulators import SampleLedger
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.reference_files import Reference
from evaluation.report import ImageSet, write_report
from evaluation.scores import score_images
from evaluation.statistics import Gaussian
from rqstack.snapshots import weights_digest
from runtime import distributed
from runtime.errors import UserError
from sampling.sampler import Sampler
from scoring.image_source import open_source
from scoring.metric_set import MetricSet
from scoring.reference_loading import load_reference
from scoring.scoring_data import ScoringData, reference_facts, split_name


def check_reference(args: argparse.Namespace) -> None:
    """UserError for a reference that cannot work, before any model is read."""
    if args.report and not args.score:
        raise UserError("--report shows scores, and --no-stats-saving asks for none")
    if not args.reference.endswith(".npz"):
        split_name(args.reference)
    elif args.report:
        raise UserError("--report shows reference images: --reference must be a split of the data set")


def find_reference(
    args: argparse.Namespace, data: ScoringData, extractor: FeatureExtractor, metrics: MetricSet
) -> Reference:
    """A split of the data set, or a file of moments."""
    if args.reference.endswith(".npz"):
        return load_reference(args.reference, extractor)
    return data.reference(
        split_name(args.reference), extractor, metrics.needs_features or args.report, metrics.needs_spatial
    )


def count_samples(batches: Iterator[dict[str, Tensor]], num_samples: int, device: torch.device) -> None:
    """Draws everything without a feature network; exactly N samples, each once, or an error."""
    ledger = SampleLedger(num_samples, device)
    for batch in batches:
        ledger.update(batch["index"])
    ledger.close(distributed.all_reduce_sum_)


def score_samples(
    args: argparse.Namespace,
    batches: Iterator[dict[str, Tensor]],
    data: ScoringData,
    extractor: FeatureExtractor,
    sampler: Sampler,
    num_samples: int,
    directory: Path,
    metrics: MetricSet,
    sampling: dict[str, Any],
    knows_classes: bool,
) -> dict[str, Any]:
    """The metrics asked for, and with the classifier the recognised share; returns the result line.

    Args:
        args: the flags of the script: `reference`, `report`, `seed`, `batch_size`.
        batches: this rank's samples, saved on the way.
        sampling: how they were drawn.
        knows_classes: their `label` is a class of the data set.
    """
    reference = find_reference(args, data, extractor, metrics)
    wanted = metrics.arguments(reference)
    wanted["accuracy"] |= knows_classes and extractor.recognises_labels
    banks: list[Any] = []
    line = score_images(
        batches,
        extractor,
        num_images=num_samples,
        reduce=distributed.all_reduce_sum_,
        rank=data.env.rank,
        world_size=data.env.world_size,
        seed=args.seed,
        sampling=sampling,
        checkpoint=weights_digest(sampler.stage2),
        keep_moments=partial(save_moments, directory),
        keep_bank=banks.append if args.report else None,
        **wanted,
    )
    line |= {
        "dataset": data.config.name,
        "tokenizer": weights_digest(sampler.stage1),
        "reference": reference_facts(reference),
    }
    if args.report and distributed.is_main():
        samples, originals = open_source(str(directory)), partial(data.uint8_batches, reference.name, shared=False)
        line["neighbours"] = write_report(
            directory / "metrics.html",
            line,
            ImageSet(str(directory), banks[0].features_NF, partial(samples.batches, args.batch_size)),
            ImageSet(reference.source, reference.features_NF, originals),
            data.env.device,
        )
    return line


def save_moments(directory: Path, moments: Gaussian) -> None:
    """The features' moments under the names that other FID tools read."""
    if distributed.is_main():
        mu, sigma = moments.mean_F.cpu().numpy(), moments.covariance_FF.cpu().numpy()
        np.savez(directory / "stats.npz", mu=mu, sigma=sigma, num_images=moments.num)
