"""scikit-learn's bundled handwritten digits: 1797 images of 8x8, the data set that needs no download."""

from __future__ import annotations

import torch

from data.dataset import ImageDataset
from data.images.memory_dataset import MemoryDataset, resize_all
from data.request import DatasetRequest
from data.splits import stratified_split

_LEVELS = 16  # grey levels run from 0 to 16
_VAL_FRACTION = 0.2


def build_digits(request: DatasetRequest) -> ImageDataset:
    """Digits resized to the wanted side; every class is split 80/20 (or by val_fraction) into train and val."""
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    raw = load_digits()
    train, val = stratified_split(raw.target, request.config.val_fraction or _VAL_FRACTION, request.config.split_seed)
    chosen = train if request.split == "train" else val
    grey_N1HW = torch.from_numpy(raw.images[chosen]).unsqueeze(1).mul(255 / _LEVELS).round().to(torch.uint8)
    return MemoryDataset(
        request,
        resize_all(grey_N1HW, request),
        raw.target[chosen],
        [str(name) for name in raw.target_names],
        chosen,
    )
