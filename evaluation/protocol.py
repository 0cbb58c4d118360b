"""The protocol of every score: pixels, sample indices, conditions and metric names.

Axes: B batch, C channels, H W image, N images. A sample is known by its global index 0..N-1; which rank or batch
it belongs to never changes its condition, its noise or its weight in a score.
"""

from __future__ import annotations

import torch
from torch import Tensor


def to_uint8(image: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8 in 0..255: round to nearest, clamp. Any shape.

    The only such conversion of the project: saving, in-memory scoring and export share it, so an image scored from
    disk and from memory is the same image. Arithmetic is float32 whatever the input type.

    Raises:
        ValueError: the input is not floating point (already uint8, for example).
    """
    if not image.is_floating_point():
        raise ValueError(f"to_uint8 takes float images in [-1, 1], got {image.dtype}")
    return image.detach().float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def from_uint8(image: Tensor) -> Tensor:
    """uint8 images to float32 in [-1, 1]; `to_uint8(from_uint8(x)) == x` for every value.

    Raises:
        ValueError: the input is not uint8.
    """
    if image.dtype != torch.uint8:
        raise ValueError(f"from_uint8 takes uint8 images, got {image.dtype}")
    return image.float().div_(127.5).sub_(1.0)


def check_uint8_images(image_BCHW: Tensor) -> Tensor:
    """The batch itself when it can be scored: uint8 (B, 1, 3 or 4, H, W); as RGB.

    A grey image is repeated to three channels; an RGBA image is put on white, as the reader of files does.

    Raises:
        ValueError: another type or layout.
    """
    if image_BCHW.dtype != torch.uint8:
        raise ValueError(f"scores are taken on uint8 images (see to_uint8), got {image_BCHW.dtype}")
    if image_BCHW.dim() != 4 or image_BCHW.shape[1] not in (1, 3, 4):
        raise ValueError(f"images must be (batch, 1, 3 or 4 channels, height, width), got {tuple(image_BCHW.shape)}")
    if image_BCHW.shape[1] == 4:
        colour_BCHW, alpha_B1HW = image_BCHW.float().split((3, 1), dim=1)
        return (255 + (colour_BCHW - 255) * alpha_B1HW / 255).round_().to(torch.uint8)
    return image_BCHW.expand(-1, 3, -1, -1)


def shard_indices(num_samples: int, rank: int = 0, world_size: int = 1) -> range:
    """Global indices of the samples that `rank` makes: rank, rank + world_size, ... below `num_samples`.

    Over all ranks every index appears exactly once, for any `num_samples` (a rank may get none): no padding, no drop.

    Raises:
        ValueError: negative `num_samples`, or a rank outside 0..world_size-1.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank}")
    return range(rank, num_samples, world_size)


def balanced_conditions(num_samples: int, num_classes: int) -> Tensor:
    """Class of each of `num_samples` samples, (N,) int64: sample i gets class i mod `num_classes`.

    A function of i alone, so every shard and every prefix agrees; class sizes differ by one at most, and so they do
    (closely) in every contiguous split of the inception score.

    Raises:
        ValueError: `num_classes` below 1 or `num_samples` negative.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    return torch.arange(num_samples) % num_classes


def proportional_conditions(num_samples: int, count_Y: Tensor) -> Tensor:
    """Class of each of `num_samples` samples, (N,) int64, as often as the class occurs in `count_Y`.

    Sample after sample goes to the class that is furthest behind its share (the k-th of a class with share p stands at
    (k + 1/2) / p: Webster's method), so that every prefix has the shares of the whole, to within about one sample.

    Raises:
        ValueError: no class occurs, or a negative count or number of samples.
    """
    if num_samples < 0:
        raise ValueError(f"num_samples must not be negative, got {num_samples}")
    if not len(count_Y) or count_Y.min() < 0 or not count_Y.any():
        raise ValueError("class frequencies need at least one class with images, and no negative count")
    share_Y = count_Y.double() / count_Y.sum()
    most_Y = torch.where(count_Y > 0, ((num_samples + len(count_Y)) * share_Y).long() + 2, 0)
    class_M = torch.repeat_interleave(torch.arange(len(count_Y)), most_Y)
    first_M = (most_Y.cumsum(0) - most_Y)[class_M]
    place_M = (torch.arange(len(class_M)) - first_M + 0.5) / share_Y[class_M]
    return class_M[place_M.argsort(stable=True)[:num_samples]]


def metric_name(
    kind: str,
    features: str,
    resize: str | None = None,
    reference: str | None = None,
    splits: int | None = None,
    detail: str | None = None,
) -> str:
    """Full name of a number: what it is, with which features, after which resize, with which settings, against what.

    `metric_name("fid", "inception2048", "bilinear299", "train")` is `fid_inception2048_bilinear299_vs_train`; `detail`
    holds settings that change the number, such as `k3` or `subsets100x1000`. Two numbers that cannot be compared never
    share a name.
    """
    parts = [kind, features]
    if resize is not None:
        parts.append(resize)
    if splits is not None:
        parts.append(f"splits{splits}")
    if detail is not None:
        parts.append(detail)
    if reference is not None:
        parts.append(f"vs_{reference}")
    return "_".join(parts)


def with_detail(name: str, detail: str) -> str:
    """A full metric name with one more setting: before what it compares with, where it says that."""
    head, versus, reference = name.partition("_vs_")
    return f"{head}_{detail}{versus}{reference}"
