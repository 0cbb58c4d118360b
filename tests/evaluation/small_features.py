"""A feature network of a few thousand weights, for tests of what surrounds feature networks."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from evaluation.protocol import check_uint8_images


class SmallFeatures:
    """Random projections of 4 x 4 means; spatial features are the means themselves."""

    name, resize, num_classes, recognises_labels = "small", "mean4", 5, False
    spatial_dim, spatial_label = 48, "small-spatial"
    device = torch.device("cpu")

    def __init__(self, dim: int = 6, seed: int = 0):
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        self.weight_SF = torch.randn(48, dim + self.num_classes, generator=generator)
        self.fingerprint = hashlib.sha256(self.weight_SF.numpy().tobytes()).hexdigest()
        self.label = f"small{dim}-{self.fingerprint[:8]}"
        self.seen = 0

    def with_spatial(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen += len(image_BCHW)
        image_BCHW = check_uint8_images(image_BCHW).float() / 255
        spatial_BS = torch.nn.functional.adaptive_avg_pool2d(image_BCHW, 4).flatten(1)
        output_BF = torch.stack([spatial_S @ self.weight_SF for spatial_S in spatial_BS])  # batch sizes round alike
        return output_BF[:, : self.dim], output_BF[:, self.dim :], spatial_BS

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self.with_spatial(image_BCHW)[:2]
