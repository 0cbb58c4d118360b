"""Image features of any network of the timm package, DINOv2 above all (Stein et al. 2023, arXiv 2306.04675).

Axes: B batch, C channels, H W image, F features.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from evaluation.networks.extra_networks import PixelInput, import_extra, load_weights, weights_sha256

DEFAULT_DINOV2 = "vit_large_patch14_dinov2"
DINOV2_SIZE = 224


class TimmFeatures:
    """uint8 images -> (pooled features (B, F), no logits (B, 0)), float32.

    Images are resized to the network's own square (antialiased bicubic, whole pixel values) and normalised as the
    network was trained. DINOv2 networks take 224 x 224, as in the published comparisons, whatever size their position
    embeddings were stored for; their features are the class token's.

    Args:
        name: of a timm model; `vit_large_patch14_dinov2` is the published choice of DINOv2.
        weights: weight file in timm's naming; None takes timm's published weights from its own cache (timm fetches
            them once).

    Raises:
        ValueError: timm is missing, unknown name, or the file holds another network. FileNotFoundError: no such file.
    """

    num_classes = 0
    recognises_labels = False

    def __init__(
        self,
        name: str = DEFAULT_DINOV2,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        timm = import_extra("timm", "timm features", "timm")
        if not timm.is_model(name.partition(".")[0]):
            raise ValueError(f"{name!r} is no model of timm, such as {DEFAULT_DINOV2}")
        is_dinov2 = "dinov2" in name
        options = {"dynamic_img_size": True} if is_dinov2 else {}
        network = timm.create_model(name, pretrained=weights is None, num_classes=0, **options)
        self.fingerprint = weights_sha256(network) if weights is None else load_weights(network, weights)
        self.device = torch.device(device)
        self.network = network.float().eval().requires_grad_(False).to(self.device)
        config = timm.data.resolve_model_data_config(network)
        size = DINOV2_SIZE if is_dinov2 else config["input_size"][-1]
        self.pixels = PixelInput(size, config["mean"], config["std"], crop=False, device=self.device)
        self.resize, self.name, self.dim = self.pixels.tag, f"timm:{name}", network.num_features
        self.label = f"{name.replace('_', '-')}-{self.fingerprint[:8]}"

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features of a batch of uint8 images of any size.

        Raises:
            ValueError: not a batch of uint8 images.
        """
        with torch.autocast(self.device.type, enabled=False):
            features_BF = self.network(self.pixels(image_BCHW)).float()
        return features_BF, features_BF[:, :0]
