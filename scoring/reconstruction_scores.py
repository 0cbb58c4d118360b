"""rFID, PSNR, SSIM and LPIPS of one model's reconstructions, from all codes of a position or from the first few.

Legend: B batch, C channels, H W image, D code depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from evaluation.metrics.reconstruction import SSIM_WINDOW, PerceptualDistance, psnr, reconstruction_scores
from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.protocol import metric_name, to_uint8
from evaluation.references.reference_files import Reference
from evaluation.scores import score_images
from rqvae import RQVAE
from rqvae.losses.perceptual import PerceptualLoss
from runtime import distributed
from scoring.scoring_data import Batches, ScoringData, reconstructed

LPIPS_PIXELS = 16


def find_perceptual(resolution: int, device: torch.device) -> tuple[dict[str, PerceptualDistance], str | None]:
    """LPIPS where VGG16's weights are at hand and the images are large enough for it; else nothing, and why."""
    if resolution < LPIPS_PIXELS:
        return {}, f"no LPIPS: images of {resolution} pixels are smaller than {LPIPS_PIXELS}"
    try:
        return {"lpips-vgg": PerceptualLoss().to(device)}, None
    except FileNotFoundError:
        return {}, "no LPIPS: no VGG16 weights at hand"


class PairScores:
    """Means over pairs of originals and reconstructions that pass by; SSIM only for images that hold its window.

    Args:
        reference, detail: parts of the metrics' names.
        perceptual: name -> distance.
    """

    def __init__(
        self, reference: str, detail: str | None, perceptual: Mapping[str, PerceptualDistance], device: torch.device
    ):
        self.reference, self.detail, self.perceptual, self.device = reference, detail, perceptual, device
        self.names = [self._name("psnr", "rgb")]

    def _name(self, kind: str, features: str) -> str:
        return metric_name(kind, features, reference=self.reference, detail=self.detail)

    def begin(self, resolution: int) -> PairScores:
        """Declares the sums, the same on every rank, also on one without images."""
        if resolution >= SSIM_WINDOW:
            self.names += [self._name("ssim", f"gauss{SSIM_WINDOW}")]
            self.names += [self._name(name, "rgb") for name in self.perceptual]
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=self.device)
        return self

    def watch(self, original_BCHW: Tensor, reconstruction_BCHW: Tensor) -> None:
        """Adds uint8 pairs."""
        count = len(original_BCHW)
        if len(self.names) == 1:
            means = {self.names[0]: psnr(original_BCHW, reconstruction_BCHW).mean().item()}
        else:
            means = reconstruction_scores(
                [(original_BCHW, reconstruction_BCHW)],
                num_images=count,
                reference=self.reference,
                detail=self.detail,
                perceptual=self.perceptual,
                device=self.device,
            )
        self.sums += torch.tensor(
            [*(means[name] * count for name in self.names), count], dtype=torch.float64, device=self.device
        )

    def metrics(self) -> dict[str, float]:
        """Means over the images of all ranks; every rank must call it."""
        *sums, count = distributed.all_reduce_sum_(self.sums).tolist()
        return {name: total / count for name, total in zip(self.names, sums)}


def score_reconstructions(
    model: RQVAE,
    data: ScoringData,
    split: str,
    extractor: FeatureExtractor,
    reference: Reference,
    depth: int,
    perceptual: Mapping[str, PerceptualDistance],
    **facts: Any,
) -> dict[str, Any]:
    """The result line of a split that is reconstructed from the first `depth` codes of every position.

    Fewer codes than the model has are part of every name.

    Args:
        facts: further entries of `evaluation.scores.score_images` (seed, sampling, checkpoint).
    """
    detail = None if depth == len(model.quantizer.num_codes) else f"depth{depth}"
    pairs = PairScores(split, detail, perceptual, data.env.device).begin(data.split(split).resolution)

    def decode(image_BCHW: Tensor) -> Tensor:
        return model.decode_code(model.get_codes(image_BCHW)[..., :depth])

    images = _watched(data.float_batches(split), decode, pairs.watch)
    line = score_images(
        images,
        extractor,
        num_images=len(data.split(split)),
        references={split: reference.moments},
        kind="rfid",
        splits=None,
        reduce=distributed.all_reduce_sum_,
        rank=data.env.rank,
        world_size=data.env.world_size,
        **facts,
    )
    name = metric_name("rfid", extractor.label, extractor.resize, split)
    full = metric_name("rfid", extractor.label, extractor.resize, split, detail=detail)
    line["warnings"] = [text.replace(name, full) for text in line["warnings"]]
    line["metrics"] = {full: line["metrics"][name], **pairs.metrics()}
    return line


def _watched(
    batches: Iterable[dict[str, Tensor]], decode: Callable[[Tensor], Tensor], watch: Callable[[Tensor, Tensor], None]
) -> Batches:
    originals: list[Tensor] = []

    def remembered() -> Iterator[dict[str, Tensor]]:
        for batch in batches:
            originals.append(to_uint8(batch["image"]))
            yield batch

    for batch in reconstructed(remembered(), decode):
        watch(originals.pop(), batch["image"])
        yield batch
