"""What feature networks of optional packages share: the import, the weight file, the pixels they take.

Axes: B batch, C channels, H W image.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.networks.weight_files import file_sha256
from evaluation.networks.weight_loading import load_exactly, read_state_dict
from evaluation.protocol import check_uint8_images

_HEADS = ("head", "fc", "classifier")


def import_extra(module: str, purpose: str, requirement: str) -> ModuleType:
    """The optional module.

    Raises:
        ValueError: it is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{purpose} need the package {module} ({error}): pip install {requirement}") from error


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> str:
    """Loads a state dict (`.safetensors`, or a torch file read as weights only) and returns the file's SHA-256.

    A wrapping `state_dict` or `model` entry and a `module.` prefix are taken off. Weights of a classification head that
    the network was built without are left out; everything else must fit exactly.

    Raises:
        FileNotFoundError: no such file. ValueError: the file cannot be read, or holds another network.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"no weights at {file}")
    expected = network.state_dict()
    try:
        state = read_state_dict(file)
        for wrapper in ("state_dict", "model"):
            state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        kept = {n: t for n, t in state.items() if n in expected or n.split(".")[0] not in _HEADS}
        load_exactly(network, kept)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not hold the weights of {type(network).__name__}: {reason}") from error
    return file_sha256(file)


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's own weights, for those that did not come from a file of ours."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class PixelInput:
    """uint8 images -> normalised float32 squares: antialiased bicubic, rounded to whole pixel values, (x - mean) / std.

    Args:
        size: side of the square.
        mean, std: per channel, of pixels in [0, 1].
        crop: True resizes the shorter side and crops the centre, False resizes both sides to the square.

    Attributes:
        tag: the resize's part of a metric's name.
    """

    def __init__(
        self, size: int, mean: tuple[float, ...], std: tuple[float, ...], crop: bool, device: torch.device | str = "cpu"
    ):
        self.size, self.crop, self.device = size, crop, torch.device(device)
        self.mean_C11 = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std_C11 = torch.tensor(std, device=device).view(-1, 1, 1)
        self.tag = f"cleanbicubic{size}" + ("crop" if crop else "")

    def __call__(self, image_BCHW: Tensor) -> Tensor:
        """Raises a ValueError for anything but a batch of uint8 images."""
        image_BCHW = check_uint8_images(image_BCHW).to(self.device).float()
        height, width = image_BCHW.shape[2:]
        shape = (self.size, self.size)
        if self.crop:  # the longer side is rounded down, as torchvision does it
            shape = self.size * height // min(height, width), self.size * width // min(height, width)
        # Width, then height, each rounded to whole pixel values, as Pillow does it.
        for step in ((height, shape[1]), shape):
            if image_BCHW.shape[2:] != step:
                image_BCHW = F.interpolate(image_BCHW, step, mode="bicubic", align_corners=False, antialias=True)
                image_BCHW = image_BCHW.round_().clamp_(0, 255)
        top, left = (round((side - self.size) / 2) for side in shape)
        image_BCHW = image_BCHW[:, :, top : top + self.size, left : left + self.size] / 255
        return (image_BCHW - self.mean_C11) / self.std_C11
