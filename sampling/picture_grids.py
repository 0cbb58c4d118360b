"""Picture grids for the log: reconstructions from coarse to fine, and samples.

Legend: B batch, C channels, H W image, D code depth.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from evaluation.protocol import to_uint8
from rqvae import RQVAE


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
    """uint8 images as one grid, uint8 (C, H, W), on the CPU."""
    return make_grid(image_BCHW.cpu(), nrow=columns, padding=2, pad_value=255)


def save_image_file(image_CHW: Tensor, path: Path) -> None:
    """Writes one uint8 image, by the ending of the file name."""
    Image.fromarray(image_CHW.permute(1, 2, 0).contiguous().numpy()).save(path)
