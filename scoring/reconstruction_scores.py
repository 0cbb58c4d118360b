"""rFID, PSNR, SSIM and LPIPS of one model's reconstructions, from all codes of a position or from the first few.

Legend: B batch, C channels, H W image, D code depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.reconstruction import PairSimilarity, PerceptualDistance
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.references.reference_files import Reference
from evaluation.scores import Origin, score_images
from rqvae import RQVAE
from rqvae.losses.perceptual import PerceptualLoss
from scoring.scoring_data import ScoringData, ranks_of, reconstructed

LPIPS_PIXELS = 16


def find_perceptual(
    resolution: tuple[int, int], device: torch.device
) -> tuple[dict[str, PerceptualDistance], str | None]:
    """LPIPS where VGG16's weights are at hand and the images are large enough for it; else nothing, and why."""
    if min(resolution) < LPIPS_PIXELS:
        return {}, f"no LPIPS: images of {resolution[1]}x{resolution[0]} pixels are smaller than {LPIPS_PIXELS}"
    try:
        return {"lpips-vgg": PerceptualLoss().to(device)}, None
    except FileNotFoundError:
        return {}, "no LPIPS: no VGG16 weights at hand"


def score_reconstructions(
    model: RQVAE,
    data: ScoringData,
    extractor: FeatureExtractor,
    reference: Reference,
    depth: int,
    perceptual: Mapping[str, PerceptualDistance],
    origin: Origin,
) -> dict[str, Any]:
    """The result line of a split that is reconstructed from the first `depth` codes of every position.

    Fewer codes than the model has are part of every name.

    Args:
        reference: of the split, unreconstructed; its name is that of the split.
        perceptual: name -> distance.
    """
    split, device = reference.name, data.env.device
    detail = None if depth == len(model.quantizer.num_codes) else f"depth{depth}"

    def decode(image_BCHW: Tensor) -> Tensor:
        return model.decode_code(model.get_codes(image_BCHW)[..., :depth])

    metrics = [
        FrechetDistance(extractor, {split: reference.moments}, "rfid", detail),
        PairSimilarity(split, min(data.split(split).resolution), detail, perceptual, device),
    ]
    return score_images(
        reconstructed(data.float_batches(split), decode),
        metrics,
        extractor,
        num_images=len(data.split(split)),
        ranks=ranks_of(data.env),
        origin=origin,
    )
