"""Families of pictures: the same kinds of pictures, from the models of one finished experiment each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError
from runtime.rundir import latest_run
from runtime.step_directories import best_snapshot_of

if TYPE_CHECKING:
    from torch import Tensor

    from data.dataset import ImageDataset
    from rqtransformer import RQTransformer
    from rqvae import RQVAE
    from training.stages.stage2 import Stage2Config

COLUMNS, TOP_P = 10, 0.95


@dataclass(frozen=True)
class Family:
    """What pictures are drawn from.

    Attributes:
        run: folder of the experiment, with its runs of both stages.
        trains: the command that makes it.
        credit: whose images its pictures were made from.
        colours: of a picture file.
        cfg_scale: guidance of its samples.
    """

    run: Path
    trains: str
    credit: str
    colours: int = 64
    cfg_scale: float | None = None


FAMILIES = {
    "digits": Family(
        Path("runs/demo"),
        "python -m demo",
        "Made from Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, "
        "CC BY 4.0), as scikit-learn ships it",
    ),
    "fashion_mnist": Family(
        Path("runs/recipes/fashion-mnist-16"),
        "python -m benchmarks.recipes fashion-mnist-16",
        "Made from Fashion-MNIST (H. Xiao, K. Rasul, R. Vollgraf; Zalando SE, MIT licence)",
    ),
    "openmoji": Family(
        Path("runs/recipes/openmoji-32"),
        "python -m benchmarks.recipes openmoji-32",
        "Emoji designed by OpenMoji - the open-source emoji and icon project. License: CC BY-SA 4.0",
        colours=256,
        cfg_scale=2.0,
    ),
}


def trained(run: Path, stage: str) -> Path:
    """The newest run of a stage of an experiment: its best snapshot where scores chose one.

    Raises:
        UserError: there is none.
    """
    folders = sorted(path for path in (run / stage).iterdir() if path.is_dir()) if (run / stage).is_dir() else []
    found = next((made for folder in folders if (made := latest_run(run / stage, folder.name)) is not None), None)
    if found is None:
        raise UserError(f"{run} has no run of {stage}")
    return best_snapshot_of(found)


@dataclass(frozen=True)
class Subject:
    """The models of a family and what they are asked for.

    Legend: B images, C channels, H W image, h w grid of codes, N images of a split.
    """

    family: Family
    run: Path

    @cached_property
    def models(self) -> tuple[RQVAE, RQTransformer]:
        """Stage 1 and stage 2, averaged where they were trained so."""
        import torch

        from sampling.trained_models import load_models

        stage1, stage2 = (trained(self.run, stage) for stage in ("stage1", "stage2"))
        device, averaged = torch.device("cpu"), bool(self.config.arch.ema)
        return load_models(stage1, stage2, device, stage1_ema=self.config.vqvae.ema, stage2_ema=averaged)

    @cached_property
    def config(self) -> Stage2Config:
        """Of stage 2."""
        from sampling.trained_models import config_beside, resolve_checkpoint
        from training.stages.stage2 import Stage2Config

        config: Stage2Config = config_beside(resolve_checkpoint(trained(self.run, "stage2")), Stage2Config)
        return config

    def split(self, name: str) -> ImageDataset:
        """Images of its data set."""
        from data import build_dataset

        return build_dataset(self.config.dataset, name)

    @cached_property
    def shown(self) -> tuple[Tensor, Tensor, list[str]]:
        """Images of the validation split, what the model is asked for to draw them, and its name: the first of every
        class, or as many drawings, evenly over the split, with their captions.
        """
        import torch

        from data.dataset import Captioned

        val = self.split("val")
        if isinstance(val, Captioned):
            chosen = [(2 * column + 1) * len(val) // (2 * COLUMNS) for column in range(COLUMNS)]
            names, key = val.captions(chosen), "cond"
        else:
            labels_N = torch.as_tensor(val.labels_N)
            chosen = [int((labels_N == label).nonzero()[0]) for label in range(COLUMNS)]
            names, key = list(val.class_names), "label"
        items = [val[index] for index in chosen]
        return torch.stack([item["image"] for item in items]), torch.stack([item[key] for item in items]), names

    def sampled(self, cond_B: Tensor, seed: int, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Images (B, C, H, W) as the model draws them."""
        from rqtransformer import sample

        stage1, stage2 = self.models
        settings = {"top_p": TOP_P, "cfg_scale": self.family.cfg_scale, "seed": seed, "known": known}
        return stage1.decode_code(sample(stage2, stage1, cond_B, **settings))

    def drawn(self, rows: int, seed: int = 0) -> list[Tensor]:
        """Rows of samples, a column for each condition."""
        import torch

        _, cond_B, _ = self.shown
        return list(self.sampled(torch.cat([cond_B] * rows), seed).chunk(rows))

    def filled(self, redrawn_hw: Tensor, fills: int) -> list[Tensor]:
        """Real images, what is kept of them, and some ways to go on: rows of one column for each condition."""
        from sampling.inpaint import greyed

        image_BCHW, cond_B, _ = self.shown
        known = (~redrawn_hw, self.models[0].get_codes(image_BCHW))
        rows = [image_BCHW, greyed(image_BCHW, redrawn_hw)]
        return [*rows, *(self.sampled(cond_B, seed, known) for seed in range(fills))]

    def from_codes(self) -> list[Tensor]:
        """Real images from 1, 2, ... D codes."""
        stage1, _ = self.models
        codes_BhwD = stage1.get_codes(self.shown[0])
        return [stage1.decode_partial_code(codes_BhwD, depth, "add") for depth in range(codes_BhwD.shape[-1])]
