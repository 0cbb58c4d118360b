"""The FID Inception network of the pytorch-fid package: features of four depths, spatial features, class logits.

Axes: B batch, C channels, H W image, F features, Y classes.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from torch import Tensor, nn
from torchvision.models import Inception3

from evaluation.networks.weight_files import FID_INCEPTION, find_weights
from evaluation.networks.weight_loading import load_exactly, read_state_dict
from evaluation.protocol import check_uint8_images
from evaluation.resizes import resize_named
from rqstack.printable import first_line
from runtime.device import ieee_fp32

INPUT_SIZE = 299
NUM_CLASSES = 1008

# The blocks in which the TensorFlow graph behind FID differs from torchvision's network, with their arguments.
_FID_BLOCKS = {
    "Mixed_5b": (FIDInceptionA, (192, 32)),
    "Mixed_5c": (FIDInceptionA, (256, 64)),
    "Mixed_5d": (FIDInceptionA, (288, 64)),
    "Mixed_6b": (FIDInceptionC, (768, 128)),
    "Mixed_6c": (FIDInceptionC, (768, 160)),
    "Mixed_6d": (FIDInceptionC, (768, 160)),
    "Mixed_6e": (FIDInceptionC, (768, 192)),
    "Mixed_7b": (FIDInceptionE_1, (1280,)),
    "Mixed_7c": (FIDInceptionE_2, (2048,)),
}

# Features of `dim` numbers are the mean over positions after the last layer listed for it (and all before).
_STAGES = {
    64: ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
    192: ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    768: ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    2048: ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}

# TensorFlow counts the mixed blocks from 0 (mixed = Mixed_5b), so that its mixed_6 is Mixed_6d, and mixed_6/conv the
# rectified output of that block's 1 x 1 branch: 192 channels of 17 x 17. The sFID of Nash et al. 2021 (arXiv
# 2103.03841) as published evaluations take it (Dhariwal and Nichol 2021) keeps the first 7 channels.
_SPATIAL_BLOCK = "Mixed_6d"
SPATIAL_CHANNELS = 7
SPATIAL_DIM = SPATIAL_CHANNELS * 17 * 17


def fid_inception_network() -> nn.Module:
    """The network with arbitrary weights; its state dict has the keys of the published weight file."""
    network = Inception3(num_classes=NUM_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
    for name, (block, arguments) in _FID_BLOCKS.items():
        setattr(network, name, block(*arguments))
    return network


class InceptionFeatures:
    """uint8 images -> (features (B, dim), logits (B, 1008)), float32, on a GPU too without TF32.

    The logits leave out the bias of the last layer, as the inception score always did (its first implementation
    multiplies by the weight only); the 1008 classes are ImageNet's in TensorFlow's order and recognise no labels of
    ours. Networks cut off before the last layer (`dim` below 2048) have no logits: `num_classes` 0, logits (B, 0).

    Args:
        weights: weight file in pytorch-fid's format, or the same tensors as `.safetensors`; None looks in the
            environment and in torch hub's cache.
        dim: 64 and 192 (the two max poolings), 768 (before the auxiliary classifier) or 2048 (the last pooling).
        resize: a name of `resizes.RESIZES`; part of the metrics' names. `bilinear` is pytorch-fid's.

    Attributes:
        spatial_dim, spatial_label: of the features that `with_spatial` adds.

    Raises:
        FileNotFoundError, ValueError: see `weight_files.find_weights`; the file holds another network; or an unknown
            `dim` or `resize`.
    """

    recognises_labels = False
    spatial_dim = SPATIAL_DIM

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        *,
        dim: int = 2048,
        resize: str = "bilinear",
    ):
        if dim not in _STAGES:
            raise ValueError(f"Inception has no features of {dim} numbers: choose {', '.join(map(str, _STAGES))}")
        tag, self.network_input = resize_named(resize)
        path, self.fingerprint = find_weights(FID_INCEPTION, weights)
        self.device = torch.device(device)
        self.dim, self.resize = dim, f"{tag}{INPUT_SIZE}"
        self.num_classes = NUM_CLASSES if dim == 2048 else 0
        self.name = "inception" if dim == 2048 else f"inception{dim}"
        official = FID_INCEPTION.matches(self.fingerprint)
        # Numbers from another network must not carry the published name.
        suffix = "" if official else f"-{self.fingerprint[:8]}"
        self.label, self.spatial_label = f"inception{dim}{suffix}", f"inception-mixed6conv{SPATIAL_CHANNELS}{suffix}"
        network = fid_inception_network()
        try:
            load_exactly(network, read_state_dict(path))
        except Exception as error:
            raise ValueError(f"{path} does not hold the FID Inception weights: {first_line(error)}") from error
        assert isinstance(network.fc, nn.Linear)
        self.class_weight_YF = network.fc.weight.detach()[: self.num_classes].to(self.device)
        network.fc = nn.Identity()
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch of uint8 images of any size.

        Raises:
            ValueError: not a batch of uint8 images.
        """
        return self._run(image_BCHW, spatial=False)[:2]

    @torch.no_grad()
    def with_spatial(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, logits, and the spatial features of sFID (B, 2023), in one pass.

        Raises:
            ValueError: not a batch of uint8 images, or a network cut off before the spatial features.
        """
        if self.dim < 768:
            raise ValueError(f"{self.name} ends before the spatial features: use inception or inception768")
        features_BF, logits_BY, spatial_BF = self._run(image_BCHW, spatial=True)
        assert spatial_BF is not None
        return features_BF, logits_BY, spatial_BF

    def _run(self, image_BCHW: Tensor, spatial: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        image_BCHW = check_uint8_images(image_BCHW).to(self.device)
        spatial_BF = None
        with torch.autocast(self.device.type, enabled=False), ieee_fp32(self.device):
            hidden_BCHW = self.network_input(image_BCHW, INPUT_SIZE)
            for layer in (name for dim, names in _STAGES.items() if dim <= self.dim for name in names):
                module = getattr(self.network, layer)
                if spatial and layer == _SPATIAL_BLOCK:
                    spatial_BF = module.branch1x1(hidden_BCHW)[:, :SPATIAL_CHANNELS].flatten(1)
                hidden_BCHW = module(hidden_BCHW)
            features_BF = F.adaptive_avg_pool2d(hidden_BCHW, 1).flatten(1)
            if not self.num_classes:
                return features_BF, features_BF[:, :0], spatial_BF
            return features_BF, features_BF @ self.class_weight_YF.T, spatial_BF
