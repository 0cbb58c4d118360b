"""The numbers of a recipe beside what gives them a scale: the floor, unigram codes, nearest training images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.recipes.held_out import held_out_score
from benchmarks.recipes.recipe_table import Recipe
from evaluation.metrics.frechet import FrechetDistance
from evaluation.scores import metric_value, score_images
from runtime.distributed import DistEnv
from runtime.records.metrics_file import METRICS_FILE, read_metrics
from sampling.picture_grids import save_image_file, uint8_grid
from sampling.sampler import SamplingSettings
from sampling.trained_models import config_beside, load_models, resolve_checkpoint
from scoring.scoring_data import Batches, ScoringData, reconstructed
from scoring.settings import FeatureSettings
from scoring.unigram import unigram_images
from training.stages.stage2 import Stage2Config

BATCH_SIZE = 100
PER_PROMPT, SHOWN = 4, 12  # samples of a held-out combination; prompts in the grid


def measure(recipe: Recipe, stage1: Path, stage2: Path, samples: Path, folder: Path) -> dict[str, Any]:
    """One row of the table.

    Args:
        stage1, stage2: snapshots.
        samples: what the sampling script has left, with its `result.json`.
        folder: of the recipe; features and pictures go there.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = config_beside(resolve_checkpoint(stage2), Stage2Config, [])
    models = load_models(stage1, stage2, device, stage1_ema=config.vqvae.ema, stage2_ema=True)
    cache = str(folder / "features")
    data = ScoringData(config.dataset, BATCH_SIZE, DistEnv(0, 1, 0, device, "none"), cache=cache)
    extractor = data.features(FeatureSettings(recipe.features, cache=cache))
    result = json.loads((samples / "result.json").read_text(encoding="utf-8"))
    count = result["num_images"]
    real = {name: data.moments(name, extractor) for name in ("train", "val")}

    def distance(batches: Batches, split: str, num_images: int) -> float:
        metric = FrechetDistance(extractor, {split: real[split]})
        return metric_value(score_images(batches, [metric], extractor, num_images=num_images), "fid", split)

    floor_images = min(count, len(data.split("val")))
    originals = data.spread_float_batches("val", floor_images)
    row: dict[str, Any] = {
        "features": extractor.label,
        "num_samples": count,
        "fid": metric_value(result, "fid", "train"),
        "fid_floor": distance(data.spread_batches("val", floor_images), "train", floor_images),
        "floor_images": floor_images,
        "fid_unigram": distance(unigram_images(models[0], data, count), "train", count),
        "rfid": distance(
            reconstructed(originals, lambda image_BCHW: models[0](image_BCHW.to(device)).recon), "val", floor_images
        ),
        "copies": result.get("neighbours", {}).get("close_share"),
        "accuracy": next((value for name, value in result["metrics"].items() if name.startswith("accuracy")), None),
        "mse": _last(stage1, "val/recon_mse"),
        "nll": _last(stage2, "val/nll"),
        "unigram_nll": _last(stage2, "val/unigram_nll"),
    }
    if recipe.text:
        settings = SamplingSettings(cfg_scale=recipe.cfg_scale, batch_size=BATCH_SIZE)
        row["held_out"], image_SCHW, prompts = held_out_score(
            *models, config.dataset, extractor, settings, per_prompt=PER_PROMPT
        )
        step = max(1, len(prompts) // (PER_PROMPT * SHOWN)) * PER_PROMPT
        starts = range(0, len(prompts), step)[:SHOWN]
        row["held_out_prompts"] = [prompts[start] for start in starts]
        shown_SCHW = image_SCHW[[start + number for number in range(PER_PROMPT) for start in starts]]
        grid_CHW = uint8_grid(shown_SCHW, len(starts), column_labels=row["held_out_prompts"])
        save_image_file(grid_CHW, folder / "held_out.png")
    return row


def _last(snapshot: Path, name: str) -> float | None:
    """The newest validation number of the run behind a snapshot."""
    run = next((folder for folder in (snapshot, *snapshot.parents) if (folder / METRICS_FILE).is_file()), None)
    lines = [] if run is None else read_metrics(run / METRICS_FILE)
    return next((line[name] for line in reversed(lines) if name in line), None)
