"""The pixel term of the stage-1 loss.

Legend: B batch, C channels, H W image size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

RECONSTRUCTION_LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss}


def reconstruction_loss(recon_BCHW: Tensor, image_BCHW: Tensor, loss_type: str = "mse") -> Tensor:
    """Mean error over every value of the batch, in float32 whatever the inputs are.

    Raises ValueError for a `loss_type` other than 'mse' (squared error) and 'l1' (absolute error).
    """
    if loss_type not in RECONSTRUCTION_LOSSES:
        raise ValueError(f"unknown loss_type {loss_type!r}, choose one of {sorted(RECONSTRUCTION_LOSSES)}")
    return RECONSTRUCTION_LOSSES[loss_type](recon_BCHW.float(), image_BCHW.float())
