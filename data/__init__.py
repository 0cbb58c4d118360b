"""Data sets and the loaders over them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.build import build_dataset
    from data.config import DatasetConfig
    from data.dataset import ImageDataset
    from data.loader import EvalLoader, TrainLoader
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__,
        {
            "data.build": ("build_dataset",),
            "data.config": ("DatasetConfig",),
            "data.dataset": ("ImageDataset",),
            "data.loader": ("EvalLoader", "TrainLoader"),
        },
    )

__all__ = ["DatasetConfig", "EvalLoader", "ImageDataset", "TrainLoader", "build_dataset"]
