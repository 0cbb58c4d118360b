"""The two models of the web demo: where they are found, and all that its tabs ask of them.

Legend: C channels, H W image.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data import DatasetConfig, ImageDataset, build_dataset
from data.build import images_behind
from data.images.pixel_rule import PixelRule
from data.tokenizers.caption_tokenizer import CaptionTokenizer
from evaluation.protocol import from_uint8
from rqstack.archive import newest_snapshot, read_archive
from rqtransformer import RQTransformer
from rqvae import RQVAE
from runtime.atomic import write_whole
from runtime.errors import UserError, one_line, warn
from runtime.precision import Precision
from runtime.rundir import runs
from sampling.given_images import read_image, rule_of
from sampling.picture_grids import png_bytes
from sampling.prompts import find_tokenizer
from sampling.trained_models import (
    class_names_of,
    config_beside,
    load_models,
    resolve_checkpoint,
    stage1_is_averaged,
    trained_classes,
)
from training.stages.stage2 import Stage2Config

DEMOS = {"demo": "digits", "demo-text": "pairs"}
"""Folder of a demo below the runs -> name of its two configs."""


def newest_demo(results: Path) -> tuple[Path, Path] | None:
    """Both runs of the demo that was trained last below `results`; None where there is none with snapshots."""
    found = []
    for folder, name in DEMOS.items():
        stage1, stage2 = (
            next((run for run in runs(results / folder / stage, name) if newest_snapshot(run)), None)
            for stage in ("stage1", "stage2")
        )
        if stage1 is not None and stage2 is not None:
            found.append((stage2.name, stage1, stage2))
    return max(found)[1:] if found else None


@dataclass(frozen=True, eq=False)
class Models:
    """Two models that belong together, as the tabs use them.

    Attributes:
        stage1_path, stage2_path: what the user called them, for commands.
        stage1_ema, stage2_ema: whether the averaged weights were loaded.
        checkpoint: of stage 2.
        stage1, stage2: on one device, in eval mode.
        class_names: of the model; empty where they are not known.
        classes: numbers of those that were trained; empty for a model without classes.
        tokenizer: of the captions; None for a model without.
        rule: how pixels of given images are read.
        examples: the validation images of the models' data set; None where they are not at hand.
        folder: where images and masks go that commands need, and what these write.
    """

    stage1_path: str
    stage2_path: str
    stage1_ema: bool
    stage2_ema: bool
    checkpoint: Path
    stage1: RQVAE
    stage2: RQTransformer
    class_names: list[str]
    classes: list[int]
    tokenizer: CaptionTokenizer | None
    rule: PixelRule
    examples: ImageDataset | None
    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def depth(self) -> int:
        """Codes of a position (D)."""
        return self.stage2.depth

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of codes."""
        height, width, _ = self.stage2.config.block_size
        return height, width

    @property
    def resolution(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        return self.stage1.config.ddconfig.image_size

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """Of stage 2's products, as the sampling scripts choose it."""
        return Precision("auto", self.device).amp_dtype

    def class_word(self, number: int) -> str:
        """What `--class` calls a class: its name, where that is its alone."""
        name = self.class_names[number] if number < len(self.class_names) else ""
        return name if name and self.class_names.index(name) == number else str(number)

    def words(self) -> list[str]:
        """Both models as flags of the commands that sample."""
        return ["-v", self.stage1_path, "-a", self.stage2_path, *(["--ema"] if self.stage2_ema else [])]

    def keep(self, image_CHW: Tensor, kind: str = "image") -> Path:
        """Writes a uint8 picture into the folder, under a name that is a hash of it, for a command to read."""
        encoded = png_bytes(image_CHW)
        file = self.folder / f"{kind}-{hashlib.sha256(encoded).hexdigest()[:10]}.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, encoded)
        return file

    def given(self, upload: Path) -> Path:
        """An uploaded file as the model sees it, kept in the folder.

        Raises:
            UserError: it cannot be read, or is refused.
        """
        return self.keep(read_image(upload, self.rule, self.resolution, name=upload.name))

    def example(self, number: int) -> Path:
        """A validation image, kept in the folder.

        Raises:
            UserError: there is none of this number.
        """
        if self.examples is None:
            raise UserError("the models' data set is not at hand: upload an image")
        last = len(self.examples) - 1
        if not 0 <= number <= last:
            raise UserError(f"validation image {number} must be 0 to {last}")
        return self.keep(self.examples.__getitems__([number])["image"][0])

    def shown(self, kept: Path) -> Tensor:
        """A kept image, uint8 (C, H, W)."""
        return read_image(kept, self.rule, self.resolution)

    def pixels(self, kept: Path) -> Tensor:
        """The same in [-1, 1], (1, C, H, W), on the device."""
        return from_uint8(self.shown(kept).unsqueeze(0)).to(self.device)


def open_models(stage1_path: str, stage2_path: str, folder: Path, ema: bool = False) -> Models:
    """Loads both.

    Args:
        stage1_path, stage2_path: runs, snapshots or published checkpoints.
        folder: see `Models`.
        ema: the averaged weights of stage 2.

    Raises:
        ValueError: they do not belong together, or one is no checkpoint.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint1, checkpoint2 = resolve_checkpoint(stage1_path), resolve_checkpoint(stage2_path)
    stage1_ema = stage1_is_averaged(checkpoint2)
    stage1, stage2 = load_models(checkpoint1, checkpoint2, device, stage1_ema=stage1_ema, stage2_ema=ema)
    dataset = config_beside(checkpoint2, Stage2Config).dataset
    config = stage2.config
    num_classes = config.vocab_size_cond if config.block_size_cond == 1 and config.vocab_size_cond > 1 else 0
    counts = trained_classes(checkpoint2) if num_classes else None
    seen = [number for number, count in enumerate(counts or []) if count]
    return Models(
        stage1_path,
        stage2_path,
        stage1_ema,
        ema,
        checkpoint2,
        stage1.eval(),
        stage2.eval(),
        class_names_of(checkpoint2) if num_classes else [],
        seen or list(range(num_classes)),
        find_tokenizer(None, checkpoint2, dataset, config) if config.block_size_cond > 1 else None,
        rule_of(checkpoint1, stage1.config.ddconfig.in_channels),
        _examples(checkpoint1, dataset, stage1.config.ddconfig.image_size, stage1.config.ddconfig.in_channels),
        folder,
        device,
    )


def _examples(
    checkpoint: Path, dataset: DatasetConfig, resolution: tuple[int, int], channels: int
) -> ImageDataset | None:
    """The validation images, if they are there and such as the model takes; else a warning says why they are not."""
    try:
        found = build_dataset(images_behind(dataset), "val")
    except (ValueError, OSError) as error:
        warn(f"no images of the models' data set to choose from: {one_line(error)}")
        return None
    if not len(found) or found.resolution != resolution or found.channels != channels:
        section = (read_archive(checkpoint, wanted=()).config or {}).get("dataset")
        warn(f"the images of {found.name} are not those of stage 1 (dataset: {section}): none to choose from")
        return None
    return found
