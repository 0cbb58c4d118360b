"""Picture grids: reconstructions from coarse to fine, and samples of all ranks.

Legend: B batch, C channels, H W image, D code depth.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from evaluation.protocol import check_uint8_images, to_uint8
from rqvae import RQVAE
from runtime import distributed
from runtime.runlog import RunLog

GRID_IMAGES = 100
GRID_COLUMNS = 10


@torch.no_grad()
def coarse_to_fine(model: RQVAE, image_BCHW: Tensor) -> Tensor:
    """Rows of pictures: the originals, then the decoded sum of the first 1, 2, ..., D codes.

    Args:
        image_BCHW: images in [-1, 1]; one column each.

    Returns:
        One grid, uint8 (C, H, W).
    """
    model.eval()
    codes_BHWD = model.get_codes(image_BCHW)
    rows = [image_BCHW]
    rows += [model.decode_partial_code(codes_BHWD, depth, "add") for depth in range(codes_BHWD.shape[-1])]
    return image_grid(torch.cat([row.float() for row in rows]), columns=len(image_BCHW))


@torch.no_grad()
def single_depths(model: RQVAE, image_BCHW: Tensor) -> Tensor:
    """Rows of pictures: the originals, then what the codes of one depth decode to on their own."""
    model.eval()
    codes_BHWD = model.get_codes(image_BCHW)
    rows = [image_BCHW]
    rows += [model.decode_partial_code(codes_BHWD, depth, "select") for depth in range(codes_BHWD.shape[-1])]
    return image_grid(torch.cat([row.float() for row in rows]), columns=len(image_BCHW))


def image_grid(image_BCHW: Tensor, columns: int) -> Tensor:
    """Float images in [-1, 1] as one grid, uint8 (C, H, W)."""
    return uint8_grid(to_uint8(image_BCHW), columns)


def uint8_grid(image_BCHW: Tensor, columns: int) -> Tensor:
    """uint8 images of any channels as one RGB grid, uint8 (3, H, W), on the CPU."""
    return make_grid(check_uint8_images(image_BCHW.cpu()), nrow=columns, padding=2, pad_value=255)


def save_image_file(image_CHW: Tensor, path: Path) -> None:
    """Writes one uint8 image, by the ending of the file name."""
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).save(path)


def keep_images(
    batches: Iterable[dict[str, Tensor]], kept: dict[int, Tensor], wanted: Collection[int] = range(GRID_IMAGES)
) -> Iterator[dict[str, Tensor]]:
    """Passes batches through and remembers the images of the preview grid, by sample number."""
    for batch in batches:
        for index, image_CHW in zip(batch["index"].tolist(), batch["image"], strict=True):
            if index in wanted:
                kept[index] = image_CHW.cpu()
        yield batch


def save_grid(
    kept: dict[int, Tensor], log: RunLog, directory: Path, columns: int = GRID_COLUMNS, order: list[int] | None = None
) -> None:
    """Collects the preview images of all ranks and writes `samples.png`.

    Args:
        kept: sample number -> image, on every rank its own.
        columns: images in a row.
        order: sample numbers, row by row; None takes them in ascending order.
    """
    own = torch.tensor(sorted(kept), dtype=torch.long)
    images = torch.stack([kept[index] for index in sorted(kept)]) if kept else None
    index_N = torch.cat(distributed.gather_rows(own))
    shapes = distributed.gather_objects(None if images is None else list(images.shape[1:]))
    shape = next(shape for shape in shapes if shape is not None)
    image_NCHW = torch.cat(
        distributed.gather_rows(torch.empty(0, *shape, dtype=torch.uint8) if images is None else images)
    )
    if distributed.is_main():
        row_of = {int(index): row for row, index in enumerate(index_N)}
        rows = [row_of[index] for index in (sorted(row_of) if order is None else order)]
        grid = uint8_grid(image_NCHW[rows], columns)
        save_image_file(grid, directory / "samples.png")
        log.log_images("samples", grid, 0)
