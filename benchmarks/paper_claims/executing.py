"""Runs are executed by what the scripts are made of: the training session of both stages, the sampler, the scores.

Legend: B batch, C channels, H W image, N images, F features, D code depth.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper_claims.runs import Run
from data import DatasetConfig
from evaluation.metrics.feature_bank import FeatureBank
from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.manifold import ManifoldOverlap
from evaluation.metrics.metric import Metric
from evaluation.metrics.recognition import RecognitionAccuracy
from evaluation.networks.class_judge import FeatureJudge
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.scores import metric_value, score_images
from measure_throughput.experiment import Experiment
from measure_throughput.measure import time_loops
from rqvae import RQVAE, load_rqvae
from runtime.distributed import DistEnv
from runtime.processes.system import load_average
from runtime.records.metrics_file import METRICS_FILE, read_metrics
from runtime.rundir import latest_run
from sampling.conditions import ClassConditions
from sampling.rejection import RejectionPlan, RejectionSampler
from sampling.sampler import Sampler, SamplingSettings
from sampling.trained_models import load_models, resolve_checkpoint
from scoring.scoring_data import ScoringData, reconstructed
from scoring.settings import FeatureSettings
from training.launch import LaunchSettings, Session
from training.launch.flags import training_parser
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

BATCH_SIZE = 200  # of scores and samples
SPEED_ROUNDS = 5
SPREAD = "train-spread"  # as many training images as there are samples: precision and recall compare equal numbers


class Workplace:
    """Where models of runs are kept and their results measured.

    Args:
        folder: of the models; a run whose training was cut short goes on there.
        dataset: of the scores.
        env: the process.
    """

    def __init__(self, folder: Path, dataset: DatasetConfig, env: DistEnv) -> None:
        self.folder, self.dataset, self.env = folder, dataset, env
        self.data = ScoringData(dataset, BATCH_SIZE, env, cache=folder / "classifiers")

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The classifier of the data set."""
        return self.data.features(FeatureSettings("classifier", cache=str(self.folder / "classifiers")))

    def reference_features(self, num_images: int) -> Tensor:
        """Features (N, F) of real training images, spread over the split."""
        bank = FeatureBank(self.extractor.dim, num_images, self.env.device)
        score_images(self.data.spread_batches("train", num_images), [bank], self.extractor, num_images=num_images)
        return bank.features_NF

    def run_dir(self, run: Run, key: str) -> Path:
        """The run directory of a trained model."""
        made = latest_run(self.folder / key, Path(_config_of(run)).stem)
        assert made is not None, f"{run} was trained"
        return made


def execute(run: Run, place: Workplace, key_of: Any) -> dict[str, Any]:
    """The numbers of a run. The models it needs have been trained in the same workplace.

    Args:
        key_of: run -> the name of its folder.
    """
    if run.kind == "stage1":
        return _train_stage1(run, place, key_of(run))
    if run.kind == "stage2":
        return _train_stage2(run, place, key_of)
    if run.kind == "samples":
        (stage2,) = run.needs
        return _score_samples(run, stage2, place, key_of)
    return _measure_speed(run, place, key_of)


def is_trained(run: Run, place: Workplace, key: str) -> bool:
    """Whether the model of a run of training stands in the workplace, trained to its end."""
    made = latest_run(place.folder / key, Path(_config_of(run)).stem) if (place.folder / key).is_dir() else None
    return made is not None and (made.parent.parent / "done").is_file()


def _config_of(run: Run) -> str:
    return {"stage1": run.size.stage1, "stage2": run.size.stage2}[run.kind]


def _session(run: Run, place: Workplace, key: str, schema: Any, stage: Any, values: dict[str, Any]) -> Session[Any]:
    """The training session of a run; one that was cut short goes on."""
    words = [*run.changes, *([f"dataset.root={place.dataset.root}"] if place.dataset.root else [])]
    args = training_parser("").parse_args(
        ["-m", _config_of(run), "-r", str(place.folder / key), "--seed", str(run.seed), "--auto-resume", *words]
    )
    return Session(schema, stage, LaunchSettings.from_flags(args, values))


def _train_stage1(run: Run, place: Workplace, key: str) -> dict[str, Any]:
    session = _session(run, place, key, Stage1Config, Stage1, {})
    with session.log:
        session.train()
        train = session.stage.evaluate(session.batches(session.train_set))
    (place.folder / key / "done").touch()
    lines = read_metrics(session.run_dir / METRICS_FILE)
    windows = [line["train/loss_recon"] for line in lines if "train/loss_recon" in line]
    val = next(line for line in reversed(lines) if "val/recon_mse" in line)
    scored = dict(run.settings)["scored"]
    return {
        "mse": val["val/recon_mse"],
        "mse_by_depth": val["val/recon_mse_by_depth"],
        "used": statistics.mean(val["val/used_fraction_by_depth"]),
        "perplexity": statistics.mean(val["val/perplexity_by_depth"]),
        "mse_training": windows[-1],
        "mse_train_split": train["recon_mse"],
        "gap": train["recon_mse"] / windows[-1],
        "rfid": _rfid(load_rqvae(resolve_checkpoint(session.run_dir)), place, scored),
    }


