"""Data sets and the loaders over them."""

from data.build import build_dataset
from data.config import DatasetConfig
from data.dataset import ImageDataset
from data.loader import TrainLoader, eval_loader

__all__ = ["DatasetConfig", "ImageDataset", "TrainLoader", "build_dataset", "eval_loader"]
