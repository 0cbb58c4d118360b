"""The demo's numbers: what the logs and the sampling script measured, and the baselines that give them a scale.

Legend: B batch, H W code grid, D code depth, K codebook size, N images.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics.frechet import FrechetDistance, frechet_between
from evaluation.networks.feature_networks import build_features
from evaluation.scores import metric_value, score_images
from rqstack.archive import newest_snapshot
from rqvae import load_rqvae
from runtime.distributed import DistEnv
from runtime.records.metrics_file import METRICS_FILE, read_metrics
from sampling.trained_models import config_beside
from scoring.scoring_data import ScoringData, reconstructed
from scoring.unigram import unigram_images
from training.stages.stage1 import Stage1Config

BATCH_SIZE = 200


def measure(stage1: Path, stage2: Path, sampling: Path, classifier_cache: Path) -> dict[str, Any]:
    """Everything in `summary.json` but the times.

    Args:
        stage1, stage2: run directories.
        sampling: result directory of `main_sampling_fid.py` with the classifier's features.
        classifier_cache: where that script left the classifier.
    """
    result = json.loads((sampling / "result.json").read_text(encoding="utf-8"))
    validation1, validation2 = last_validation(stage1), last_validation(stage2)
    snapshot = last_snapshot(stage1)
    model = load_rqvae(snapshot)
    env = DistEnv(0, 1, 0, torch.device("cpu"), "none")
    data = ScoringData(config_beside(snapshot, Stage1Config, []).dataset, BATCH_SIZE, env)
    extractor = build_features(
        "classifier",
        train=lambda: data.uint8_batches("train"),
        validation=lambda: data.uint8_batches("val"),
        num_classes=data.split("train").num_classes,
        cache_dir=classifier_cache,
    )
    train, val, num_val = data.moments("train", extractor), data.moments("val", extractor), len(data.split("val"))

    def distance_to_train(images: Iterable[dict[str, Tensor]], num_images: int) -> float:
        line = score_images(images, [FrechetDistance(extractor, {"train": train})], extractor, num_images=num_images)
        return metric_value(line, "fid", "train")

    def rfid(depth: int) -> float:
        images = reconstructed(
            data.float_batches("val"), lambda image: model.decode_code(model.get_codes(image)[..., :depth])
        )
        line = score_images(images, [FrechetDistance(extractor, {"val": val}, "rfid")], extractor, num_images=num_val)
        return metric_value(line, "rfid", "val")

    num_samples = result["num_images"]
    return {
        "sample_accuracy": metric_value(result, "accuracy"),
        "recon_mse_by_depth": validation1["val/recon_mse_by_depth"],
        "rfid_by_depth": [rfid(depth) for depth in range(1, len(model.quantizer.num_codes) + 1)],
        "code_usage_by_depth": validation1["val/used_fraction_by_depth"],
        "nll_by_depth": validation2["val/nll_by_depth"],
        "unigram_nll_by_depth": validation2["val/unigram_nll_by_depth"],
        "uniform_nll": validation2["val/uniform_nll"],
        "fid_samples": metric_value(result, "fid", "train"),
        "fid_floor": frechet_between(val, train),
        "fid_unigram": distance_to_train(unigram_images(model, data, num_samples), num_samples),
        "num_samples": num_samples,
        "num_validation": num_val,
        "features": result["features"]["name"],
    }


def last_snapshot(run: Path) -> Path:
    """The newest snapshot of a run that ended well."""
    snapshot = newest_snapshot(run)
    assert snapshot is not None
    return snapshot


def last_validation(run: Path) -> dict[str, Any]:
    """The newest line of validation metrics of a run."""
    return [line for line in read_metrics(run / METRICS_FILE) if any(name.startswith("val/") for name in line)][-1]
