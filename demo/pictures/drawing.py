"""Kinds of pictures: rows of images, a column for each class or caption.

Legend: B images, C channels, H W image, h w grid of codes, N training images.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demo.pictures.families import COLUMNS, Subject

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 900
DRAWN = "drawn"


def lower_half(subject: Subject) -> Tensor:
    """Which codes (h, w) are drawn again: all below the first half of the rows."""
    import torch

    height, width, _ = subject.models[1].config.block_size
    return (torch.arange(height) >= height // 2).unsqueeze(1).expand(height, width)


def middle(subject: Subject) -> Tensor:
    """The inner part of the codes (h, w)."""
    import torch

    height, width, _ = subject.models[1].config.block_size
    redrawn_hw = torch.zeros(height, width, dtype=torch.bool)
    redrawn_hw[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return redrawn_hw


def samples(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """Four samples of every condition."""
    return subject.drawn(4), []


def completions(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """The lower half of real images drawn again, three times."""
    return subject.filled(lower_half(subject), 3), ["image", "kept", DRAWN, DRAWN, DRAWN]


def inpaintings(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """The middle of real images drawn again, three times."""
    return subject.filled(middle(subject), 3), ["image", "kept", DRAWN, DRAWN, DRAWN]


def coarse_to_fine(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """Real images from 1, 2, ... D of their codes."""
    rows = subject.from_codes()
    return [subject.shown[0], *rows], ["image", "1 code", *(f"{count} codes" for count in range(2, len(rows) + 1))]


def neighbours(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """A sample of every condition above the training images that are nearest to it, by squared distance of pixels."""
    import torch

    train = subject.split("train")
    image_NCHW = torch.stack([train[index]["image"] for index in range(len(train))])
    (drawn_BCHW,) = subject.drawn(1)
    distance_BN = torch.cdist(drawn_BCHW.flatten(1), image_NCHW.flatten(1))
    nearest = distance_BN.topk(2, largest=False).indices
    return [drawn_BCHW, image_NCHW[nearest[:, 0]], image_NCHW[nearest[:, 1]]], [DRAWN, "nearest", "second"]


def hero(subject: Subject) -> tuple[list[Tensor], list[str]]:
    """The first picture of the README: samples, completions, coarse to fine."""
    image, kept, completed = subject.filled(lower_half(subject), 1)
    coarse = subject.from_codes()
    rows = [*subject.drawn(2), image, kept, completed, coarse[0], coarse[1], coarse[-1]]
    return rows, [DRAWN, DRAWN, "real", "kept", "completed", "1 code", "2 codes", f"{len(coarse)} codes"]


KINDS: dict[str, Callable[[Subject], tuple[list[Tensor], list[str]]]] = {
    "hero": hero,
    "samples": samples,
    "completions": completions,
    "inpaintings": inpaintings,
    "coarse_to_fine": coarse_to_fine,
    "neighbours": neighbours,
}


def draw(kind: str, subject: Subject, path: Path) -> None:
    """Writes one picture as a PNG of a palette; names of what is asked for stand above its columns."""
    import torch
    from torchvision.transforms.v2.functional import resize, to_pil_image

    from sampling.picture_grids import image_grid

    rows, labels = KINDS[kind](subject)
    names = subject.shown[2]
    wordy = any(not name.isdecimal() for name in names)  # a digit says itself what it is
    images_BCHW = torch.cat([row.float() for row in rows])
    grid_CHW = image_grid(images_BCHW, COLUMNS, row_labels=labels, column_labels=names if wordy else [])
    small_CHW = resize(grid_CHW, [round(grid_CHW.shape[1] * WIDTH / grid_CHW.shape[2]), WIDTH])
    to_pil_image(small_CHW).quantize(subject.family.colours, dither=0).save(path, optimize=True)
