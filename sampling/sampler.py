"""What the sampling scripts share: flags, the two models, batches of finished images, and the preview grid.

Legend: B batch, C channels, H W image (code grid in codes), D code depth, L condition length, M conditions, N images.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from evaluation.protocol import balanced_conditions, shard_indices, to_uint8
from evaluation.statistics import Gaussian
from rqtransformer import RQTransformer, decode_in_batches, sample
from rqtransformer.fast.packing import WEIGHT_FORMATS
from rqtransformer.pretrained import sampling_settings
from rqvae import RQVAE
from runtime import distributed
from runtime.distributed import DistEnv
from runtime.precision import PRECISIONS, Precision
from runtime.runlog import RunLog
from sampling.image_files import FORMATS
from sampling.picture_grids import save_image_file, uint8_grid
from sampling.rejection import RejectionSampler

GRID_IMAGES = 100
GRID_COLUMNS = 10


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints, how samples are drawn from them, and where they go."""
    parser.add_argument("-a", "--model-ar-path", required=True, help="stage-2 run, snapshot or published checkpoint")
    parser.add_argument("-v", "--model-vqvae-path", required=True, help="stage-1 run, snapshot or published checkpoint")
    parser.add_argument("-t", "--temp", type=float, nargs="+", help="temperature, one or one per depth")
    parser.add_argument("--top-k", type=int, nargs="+", help="one or one per depth; default: as the checkpoint says")
    parser.add_argument("--top-p", type=float, nargs="+", help="one or one per depth; default: as the checkpoint says")
    parser.add_argument(
        "--cfg-scale",
        type=guidance,
        metavar="SCALE",
        help="classifier-free guidance: a number (1 is the plain model), or linear:SCALE, cosine:SCALE "
        "(from 1 at the first position to SCALE at the last)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHT_FORMATS,
        default="dense",
        help="of stage 2 while sampling; int8: rounded, one scale per output feature",
    )
    parser.add_argument("-bs", "--batch-size", type=int, default=100, help="per process (default: 100)")
    parser.add_argument("--ema", action="store_true", help="use the averaged weights of stage 2")
    parser.add_argument("--save-dir", help="where the samples go (default: beside the stage-2 checkpoint)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the saved images (default: png)")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of stage 2 (default: bf16 on a GPU)")
    parser.add_argument("--no-tensorboard", action="store_false", dest="tensorboard", help="no TensorBoard events")
    parser.add_argument(
        "--no-stats-saving",
        action="store_false",
        dest="score",
        help="save the images only: no features, no statistics, no scores",
    )


def guidance(text: str) -> float | str:
    """A number as a number; a schedule's name and scale as they are, for `sample` to judge."""
    try:
        return float(text)
    except ValueError:
        return text


class Conditions(Protocol):
    """What samples are asked to show. Sample i has condition i modulo `num`.

    Attributes:
        num: how many there are (M).
        key: what a condition's number is called in a batch.
    """

    num: int
    key: str

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """What the model takes for conditions with these numbers; None for a model without condition."""


@dataclass(frozen=True)
class ClassConditions:
    """The classes of a model; one class stands for an unconditional model."""

    num: int
    key: str = "label"

    def ids(self, condition_B: Tensor) -> Tensor | None:
        """The numbers themselves (B,)."""
        return condition_B if self.num > 1 else None


@dataclass(frozen=True)
class CaptionConditions:
    """Captions and their token ids (M, L)."""

    captions: list[str]
    token_ML: Tensor
    key: str = "caption"

    @property
    def num(self) -> int:
        return len(self.captions)

    def ids(self, condition_B: Tensor) -> Tensor:
        """Token ids (B, L)."""
        return self.token_ML[condition_B]


