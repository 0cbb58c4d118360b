"""LPIPS perceptual distance (Zhang et al. 2018): VGG16 features compared through the heads of the `lpips` package.

The heads come with the package. The VGG16 backbone is torchvision's ImageNet file and is only ever read from disk.

Legend: B batch, C channels, H W size.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rqstack.printable import first_line
from rqstack.strict_loading import check_kinds

VGG16_FILE_NAME = "vgg16-397923af.pth"  # torchvision's name: the digits are the start of the file's SHA-256
VGG16_ENV = "RQVAE_VGG16_WEIGHTS"


def find_vgg16_weights(path: str | os.PathLike[str] | None = None) -> Path:
    """The file to read: `path`, else $RQVAE_VGG16_WEIGHTS, else torchvision's file in torch's hub cache.

    Raises FileNotFoundError, saying where it looked and how to do without, if the first of these that is given is not
    there.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / VGG16_FILE_NAME
    named = path or os.environ.get(VGG16_ENV)
    file = Path(named).expanduser() if named else cached
    if file.is_file():
        return file
    raise FileNotFoundError(
        f"no VGG16 weights for the perceptual loss at {file}: put torchvision's {VGG16_FILE_NAME} at {cached}, "
        f"name a file with {VGG16_ENV} or gan.loss.perceptual_backbone, or set gan.loss.perceptual_weight=0"
    )


def _check_digest(file: Path) -> None:
    """torchvision puts the first eight digits of the hash into the name; a file with another name is taken as it is."""
    if file.name != VGG16_FILE_NAME:
        return
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    expected = VGG16_FILE_NAME.removesuffix(".pth").split("-")[1]
    if not digest.hexdigest().startswith(expected):
        raise ValueError(f"{file} is damaged: its SHA-256 starts with {digest.hexdigest()[:8]}, not with {expected}")


def _read_weights(file: Path) -> Mapping[str, Tensor]:
    _check_digest(file)
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as a weight file: {first_line(error)}") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{file} is not torchvision's VGG16: it holds a {type(state).__name__}, not a state dict")
    return state


def _load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Fills the five slices of the lpips backbone; layers keep torchvision's index: `features.N` -> `sliceK.N`."""
    names = {name: "features." + name.split(".", 1)[1] for name in backbone.state_dict()}
    missing = sorted(name for name in names.values() if name not in state)
    if missing:
        raise ValueError(f"{file} is not torchvision's VGG16: it lacks {missing[0]} and {len(missing) - 1} more")
    given = {name: state[source] for name, source in names.items()}
    try:
        check_kinds(backbone.state_dict(), given)
        backbone.load_state_dict(given)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{file} is not torchvision's VGG16: {str(error).splitlines()[-1].strip()}") from error


class PerceptualLoss(nn.Module):
    """LPIPS with VGG16 (heads v0.1): frozen, always in eval mode.

    Args:
        weights: file with torchvision's VGG16 state dict (.pth or .safetensors); None looks in the places of
            `find_vgg16_weights`.

    Raises FileNotFoundError without weights, ValueError for a damaged or different file.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = None):
        super().__init__()
        file = find_vgg16_weights(weights)
        state = _read_weights(file)
        from lpips import LPIPS  # here, so that models without this loss need neither lpips nor torchvision

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips still uses torchvision's old spelling of `weights=None`
            self.lpips = LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False)
        _load_backbone(self.lpips.net, state, file)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode: the heads hold dropout layers meant for fitting them."""
        return super().train(False)

    def forward(self, recon_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1], at least 16 x 16 -> distance per image (B), float32, >= 0.

        Grey counts as RGB; of RGBA the colours count.
        """
        # Two passes: the one over real images needs no gradient and keeps no activations.
        layers = zip(self._features(recon_BCHW), self._features(image_BCHW), self.lpips.lins, strict=True)
        with torch.autocast(recon_BCHW.device.type, enabled=False):
            distances = [_layer_distance(recon.float(), image.float(), head) for recon, image, head in layers]
            return reduce(torch.add, distances)

    def _features(self, image_BCHW: Tensor) -> tuple[Tensor, ...]:
        return self.lpips.net(self.lpips.scaling_layer(_colours(image_BCHW)))


def _colours(image_BCHW: Tensor) -> Tensor:
    """RGB: a grey image three times, of RGBA the first three channels."""
    channels = image_BCHW.shape[1]
    if channels not in (1, 3, 4):
        raise ValueError(f"LPIPS compares images of 1, 3 or 4 channels, not {channels}")
    return image_BCHW[:, :3].expand(-1, 3, -1, -1)


def _layer_distance(recon_BCHW: Tensor, image_BCHW: Tensor, head: nn.Module) -> Tensor:
    """Weighted squared distance of unit-length features, averaged over the map (Zhang et al. 2018, Eq. 1)."""
    difference_BCHW = _unit_length(recon_BCHW) - _unit_length(image_BCHW)
    return head(difference_BCHW.square()).mean((1, 2, 3))


def _unit_length(features_BCHW: Tensor) -> Tensor:
    """`vector_norm` has gradient zero at an all-zero feature vector, where the square root of a sum gives NaN."""
    return features_BCHW / (torch.linalg.vector_norm(features_BCHW, dim=1, keepdim=True) + 1e-10)
