"""What a score is asked for: settings and names alone, for command lines, which are read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from data.config import DatasetConfig

DATASET_PREFIX = "dataset:"
SOURCES = "a folder of images, an .npz or .npy file, .tar shards, or dataset:NAME:SPLIT"
CLASSIFIER_CACHE = str(Path("runs") / "classifiers")
CLIP_METRIC = "clip"
PUBLISHED_CLIP = "ViT-B-32-quickgelu/openai"


@dataclass(frozen=True)
class FeatureSettings:
    """Which feature network; see `evaluation.networks.feature_networks.build_features`.

    Args:
        name: one of `FEATURES`.
        weights: its file; None looks where its kind keeps them.
        resize: of Inception.
        cache: folder of trained classifiers and measured references.
    """

    name: str = "inception"
    weights: str | None = None
    resize: str = "bilinear"
    cache: str = CLASSIFIER_CACHE


@dataclass(frozen=True)
class ClipSettings:
    """Which CLIP network: an architecture of open_clip, with the tag of its weights or their file."""

    model: str = PUBLISHED_CLIP
    weights: str | None = None


@dataclass
class ComparisonConfig:
    """The reference side of a configuration.

    ref_dataset: a data set of the configs, images, or an `.npz` file of moments. ref_split: of a data set. batch_size:
    per process. skip_unreadable: leave out and count damaged images. mixed_sizes: image files of any sizes, each taken
    to the feature network's input by the resize that stands in the metrics' names. dataset: settings of a data set
    named above.
    """

    ref_dataset: Optional[str] = None
    ref_split: str = "train"
    batch_size: int = 100
    num_workers: int = 4
    skip_unreadable: bool = False
    mixed_sizes: bool = False
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


@dataclass(frozen=True)
class ReferenceSettings:
    """What `python -m scoring.reference` is told.

    Attributes:
        action: make, show or check.
        file: the reference that is shown or checked.
        source: the images, as the user named them.
        output: where a made reference goes; None: by its name and its features.
        name: its part of metric names; None: from the source.
        classifier_data: labelled images for the classifier features; None: the training split of the source.
        dataset: settings of a source `dataset:NAME:SPLIT`.
        device: None is a GPU where there is one.
    """

    action: str
    file: str = ""
    source: str = ""
    output: str | None = None
    name: str | None = None
    features: str = "inception"
    features_weights: str | None = None
    features_resize: str = "bilinear"
    features_cache: str = CLASSIFIER_CACHE
    classifier_data: str | None = None
    keep_features: bool = False
    spatial: bool = False
    skip_unreadable: bool = False
    mixed_sizes: bool = False
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    batch_size: int = 64
    device: str | None = None
