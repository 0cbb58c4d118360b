"""Data sets and the loaders over them."""

from data.build import build_dataset
from data.config import DatasetConfig
from data.dataset import ImageDataset
from data.loader import EvalLoader, TrainLoader

__all__ = ["DatasetConfig", "EvalLoader", "ImageDataset", "TrainLoader", "build_dataset"]