class Sampler:
    """The two models and the settings; gives batches of finished images.

    reject: takes the place of the plain order of samples, if set.

    Args:
        args: the flags of `add_sampling_flags`, and `seed`.
        num_samples: N over all ranks.
        conditions: taken in turn.
    """

    reject: RejectionSampler | None = None

    def __init__(
        self,
        args: argparse.Namespace,
        stage1: RQVAE,
        stage2: RQTransformer,
        env: DistEnv,
        num_samples: int,
        conditions: Conditions,
    ):
        self.stage1, self.stage2, self.env, self.conditions = stage1, stage2, env, conditions
        self.num_samples, self.batch_size, self.seed = num_samples, args.batch_size, args.seed
        self.settings = sampling_settings(
            stage2,
            temperature=args.temp,
            top_k=args.top_k,
            top_p=args.top_p,
            cfg_scale=args.cfg_scale,
            weights=args.weights,
        )
        self.amp_dtype = Precision(args.precision, env.device).amp_dtype
        # settings that cannot work are refused here, before anything is written
        complete_1TD = torch.zeros(1, stage2.num_positions, stage2.depth, dtype=torch.long)
        sample(stage2, stage1, prefix=complete_1TD, **self.settings)

    def draw(self, index_B: Tensor, condition_B: Tensor) -> Tensor:
        """Codes (B, H, W, D) of the samples with these numbers."""
        cond = self.conditions.ids(condition_B)
        return sample(
            self.stage2,
            self.stage1,
            None if cond is None else cond.to(self.env.device),
            indices=index_B,
            seed=self.seed,
            amp_dtype=self.amp_dtype,
            **self.settings,
        )

    def decode(self, codes_BHWD: Tensor) -> Tensor:
        """Images in [-1, 1], decoded in as many parts as memory asks for."""
        return torch.cat(list(decode_in_batches(self.stage1, codes_BHWD)))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Batches of this rank: `image` uint8 (B, 3, H, W), `index` and `conditions.key` (B,)."""
        key = self.conditions.key
        if self.reject is not None:
            for batch in self.reject.batches(self.env.rank, self.env.world_size):
                yield {"image": batch["image"], key: batch["label"], "index": batch["index"]}
            return
        condition_N = balanced_conditions(self.num_samples, self.conditions.num)
        mine = torch.tensor(shard_indices(self.num_samples, self.env.rank, self.env.world_size), dtype=torch.long)
        for index_B in mine.split(self.batch_size):
            if not len(index_B):
                continue
            condition_B = condition_N[index_B]
            image_BCHW = to_uint8(self.decode(self.draw(index_B, condition_B)))
            yield {"image": image_BCHW, key: condition_B, "index": index_B}


def keep_images(
    batches: Iterator[dict[str, Tensor]], kept: dict[int, Tensor], wanted: Collection[int] = range(GRID_IMAGES)
) -> Iterator[dict[str, Tensor]]:
    """Passes batches through and remembers the images of the preview grid, by sample number."""
    for batch in batches:
        for index, image_CHW in zip(batch["index"].tolist(), batch["image"], strict=True):
            if index in wanted:
                kept[index] = image_CHW.cpu()
        yield batch


def save_grid(
    kept: dict[int, Tensor], log: RunLog, directory: Path, columns: int = GRID_COLUMNS, order: list[int] | None = None
) -> None:
    """Collects the preview images of all ranks and writes `samples.png`.

    Args:
        kept: sample number -> image, on every rank its own.
        columns: images in a row.
        order: sample numbers, row by row; None takes them in ascending order.
    """
    own = torch.tensor(sorted(kept), dtype=torch.long)
    images = torch.stack([kept[index] for index in sorted(kept)]) if kept else None
    index_N = torch.cat(distributed.gather_rows(own))
    shapes = distributed.gather_objects(None if images is None else list(images.shape[1:]))
    shape = next(shape for shape in shapes if shape is not None)
    image_NCHW = torch.cat(
        distributed.gather_rows(torch.empty(0, *shape, dtype=torch.uint8) if images is None else images)
    )
    if distributed.is_main():
        row_of = {int(index): row for row, index in enumerate(index_N)}
        rows = [row_of[index] for index in (sorted(row_of) if order is None else order)]
        grid = uint8_grid(image_NCHW[rows], columns)
        save_image_file(grid, directory / "samples.png")
        log.log_images("samples", grid, 0)


def save_moments(directory: Path, moments: Gaussian) -> None:
    """The features' moments under the names that other FID tools read."""
    if distributed.is_main():
        mu, sigma = moments.mean_F.cpu().numpy(), moments.covariance_FF.cpu().numpy()
        np.savez(directory / "stats.npz", mu=mu, sigma=sigma, num_images=moments.num)


def sampling_facts(sampler: Sampler, args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """How the samples were drawn, for the result line."""
    return {**sampler.settings, "ema": args.ema, **more}
