"""How close reconstructions are to their originals, image by image: PSNR, SSIM, and perceptual distances as a hook.

Axes: B batch, C channels, H W image, P positions of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics.metric import Metric, MetricResult, ScoredBatch, WholeSet
from evaluation.protocol import check_uint8_images, from_uint8, metric_name
from evaluation.statistics import Reduce, no_reduce

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
HIGHEST_PSNR = 100.0

PerceptualDistance = Callable[[Tensor, Tensor], Tensor]
"""Two batches of float32 images (B, 3, H, W) in [-1, 1] -> distances (B,), or anything that flattens to that."""


def psnr(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of uint8 images in decibels, (B,) float64: 10 log10(255^2 / mean squared error).

    The mean is over all channels and pixels of an image. Equal images, which have no finite value, get 100 dB; no
    other value passes that.

    Raises:
        ValueError: images that are not uint8, or of different shapes.
    """
    first_BCHW, second_BCHW = _pair(first_BCHW, second_BCHW)
    error_B = (first_BCHW.double() - second_BCHW.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error_B)).clamp(max=HIGHEST_PSNR)


def ssim(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """Structural similarity of uint8 images, (B,) float64 (Wang et al. 2004, Eq. 13).

    Gaussian window of 11 x 11 with deviation 1.5, K1 = 0.01, K2 = 0.03, dynamic range 255, weighted (not unbiased)
    variances, windows inside the image only; the mean over windows and the three channels.

    Raises:
        ValueError: see `psnr`; or images smaller than the window.
    """
    first_BCHW, second_BCHW = _pair(first_BCHW, second_BCHW)
    if min(first_BCHW.shape[2:]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {tuple(first_BCHW.shape[2:])}"
        )
    x, y = first_BCHW.double() / 255, second_BCHW.double() / 255
    mean_x, mean_y, square_x, square_y, product = (_blurred(t) for t in (x, y, x * x, y * y, x * y))
    variance_x, variance_y = square_x - mean_x.square(), square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def _blurred(image_BCHW: Tensor) -> Tensor:
    """Gaussian-weighted means over all windows inside the image; one axis after the other."""
    offset_P = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=image_BCHW.device) - SSIM_WINDOW // 2
    weight_P = torch.exp(-offset_P.square() / (2 * SSIM_SIGMA**2))
    weight_P = (weight_P / weight_P.sum()).expand(image_BCHW.shape[1], 1, -1)
    channels = image_BCHW.shape[1]
    image_BCHW = F.conv2d(image_BCHW, weight_P[..., None], groups=channels)
    return F.conv2d(image_BCHW, weight_P[:, :, None], groups=channels)


def _pair(first_BCHW: Tensor, second_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    if first_BCHW.shape != second_BCHW.shape:
        raise ValueError(f"images of shape {tuple(first_BCHW.shape)} with images of shape {tuple(second_BCHW.shape)}")
    return check_uint8_images(first_BCHW), check_uint8_images(second_BCHW)


def reconstruction_scores(
    pairs: Iterable[tuple[Tensor, Tensor]],
    *,
    num_images: int,
    reference: str,
    detail: str | None = None,
    perceptual: Mapping[str, PerceptualDistance] | None = None,
    reduce: Reduce = no_reduce,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Means over exactly `num_images` pairs of all ranks: {metric name: value}, alike on every rank.

    `psnr_rgb_vs_val`, `ssim_gauss11_vs_val`, and one value per perceptual distance; one call per depth (`detail`
    `depth2`) gives a curve over depths.

    Args:
        pairs: this rank's (original, reconstruction) batches, uint8.
        reference: split of the originals, for the names.
        detail: settings for the names, such as the number of codes decoded.
        perceptual: name, such as `lpips-vgg`, -> distance.
        device: where the pairs are compared.

    Raises:
        ValueError: not exactly `num_images` pairs; see `psnr` and `ssim`.
    """
    perceptual = perceptual or {}
    names = [
        metric_name(kind, features, reference=reference, detail=detail)
        for kind, features in (("psnr", "rgb"), ("ssim", f"gauss{SSIM_WINDOW}"))
    ]
    names += [metric_name(name, "rgb", reference=reference, detail=detail) for name in perceptual]
    totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)
    for pair in pairs:
        original_BCHW, reconstruction_BCHW = (image_BCHW.to(device) for image_BCHW in pair)
        values = [psnr(original_BCHW, reconstruction_BCHW), ssim(original_BCHW, reconstruction_BCHW)]
        with torch.no_grad():
            floats = [from_uint8(check_uint8_images(i)) for i in (original_BCHW, reconstruction_BCHW)]
            values += [distance(*floats).flatten().double() for distance in perceptual.values()]
        for name, value_B in zip((*names[:2], *perceptual), values):
            if len(value_B) != len(original_BCHW):
                raise ValueError(f"{name} gave {len(value_B)} values for {len(original_BCHW)} images")
        totals += torch.stack([value_B.sum() for value_B in (*values, torch.ones_like(values[0]))])
    reduce(totals)
    *sums, count = totals.tolist()
    if count != num_images or not count:
        raise ValueError(f"{num_images} pairs announced, got {int(count)}")
    return {name: total / count for name, total in zip(names, sums)}


class PairSimilarity(Metric):
    """Means over reconstructions and their originals: PSNR, and where images hold its window SSIM and `perceptual`.

    Args:
        reference: split of the originals, for the names.
        resolution: of the images: their shorter side.
        detail: settings for the names, such as the number of codes decoded.
        perceptual: name, such as `lpips-vgg`, -> distance.

    Raises:
        ValueError: a batch without `original`.
    """

    needs_network = False

    def __init__(
        self,
        reference: str,
        resolution: int,
        detail: str | None = None,
        perceptual: Mapping[str, PerceptualDistance] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.reference, self.detail, self.perceptual, self.device = reference, detail, dict(perceptual or {}), device
        self.names = [self._name("psnr", "rgb")]
        if resolution >= SSIM_WINDOW:
            self.names += [self._name("ssim", f"gauss{SSIM_WINDOW}")]
            self.names += [self._name(name, "rgb") for name in self.perceptual]
        # the same on every rank, also on one without images
        self.sums = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=device)

    def _name(self, kind: str, features: str) -> str:
        return metric_name(kind, features, reference=self.reference, detail=self.detail)

    def update(self, batch: ScoredBatch) -> None:
        if batch.original_BCHW is None:
            raise ValueError("reconstructions are compared with their originals (`original`)")
        count = len(batch.image_BCHW)
        if len(self.names) == 1:
            means = {self.names[0]: psnr(batch.original_BCHW, batch.image_BCHW).mean().item()}
        else:
            means = reconstruction_scores(
                [(batch.original_BCHW, batch.image_BCHW)],
                num_images=count,
                reference=self.reference,
                detail=self.detail,
                perceptual=self.perceptual,
                device=self.device,
            )
        totals = [*(means[name] * count for name in self.names), count]
        self.sums += torch.tensor(totals, dtype=torch.float64, device=self.device)

    def all_reduce(self, reduce: Reduce) -> None:
        reduce(self.sums)

    def result(self, whole: WholeSet) -> MetricResult:
        *sums, count = self.sums.tolist()
        return MetricResult({name: total / count for name, total in zip(self.names, sums)})
