"""Prompts never seen in training: do samples have the gender and the skin tone that were asked for?

Every held-out combination of role, gender and skin tone is asked for by its caption. A sample shows what the drawing
shows that is nearest to it, in features, among all drawings of the same role. Beside it: chance (one drawing of the
role at random), and the held-out drawings themselves after the tokenizer, which no sample can be expected to surpass.

Axes: B batch, C channels, H W image, N images, F features, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data import DatasetConfig, build_dataset
from data.captions.emoji_names import Combination
from data.captions.openmoji import OpenMoji
from data.dataset import to_float_batch
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import to_uint8
from rqtransformer import RQTransformer
from rqvae import RQVAE
from sampling.conditions import CaptionConditions
from sampling.sampler import Sampler, SamplingSettings

BATCH_SIZE = 50
PARTS = ("gender", "tone")


def held_out_score(
    stage1: RQVAE,
    stage2: RQTransformer,
    dataset: DatasetConfig,
    extractor: FeatureExtractor,
    settings: SamplingSettings,
    per_prompt: int,
) -> tuple[dict[str, Any], Tensor, list[str]]:
    """The score, the samples (S, C, H, W) uint8 and their captions.

    Args:
        dataset: with its tokenizer.
        per_prompt: samples of every held-out combination.
    """
    train, val = (build_dataset(dataset, split) for split in ("train", "val"))
    assert isinstance(train, OpenMoji) and isinstance(val, OpenMoji) and val.tokenizer is not None
    drawn: list[Combination] = []
    images, asked, captions = [], [], []
    for split in (train, val):
        combinations = split.combinations()
        index = [number for number, one in enumerate(combinations) if one is not None]
        drawn += [one for one in combinations if one is not None]
        images.append(split.image_NCHW[index])
        if split is val:
            asked = [one for one in combinations if one is not None]
            captions = split.captions(index)
    real_NCHW = torch.cat(images)
    features_NF = _features(extractor, real_NCHW)
    prompts = [caption for caption in captions for _ in range(per_prompt)]
    conditions = CaptionConditions(val.tokenizer.encode_batch(prompts))
    sampler = Sampler(stage1, stage2, conditions, settings)
    sample_SCHW = torch.cat([batch["image"].cpu() for batch in sampler.images(len(prompts))])
    through_NCHW = _reconstructed(stage1, images[1], extractor.device)
    repeated = [one for one in asked for _ in range(per_prompt)]
    score = {
        "prompts": len(asked),
        "samples": len(prompts),
        "shown": agreement(_features(extractor, sample_SCHW), repeated, features_NF, drawn),
        "chance": chance(asked, drawn),
        "credit": val.credit,
        "real_through_tokenizer": agreement(_features(extractor, through_NCHW), asked, features_NF, drawn),
    }
    return score, sample_SCHW, prompts


def agreement(
    features_SF: Tensor, asked: Sequence[Combination], features_NF: Tensor, drawn: Sequence[Combination]
) -> dict[str, float]:
    """Share of samples whose nearest drawing of the same role has the asked gender, the asked tone, and both."""
    hits = {name: 0 for name in (*PARTS, "both")}
    for features_F, one in zip(features_SF, asked, strict=True):
        places = [number for number, other in enumerate(drawn) if other.role == one.role]
        nearest = drawn[places[int((features_NF[places] - features_F).square().sum(1).argmin())]]
        found = {name: getattr(nearest, name) == getattr(one, name) for name in PARTS}
        for name, hit in {**found, "both": all(found.values())}.items():
            hits[name] += hit
    return {name: count / len(asked) for name, count in hits.items()}


def chance(asked: Sequence[Combination], drawn: Sequence[Combination]) -> dict[str, float]:
    """The same where any drawing of the role is as likely as any other."""
    shares = {name: 0.0 for name in (*PARTS, "both")}
    for one in asked:
        others = [other for other in drawn if other.role == one.role]
        for name in PARTS:
            shares[name] += sum(getattr(other, name) == getattr(one, name) for other in others) / len(others)
        shares["both"] += sum(other == one for other in others) / len(others)
    return {name: share / len(asked) for name, share in shares.items()}


def _features(extractor: FeatureExtractor, image_NCHW: Tensor) -> Tensor:
    return torch.cat([extractor(image_BCHW)[0].cpu() for image_BCHW in image_NCHW.split(BATCH_SIZE)])


@torch.no_grad()
def _reconstructed(stage1: RQVAE, image_NCHW: Tensor, device: torch.device) -> Tensor:
    parts = [to_float_batch({"image": part.to(device)})["image"] for part in image_NCHW.split(BATCH_SIZE)]
    return torch.cat([to_uint8(stage1(part).recon).cpu() for part in parts])
