"""scikit-learn's bundled handwritten digits: 1797 images of 8x8, the data set that needs no download."""

from __future__ import annotations

import torch

from data.config import DatasetConfig
from data.dataset import ImageDataset, stratified_split
from data.images.memory_dataset import MemoryDataset, resize_all

_LEVELS = 16  # grey levels run from 0 to 16
_VAL_FRACTION = 0.2


def build_digits(config: DatasetConfig, split: str, seed: int) -> ImageDataset:
    """Digits resized to the wanted side; every class is split 80/20 (or by val_fraction) into train and val."""
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    raw = load_digits()
    train, val = stratified_split(raw.target, config.val_fraction or _VAL_FRACTION, config.split_seed)
    chosen = train if split == "train" else val
    grey_N1HW = torch.from_numpy(raw.images[chosen]).unsqueeze(1).mul(255 / _LEVELS).round().to(torch.uint8)
    _, resolution = config.style_and_resolution()
    return MemoryDataset(
        "digits",
        split,
        resize_all(grey_N1HW, resolution),
        raw.target[chosen],
        [str(name) for name in raw.target_names],
        seed=seed,
        hflip=bool(config.hflip),
        random_shift=config.random_shift,
    )
