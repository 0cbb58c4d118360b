"""What saved images are compared with: a data set's split, other images, or a file of moments.

Legend: B batch, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Optional

from torch import Tensor

from data.build import DATASETS, dataset_choices
from data.config import KEEP
from data.images.aspect import Size
from evaluation.networks.feature_networks import FeatureExtractor, build_features
from evaluation.references.reference_cache import cached_reference
from evaluation.references.reference_files import Reference
from rqstack.arguments import plain_size
from runtime.distributed import DistEnv
from runtime.errors import UserError
from runtime.npz import read_headers
from scoring.image_source import ImageSource, default_name, open_source
from scoring.reference_loading import load_reference
from scoring.scoring_data import REFERENCES, ScoringData, ranks_of, split_name
from scoring.settings import ComparisonConfig, FeatureSettings

Batches = Callable[..., Iterable[dict[str, Tensor]]]


class Comparison:
    """The reference side: where its images and its features come from.

    Args:
        features: which feature network, and where references are kept.
        size: (height, width) of the images of a data set whose settings give none: that of the samples.

    Attributes:
        images: `(shared) -> batches` of uint8 images, of this rank or all of them; None where there are only moments.
        num_classes: of its labels; None without labels.
        name: its part of the metrics' names.

    Raises:
        UserError: neither a path nor a data set, or images that cannot be read.
    """

    name: str

    images: Optional[Batches] = None
    num_classes: Optional[int] = None
    data: Optional[ScoringData] = None
    source: Optional[ImageSource] = None

    def __init__(
        self, config: ComparisonConfig, features: FeatureSettings, env: DistEnv, size: tuple[int, int]
    ) -> None:
        self.config, self.settings, self.env = config, features, env
        assert config.ref_dataset is not None, "there is something to compare with"
        self.spec, split = config.ref_dataset, split_name(config.ref_split)
        path = Path(self.spec).expanduser()
        self.is_file_of_moments = path.suffix == ".npz" and path.is_file() and "mu" in read_headers(path)
        if self.is_file_of_moments:
            return
        if not path.exists() and self.spec.lower().replace("_", "-") in DATASETS:
            self._open_dataset(split, size)
        else:
            self._open_images(path)

    def _open_dataset(self, split: str, size: Size) -> None:
        dataset = self.config.dataset
        dataset.type, self.name = self.spec, split
        if dataset.transforms is None and dataset.resolution is None:
            if self.config.mixed_sizes:
                raise UserError("mixed_sizes=true: say at which size ref_dataset is read (dataset.resolution=256)")
            dataset.resolution = plain_size(*size)
            dataset.resize = dataset.resize if size[0] == size[1] else KEEP
        self.data = ScoringData(
            dataset, self.config.batch_size, self.env, self.config.num_workers, cache=self.settings.cache
        )
        self.images = partial(self.data.uint8_batches, self.name)
        self.num_classes = self.data.split("train").num_classes

    def _open_images(self, path: Path) -> None:
        if not path.exists() and ":" not in self.spec and not any(mark in self.spec for mark in "*{"):
            raise UserError(f"ref_dataset={self.spec} is neither a path nor one of {dataset_choices()}")
        source = open_source(
            self.spec, skip_unreadable=self.config.skip_unreadable, mixed_sizes=self.config.mixed_sizes
        )
        self.source, self.name, self.images = source, default_name(self.spec), partial(self._source_batches, source)
        if source.labels_N is not None:
            self.num_classes = 1 + int(max(source.labels_N))

    def _source_batches(self, source: ImageSource, shared: bool = True) -> Iterable[dict[str, Tensor]]:
        place = (self.env.rank, self.env.world_size) if shared else (0, 1)
        return source.batches(self.config.batch_size, *place)

    def features(self) -> FeatureExtractor:
        """The feature network; the classifier is trained on the data set, or on labelled images."""
        if self.data is not None:
            return self.data.features(self.settings)
        if self.settings.name == "classifier" and (self.images is None or self.num_classes is None):
            raise UserError("--features classifier needs ref_dataset to be a data set or images with classes")
        return build_features(
            self.settings.name,
            device=self.env.device,
            weights=self.settings.weights,
            resize=self.settings.resize,
            train=partial(self.images, shared=False) if self.images else None,
            num_classes=self.num_classes,
            cache_dir=self.settings.cache,
        )

    def reference(self, extractor: FeatureExtractor, keep_features: bool, spatial: bool) -> Reference:
        """Moments and what else is asked for, from the cache where the same images were measured before."""
        if self.is_file_of_moments:
            return load_reference(self.spec, extractor)
        if self.data is not None:
            return self.data.reference(self.name, extractor, keep_features, spatial)
        assert self.images is not None and self.source is not None
        return cached_reference(
            Path(self.settings.cache) / REFERENCES,
            self.name,
            self.images,
            extractor,
            num_images=len(self.source),
            source=self.spec,
            keep_features=keep_features,
            spatial=spatial,
            ranks=ranks_of(self.env),
        )
