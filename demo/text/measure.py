"""The text demo's numbers: how often samples show what their captions ask for, at several guidance scales.

Legend: B batch, N images, C channels, H W image or code grid, D code depth, L caption tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import build_dataset
from data.captions.pair_grammar import Scene, tokenize_pair_caption
from data.captions.synthetic_pairs import SyntheticPairs
from data.noise import permutation
from demo.measure import last_snapshot, last_validation
from demo.text.judge import judge_images, train_judge
from evaluation.protocol import to_uint8
from rqtransformer import RQTransformer, load_rqtransformer
from rqvae import RQVAE, load_rqvae
from sampling.conditions import CaptionConditions
from sampling.sampler import Sampler, SamplingSettings
from sampling.trained_models import config_beside
from training.stages.stage2 import Stage2Config

SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
HEADLINE_SCALE = 3.0
BATCH_SIZE = 100
PROMPTS = (
    "a large red circle above a small blue square",
    "a small yellow triangle left of a large green cross",
    "a large white square right of a small red triangle",
    "a small magenta cross below a large yellow circle",
)
PROMPT_IMAGES = 8
ORDER_KEY = 0


class TextModel:
    """The two trained stages: captions in, images out.

    Args:
        stage1, stage2: run directories; the newest snapshot of each is taken.
    """

    def __init__(self, stage1: Path, stage2: Path):
        snapshot = last_snapshot(stage2)
        self.tokenizer: RQVAE = load_rqvae(last_snapshot(stage1))
        self.transformer: RQTransformer = load_rqtransformer(snapshot)
        self.dataset_config = config_beside(snapshot, Stage2Config, []).dataset

    def draw(self, captions: Sequence[str], cfg_scale: float, seed: int = 0) -> Tensor:
        """One sample for each caption: uint8 (N, C, H, W)."""
        length = self.transformer.config.block_size_cond
        conditions = CaptionConditions(torch.tensor([tokenize_pair_caption(text, length) for text in captions]))
        settings = SamplingSettings(cfg_scale=cfg_scale, seed=seed, batch_size=BATCH_SIZE)
        sampler = Sampler(self.tokenizer, self.transformer, conditions, settings)
        return torch.cat([batch["image"] for batch in sampler.images(len(captions))])

    @torch.no_grad()
    def reconstruct(self, image_NCHW: Tensor) -> Tensor:
        """Float images in [-1, 1] -> uint8 reconstructions."""
        return torch.cat([to_uint8(self.tokenizer(image_BCHW).recon) for image_BCHW in image_NCHW.split(BATCH_SIZE)])


def held_out_scenes(val: SyntheticPairs, count: int) -> list[Scene]:
    """`count` different scenes (or all, if fewer) that no training caption describes, in an order without pattern."""
    scenes = val.all_scenes()
    return [scenes[int(i)] for i in permutation(len(scenes), ORDER_KEY)[:count]]


def measure(stage1: Path, stage2: Path, num_captions: int, judge_images_seen: int) -> dict[str, Any]:
    """Everything in `summary.json` but the times.

    Args:
        stage1, stage2: run directories.
        num_captions: held-out captions, each drawn once at every scale.
        judge_images_seen: training images of the judge.
    """
    model = TextModel(stage1, stage2)
    train, val = (build_dataset(model.dataset_config, split) for split in ("train", "val"))
    assert isinstance(train, SyntheticPairs) and isinstance(val, SyntheticPairs)
    judge = train_judge(train, judge_images_seen)
    index_N = np.arange(min(num_captions, len(val)))
    real_NCHW, shown = val.fetch(index_N, None)["image"], val.scenes(index_N)
    asked = held_out_scenes(val, num_captions)
    captions = [scene.caption() for scene in asked]
    sweep = []
    for scale in SCALES:
        image_NCHW = model.draw(captions, scale)
        # the captions follow each other at random: a sample beside its neighbour's caption is a guess
        by_chance = judge_images(judge, image_NCHW, asked[1:] + asked[:1])
        sweep.append({"cfg_scale": scale, "found": judge_images(judge, image_NCHW, asked), "by_chance": by_chance})
    reconstructed_NCHW = model.reconstruct(real_NCHW.float() / 127.5 - 1)
    validation1, validation2 = last_validation(stage1), last_validation(stage2)
    return {
        "cfg_scale": HEADLINE_SCALE,
        "samples": next(line["found"] for line in sweep if line["cfg_scale"] == HEADLINE_SCALE),
        "by_chance": next(line["by_chance"] for line in sweep if line["cfg_scale"] == HEADLINE_SCALE),
        "real_images": judge_images(judge, real_NCHW, shown),
        "reconstructions": judge_images(judge, reconstructed_NCHW, shown),
        "sweep": sweep,
        "num_captions": len(captions),
        "num_real_images": len(real_NCHW),
        "recon_mse": validation1["val/recon_mse"],
        "nll_by_depth": validation2["val/nll_by_depth"],
        "unigram_nll_by_depth": validation2["val/unigram_nll_by_depth"],
        "uniform_nll": validation2["val/uniform_nll"],
    }
