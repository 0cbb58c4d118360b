"""Random weights of VGG16 in the format of torchvision's file."""

from pathlib import Path

import torch
from torchvision.models import vgg16


def write_random_vgg16(path: Path) -> Path:
    """The file holds the whole classifier; its large last part, which LPIPS does not use, is cut to one number here."""
    generator = torch.Generator().manual_seed(3)
    with torch.device("meta"):
        names = vgg16(weights=None).state_dict()
    state = {}
    for name, value in names.items():
        if name.startswith("features."):
            scale = (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else 0.05
            state[name] = scale * torch.randn(value.shape, generator=generator)
    torch.save({**state, "classifier.6.bias": torch.zeros(1)}, path)
    return path
