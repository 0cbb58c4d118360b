"""What the acceptance needs beside the checkout, looked for without importing anything heavy."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys

from runtime.errors import UserError

OLDEST_PYTHON, OLDEST_TORCH = (3, 10), (2, 11)
# module: the distribution it comes from. What scripts import only when asked (tokenizers, open_clip, timm) is not here,
# nor TensorBoard, without which they warn and go on.
PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "safetensors": "safetensors",
    "lpips": "lpips",
    "pytorch_fid": "pytorch-fid",
    "einops": "einops",
    "tqdm": "tqdm",
}


def check_packages() -> None:
    """UserError, in one line, for a Python or torch that is too old and for all packages that are missing."""
    if sys.version_info < OLDEST_PYTHON:
        raise UserError(f"Python {sys.version.split()[0]} is too old: 3.10 or newer is needed")
    missing = [package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"packages are missing: pip install {' '.join(missing)}")
    version = importlib.metadata.version("torch")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST_TORCH:
        raise UserError(f"torch {version} is too old: 2.11 or newer is needed")
