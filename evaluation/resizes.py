"""How uint8 images are brought to the square that a feature network takes: the table of resizes.

The names are choices of a flag, which are read before torch is imported. Axes: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Resize(NamedTuple):
    """A way to bring uint8 images to the square that a feature network takes.

    Attributes:
        tag: its part of a metric's name, followed by the size.
        network_input: uint8 (B, 3, H, W) and the size -> float32 (B, 3, size, size) in [-1, 1] (a bicubic resize may
            pass these bounds a little, as its authors' does).
    """

    tag: str
    network_input: Callable[[Tensor, int], Tensor]


def resize_named(name: str) -> Resize:
    """The resize of this name in `RESIZES`.

    Raises:
        ValueError: unknown name.
    """
    if name not in RESIZES:
        raise ValueError(f"unknown resize {name!r}: choose one of {', '.join(RESIZES)}")
    return RESIZES[name]


def _bilinear(image_BCHW: Tensor, size: int) -> Tensor:
    """pytorch-fid's: bilinear with half-pixel centres, no antialiasing; [0, 1] to [-1, 1]."""
    from torch.nn import functional as F

    image_BCHW = image_BCHW.float().div_(255)
    return 2 * F.interpolate(image_BCHW, (size, size), mode="bilinear", align_corners=False) - 1


def _inception_tf1(image_BCHW: Tensor, size: int) -> Tensor:
    """The TensorFlow graph's own: bilinear from the corner, output pixel i at i * H / size; then (x - 128) / 128."""
    import torch

    image_BCHW = image_BCHW.float()
    for axis in (2, 3):
        length = image_BCHW.shape[axis]
        position = torch.arange(size, device=image_BCHW.device, dtype=torch.float32) * (length / size)
        low = position.long().clamp_(max=length - 1)
        weight = (position - low).unsqueeze(-1) if axis == 2 else position - low
        high = (low + 1).clamp_(max=length - 1)
        image_BCHW = torch.lerp(image_BCHW.index_select(axis, low), image_BCHW.index_select(axis, high), weight)
    return (image_BCHW - 128) / 128


def _clean_bicubic(image_BCHW: Tensor, size: int) -> Tensor:
    """Antialiased bicubic on float values, not rounded (Parmar et al. 2022, arXiv 2104.11222); then (x - 128) / 128."""
    from torch.nn import functional as F

    image_BCHW = image_BCHW.float()
    if image_BCHW.shape[2:] != (size, size):
        image_BCHW = F.interpolate(image_BCHW, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return (image_BCHW - 128) / 128


RESIZES = {
    "bilinear": Resize("bilinear", _bilinear),
    "inception-tf1": Resize("tf1bilinear", _inception_tf1),
    "clean-bicubic": Resize("cleanbicubic", _clean_bicubic),
}
"""`bilinear` is the default and pytorch-fid's; `inception-tf1` that of the published TensorFlow evaluators."""