def _rfid(model: RQVAE, place: Workplace, num_images: int) -> float:
    real = place.data.moments("val", place.extractor)
    line = score_images(
        reconstructed(
            place.data.spread_float_batches("val", num_images),
            lambda image_BCHW: model.decode_code(model.get_codes(image_BCHW)),
        ),
        [FrechetDistance(place.extractor, {"val": real}, "rfid")],
        place.extractor,
        num_images=num_images,
    )
    return metric_value(line, "rfid", "val")


def _train_stage2(run: Run, place: Workplace, key_of: Any) -> dict[str, Any]:
    (stage1,) = run.needs
    tokenizer = place.run_dir(stage1, key_of(stage1))
    session = _session(run, place, key_of(run), Stage2Config, Stage2, {"vqvae.ckpt": str(tokenizer)})
    with session.log:
        session.train()
    (place.folder / key_of(run) / "done").touch()
    lines = read_metrics(session.run_dir / METRICS_FILE)
    val = next(line for line in reversed(lines) if "val/nll" in line)
    return {
        "nll": val["val/nll"],
        "nll_by_depth": val["val/nll_by_depth"],
        "unigram_nll": val["val/unigram_nll"],
        **_score_samples(run, run, place, key_of),
    }


def _score_samples(run: Run, stage2: Run, place: Workplace, key_of: Any) -> dict[str, Any]:
    """FID and its kin of samples drawn as the settings of `run` say, from the model of `stage2`."""
    settings = dict(run.settings)
    num_images = settings["scored"]
    (stage1,) = stage2.needs
    models = load_models(place.run_dir(stage1, key_of(stage1)), place.run_dir(stage2, key_of(stage2)), place.env.device)
    conditions = ClassConditions(models[1].config.vocab_size_cond)
    draws = SamplingSettings(cfg_scale=settings.get("cfg_scale"), seed=run.seed, batch_size=BATCH_SIZE)
    sampler = Sampler(*models, conditions, draws)
    batches = sampler.images(num_images)
    if (keep := settings.get("reject_keep")) is not None:
        plan = RejectionPlan(num_images, conditions.num, keep)
        batches = RejectionSampler(plan, sampler, FeatureJudge(place.extractor, conditions.num)).images()
    return _sample_scores(batches, place, num_images)


def _sample_scores(batches: Iterable[dict[str, Tensor]], place: Workplace, num_images: int) -> dict[str, float]:
    extractor = place.extractor
    metrics: list[Metric] = [
        FrechetDistance(extractor, {"train": place.data.moments("train", extractor)}),
        InceptionScore(extractor, num_images),
        RecognitionAccuracy(extractor),
        ManifoldOverlap(extractor, {SPREAD: place.reference_features(num_images)}),
    ]
    line = score_images(batches, metrics, extractor, num_images=num_images)
    value = partial(metric_value, line)
    return {
        "fid": value("fid", "train"),
        "is": value("is"),
        "accuracy": value("accuracy"),
        "precision": value("precision", SPREAD),
        "recall": value("recall", SPREAD),
    }


def _measure_speed(run: Run, place: Workplace, key_of: Any) -> dict[str, Any]:
    """Milliseconds per sample of every model that the run needs: they take turns, medians over the rounds."""
    experiment = Experiment(batch_size=BATCH_SIZE, n_loop=2, warmup=1, samples=BATCH_SIZE, device=str(place.env.device))
    models = {
        stage2.label: load_models(
            place.run_dir(stage2.needs[0], key_of(stage2.needs[0])),
            place.run_dir(stage2, key_of(stage2)),
            place.env.device,
        )
        for stage2 in run.needs
    }
    times: dict[str, list[tuple[float, float]]] = {label: [] for label in models}
    with torch.no_grad():
        for _ in range(SPEED_ROUNDS):
            for label, (stage1, stage2) in models.items():
                times[label].append(time_loops(experiment, stage1.eval(), stage2.eval()))
    result: dict[str, Any] = {}
    for label, rounds in times.items():
        drawn, decoded = (1e3 / BATCH_SIZE * statistics.median(part) for part in zip(*rounds, strict=True))
        result[label] = {"ms": drawn + decoded, "ms_codes": drawn, "ms_pixels": decoded}
        result[label]["parameters"] = sum(parameter.numel() for parameter in models[label][1].parameters())
    return result | {"load": load_average()}
