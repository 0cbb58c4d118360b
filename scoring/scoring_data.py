"""What the scoring scripts share: a checkpoint's data set, its images as uint8, the feature network, the result files.

Legend: B batch, C channels, H W image, N images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data import DatasetConfig, EvalLoader, ImageDataset, build_dataset
from data.build import images_behind
from data.config import SPLIT_WORDS, SPLITS
from data.dataset import reading_notes
from data.shards.cached_latents import LatentDataset
from evaluation.networks.feature_networks import FeatureExtractor, build_features
from evaluation.protocol import to_uint8
from evaluation.references.reference_cache import cached_reference
from evaluation.references.reference_files import Reference
from evaluation.statistics import Gaussian, Ranks
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.errors import UserError, one_line, warn
from scoring.settings import FeatureSettings

Batches = Iterator[dict[str, Tensor]]
SPLIT_NAMES = {word: split for word, split in SPLIT_WORDS.items() if split in SPLITS}
REFERENCES = "references"


def ranks_of(env: DistEnv) -> Ranks:
    """All processes, sharing a set of images."""
    return Ranks(distributed.all_reduce_sum_, env.rank, env.world_size, env.device)


def split_name(name: str) -> str:
    """`train` or `val`, from what these are usually called.

    Raises:
        UserError: any other name.
    """
    if name not in SPLIT_NAMES:
        raise UserError(f"split {name!r} is unknown; choose one of {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[name]


class ScoringData:
    """The two splits of a data set as batches of uint8 images, shared out over the ranks."""

    def __init__(
        self,
        config: DatasetConfig,
        batch_size: int,
        env: DistEnv,
        num_workers: int = 0,
        splits: Mapping[str, ImageDataset] | None = None,
        cache: str | Path | None = None,
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size} must be at least 1")
        self.config, self.batch_size, self.env, self.num_workers = images_behind(config), batch_size, env, num_workers
        # cached latents are trained on, but scores compare images: those that the latents were made from
        self._splits = {name: found for name, found in (splits or {}).items() if not isinstance(found, LatentDataset)}
        self.cache = None if cache is None else Path(cache) / REFERENCES

    def split(self, name: str) -> ImageDataset:
        """The data set of one split, read once."""
        if name not in self._splits:
            self._splits[name] = build_dataset(self.config, name)
        return self._splits[name]

    @property
    def credit(self) -> str:
        """What must be said of the makers of the images that were read."""
        return next((dataset.credit for dataset in self._splits.values() if dataset.credit), "")

    def float_batches(self, name: str, shared: bool = True) -> Iterable[dict[str, Tensor]]:
        """Batches in [-1, 1]: this rank's share, or with `shared=False` the whole split."""
        rank, world_size = (self.env.rank, self.env.world_size) if shared else (0, 1)
        return EvalLoader(self.split(name), self.batch_size, rank, world_size, self.num_workers, device=self.env.device)

    def uint8_batches(self, name: str, shared: bool = True) -> Batches:
        """The same as uint8, with `label`; numbered for exact counting."""
        for batch in self.float_batches(name, shared):
            yield {**_counted(batch), "image": to_uint8(batch["image"])}

    def spread_float_batches(self, name: str, num_images: int, shared: bool = True) -> Iterable[dict[str, Tensor]]:
        """Batches in [-1, 1] of `num_images` images spread evenly over a split; `index` numbers these alone."""
        rank, world_size = (self.env.rank, self.env.world_size) if shared else (0, 1)
        number = rank
        for batch in EvalLoader(
            self.split(name), self.batch_size, rank, world_size, self.num_workers, num_images, device=self.env.device
        ):
            index_B = torch.arange(len(batch["image"])) * world_size + number
            number += len(index_B) * world_size
            yield {**batch, "index": index_B}

    def spread_batches(self, name: str, num_images: int) -> Batches:
        """The same as uint8."""
        for batch in self.spread_float_batches(name, num_images):
            yield {**_counted(batch), "image": to_uint8(batch["image"])}

    def features(self, settings: FeatureSettings) -> FeatureExtractor:
        """The feature network; a classifier is trained on all training images, alike on every rank.

        Raises:
            ValueError, OSError: it cannot be had; then on every rank.
        """
        if settings.name == "classifier" and self.env.is_distributed:
            # the main process trains and stores it, the others find it stored
            distributed.run_on_main(lambda: self._build_features(settings).fingerprint)
        extractor, failure = None, None
        try:
            extractor = self._build_features(settings)
        except (ValueError, OSError) as error:
            failure = error
        known = distributed.gather_objects([failure and one_line(failure), extractor and extractor.fingerprint])
        if failure is not None:
            raise failure
        for rank, (reason, _) in enumerate(known):
            if reason is not None:
                raise UserError(f"rank {rank}: {reason}")
        if len({fingerprint for _, fingerprint in known}) > 1:
            raise UserError("the processes have different feature networks; give all of them the same --features-cache")
        assert extractor is not None
        return extractor

    def _build_features(self, settings: FeatureSettings) -> FeatureExtractor:
        return build_features(
            settings.name,
            device=self.env.device,
            weights=settings.weights,
            resize=settings.resize,
            train=partial(self.uint8_batches, "train", shared=False),
            validation=partial(self.uint8_batches, "val", shared=False),
            num_classes=self.split("train").num_classes if settings.name == "classifier" else None,
            cache_dir=settings.cache,
        )

    def report_unreadable(self) -> None:
        """Says on stderr which images this process could not read."""
        for dataset in self._splits.values():
            for line in reading_notes(dataset):
                warn(line)

    def reference(
        self, name: str, extractor: FeatureExtractor, keep_features: bool = False, spatial: bool = False
    ) -> Reference:
        """What scores against a whole split need, from the cache where the same images were measured before."""
        return cached_reference(
            self.cache,
            name,
            partial(self.uint8_batches, name),
            extractor,
            num_images=len(self.split(name)),
            source=f"{self.config.name}:{name}",
            keep_features=keep_features,
            spatial=spatial,
            ranks=ranks_of(self.env),
        )

    def moments(self, name: str, extractor: FeatureExtractor) -> Gaussian:
        """Mean and covariance of the features of a whole split."""
        return self.reference(name, extractor).moments


def _counted(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: batch[name] for name in ("label", "index")}


def reconstructed(batches: Iterable[dict[str, Tensor]], reconstruct: Callable[[Tensor], Tensor]) -> Batches:
    """Batches of uint8 images after `reconstruct` ([-1, 1] in and out), each with its `original`, under its number."""
    with torch.no_grad():
        for batch in batches:
            original_BCHW = to_uint8(batch["image"])
            yield {
                **_counted(batch),
                "image": to_uint8(reconstruct(batch["image"])),
                "original": original_BCHW,
            }
