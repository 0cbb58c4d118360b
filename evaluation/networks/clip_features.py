"""CLIP networks of the open_clip package: image features for Frechet and kernel distances, and for the CLIP score.

Axes: B batch, C channels, H W image, F features.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from evaluation.networks.extra_networks import PixelInput, import_extra, load_weights, weights_sha256

DEFAULT_CLIP = "ViT-B-32"


class ClipFeatures:
    """uint8 images -> (image features (B, F), no logits (B, 0)), float32; captions -> text features.

    Images go through CLIP's own preprocessing: shorter side to the network's size (antialiased bicubic, whole pixel
    values), centre crop, normalisation.

    Args:
        name: architecture of open_clip, such as `ViT-B-32` or `ViT-B-32-quickgelu` (OpenAI's weights need the latter);
            `ARCHITECTURE/TAG` takes the weights of that tag from open_clip's own cache (open_clip fetches them once).
        weights: weight file; needed without a tag.

    Raises:
        ValueError: open_clip is missing, unknown architecture, neither file nor tag, or a file of another network.
        FileNotFoundError: no such file.
    """

    num_classes = 0
    recognises_labels = False

    def __init__(
        self,
        name: str = DEFAULT_CLIP,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        open_clip = import_extra("open_clip", "CLIP features", "open-clip-torch")
        architecture, _, tag = name.partition("/")
        if open_clip.get_model_config(architecture) is None:
            raise ValueError(f"{architecture!r} is no architecture of open_clip, such as {DEFAULT_CLIP}")
        if weights is None and not tag:
            raise ValueError(
                f"clip:{architecture} needs weights: give their file, or a tag of open_clip as clip:{architecture}/TAG"
            )
        self.device = torch.device(device)
        network = open_clip.create_model(architecture, pretrained=tag if weights is None else None)
        self.fingerprint = weights_sha256(network) if weights is None else load_weights(network, weights)
        self.network = network.float().eval().requires_grad_(False).to(self.device)
        self.tokenize = open_clip.get_tokenizer(architecture)
        visual = network.visual
        size = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        self.pixels = PixelInput(size, visual.image_mean, visual.image_std, crop=True, device=self.device)
        self.resize, self.name = self.pixels.tag, f"clip:{name}"
        self.label = f"clip-{architecture}-{self.fingerprint[:8]}"
        self.dim = self(torch.zeros(1, 3, size, size, dtype=torch.uint8))[0].shape[1]

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Image features as the network gives them (not of unit length).

        Raises:
            ValueError: not a batch of uint8 images.
        """
        with torch.autocast(self.device.type, enabled=False):
            features_BF = self.network.encode_image(self.pixels(image_BCHW)).float()
        return features_BF, features_BF[:, :0]

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many captions are longer than the network's context length."""
        length = self.tokenize.context_length + 1
        padding = self.tokenize([""], context_length=length)[0, -1]
        return int((self.tokenize(list(captions), context_length=length)[:, -1] != padding).sum())

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Features (B, F) of captions; longer ones are cut at the network's context length."""
        with torch.autocast(self.device.type, enabled=False):
            return self.network.encode_text(self.tokenize(list(captions)).to(self.device)).float()
