"""What a row of the table of data sets says, and what a builder is asked for: a config together with its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data.config import KEEP, CropStyle, DatasetConfig, parse_transforms
from data.dataset import ImageDataset
from data.images.aspect import Size
from data.images.pixel_rule import PixelRule, parse_background
from rqstack.arguments import height_width

Stored = Literal["stored"]
STORED: Stored = "stored"
"""In place of a crop style: batches come as they were cropped when they were written (cached latents)."""


@dataclass(frozen=True)
class DatasetRow:
    """One data set of the table in `data.build`.

    Attributes:
        build: gives a split, or raises FileNotFoundError with the layout expected when its files are not there.
        crop: how its images are cropped where dataset.transforms does not say; see `data.images.transforms`.
        resolution: side of a square in pixels where the config gives none, for images that are made at any size or held
            in memory and so are never cropped; None for image files, whose config must give it.
        many_roots: dataset.root may be a list.
        folders: a folder of any images, whose captions and classes dataset.captions and dataset.class_folders tell.
        words: the closed vocabulary of its captions, where they are drawn by a grammar; a word's place is its token id.
    """

    build: Callable[[DatasetRequest], ImageDataset]
    crop: CropStyle | Stored
    resolution: int | None = None
    many_roots: bool = False
    folders: bool = False
    words: Callable[[], list[str]] | None = None


@dataclass(frozen=True)
class DatasetRequest:
    """One split of a data set, as its builder is asked for it. `seed` decides augmentation only."""

    row: DatasetRow
    config: DatasetConfig
    split: str
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.config.name

    @property
    def crop(self) -> CropStyle:
        """How images are cropped: as dataset.transforms says, else as the row says."""
        own = self.row.crop
        assert own != "stored", f"{self.name} has no images to crop"
        style, _ = parse_transforms(self.config.transforms)
        if self.row.resolution is not None and style not in (None, "none"):
            raise ValueError(
                f"dataset.transforms of {self.name} must be 'none' or left out, not {self.config.transforms!r}"
            )
        return style or own

    @property
    def resolution(self) -> Size:
        """(H, W) of the images in pixels; ValueError when nothing gives it."""
        _, named = parse_transforms(self.config.transforms)
        found = self.config.resolution or self.config.image_resolution or named or self.row.resolution
        if found is None:
            raise ValueError(f"dataset.resolution is missing: {self.name} has no size of its own (try 256)")
        return height_width("dataset.resolution", found)

    @property
    def keep(self) -> bool:
        """Whether images keep their aspect ratio, whatever the crop."""
        return self.config.resize == KEEP

    @property
    def pixels(self) -> PixelRule:
        """How image files are read; ValueError for a background that is no colour."""
        config = self.config
        return PixelRule(config.channels or 3, parse_background(config.background), config.max_image_pixels)

    def validate(self) -> None:
        """ValueError with one line for a setting that cannot work."""
        if self.row.crop != STORED:
            _ = self.crop, self.resolution
        self.config.validate()
        _ = self.pixels
        if self.config.random_shift and self.row.resolution is None:
            raise ValueError(f"dataset.random_shift works on data sets held in memory; {self.name} crops by transforms")
        if not self.row.folders and (self.config.captions is not None or self.config.class_folders):
            raise ValueError(f"dataset.captions and class_folders are of folder and caption-folder, not of {self.name}")
        if isinstance(self.config.root, (list, tuple)) and not self.row.many_roots:
            raise ValueError(f"dataset.root of {self.name} is one folder; only shards take a list")
