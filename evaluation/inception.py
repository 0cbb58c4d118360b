"""The FID Inception network of the pytorch-fid package: 2048 pooled features and 1008 class logits.

Axes: B batch, C channels, H W image, F features, Y classes.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from pytorch_fid.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from torch import Tensor, nn
from torchvision.models import Inception3

from evaluation.protocol import check_uint8_images
from evaluation.weights import FID_INCEPTION, find_weights

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


def fid_inception_network() -> nn.Module:
    """The network with arbitrary weights; its state dict has the keys of the published weight file."""
    network = Inception3(num_classes=NUM_CLASSES, aux_logits=False, transform_input=False, init_weights=False)
    for name, (block, arguments) in _FID_BLOCKS.items():
        setattr(network, name, block(*arguments))
    return network


class InceptionFeatures:
    """uint8 images -> (features (B, 2048), logits (B, 1008)), float32.

    Images are resized to 299 x 299 as pytorch-fid does it (bilinear, half-pixel centres, no antialiasing). The logits
    leave out the bias of the last layer, as the inception score always did (its first implementation multiplies by the
    weight only); its 1008 classes are ImageNet's in TensorFlow's order and recognise no labels of ours.

    Args:
        weights: weight file in pytorch-fid's format; None looks in the environment and in torch hub's cache.

    Raises:
        FileNotFoundError, ValueError: see `evaluation.weights.find_weights`; or the file holds another network.
    """

    dim = 2048
    num_classes = NUM_CLASSES
    resize = f"bilinear{INPUT_SIZE}"
    recognises_labels = False

    def __init__(self, weights: str | os.PathLike[str] | None = None, device: torch.device | str = "cpu"):
        path, self.fingerprint = find_weights(FID_INCEPTION, weights)
        self.device = torch.device(device)
        self.name = "inception"
        official = self.fingerprint.startswith(FID_INCEPTION.sha256_prefix)
        # Numbers from another network must not carry the published name.
        self.label = f"inception{self.dim}" + ("" if official else f"-{self.fingerprint[:8]}")
        network = fid_inception_network()
        try:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:
            raise ValueError(f"{path} does not hold the FID Inception weights: {str(error).splitlines()[0]}") from error
        self.class_weight_YF = network.fc.weight.detach().to(self.device)
        network.fc = nn.Identity()
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch of uint8 images of any size.

        Raises:
            ValueError: not a batch of uint8 images.
        """
        image_BCHW = check_uint8_images(image_BCHW).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            image_BCHW = image_BCHW.float().div_(255)
            image_BCHW = F.interpolate(image_BCHW, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", align_corners=False)
            features_BF = self.network(2 * image_BCHW - 1)
            return features_BF, features_BF @ self.class_weight_YF.T
