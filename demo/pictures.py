"""Draws the pictures of README and gallery from the demo's models: `python -m demo.pictures [NAME ...]`.

Every file says in its PNG text which command made it, and whose images it was made from.

Legend: B images, C channels, H W image, h w grid of codes, D code depth, N training images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say

if TYPE_CHECKING:
    from torch import Tensor

    from rqtransformer import RQTransformer
    from rqvae import RQVAE

DIGITS = (
    "Made from Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI Machine Learning Repository, "
    "CC BY 4.0), as scikit-learn ships it"
)
DRAWN = "Made from drawings of this project's own program"
COLUMNS, WIDTH, GREYS = 10, 900, 64
TOP_P = 0.95


@dataclass(frozen=True)
class Demo:
    """A finished run of `python -m demo`, and what is drawn from it."""

    run: Path

    @cached_property
    def models(self) -> tuple[RQVAE, RQTransformer]:
        """Stage 1 and stage 2."""
        import torch

        from demo.commands import run_of
        from sampling.trained_models import load_models

        stage1, stage2 = (run_of(self.run / stage, "digits") for stage in ("stage1", "stage2"))
        return load_models(stage1, stage2, torch.device("cpu"))

    def real(self) -> tuple[Tensor, Tensor]:
        """A validation image of every class and its label."""
        import torch

        from data import DatasetConfig, build_dataset

        val = build_dataset(DatasetConfig(type="digits"), "val")
        first = [int((torch.as_tensor(val.labels_N) == label).nonzero()[0]) for label in range(COLUMNS)]
        return torch.stack([val[index]["image"] for index in first]), torch.arange(COLUMNS)

    def drawn(self, rows: int, seed: int = 0) -> Tensor:
        """Samples, a column for every class."""
        import torch

        from rqtransformer import sample

        stage1, stage2 = self.models
        return stage1.decode_code(sample(stage2, stage1, torch.arange(COLUMNS).repeat(rows), top_p=TOP_P, seed=seed))

    def filled(self, redrawn_hw: Tensor, fills: int) -> list[Tensor]:
        """Real images, what is kept of them, and some ways to go on: rows of one column for each class."""
        from rqtransformer import sample
        from sampling.inpaint import greyed

        stage1, stage2 = self.models
        image_BCHW, label_B = self.real()
        known = (~redrawn_hw, stage1.get_codes(image_BCHW))
        rows = [image_BCHW, greyed(image_BCHW, redrawn_hw)]
        for seed in range(fills):
            rows.append(stage1.decode_code(sample(stage2, stage1, label_B, known=known, top_p=TOP_P, seed=seed)))
        return rows

    def from_codes(self) -> list[Tensor]:
        """Real images from 1, 2, ... D codes."""
        stage1, _ = self.models
        image_BCHW, _ = self.real()
        codes_BhwD = stage1.get_codes(image_BCHW)
        return [stage1.decode_partial_code(codes_BhwD, depth, "add") for depth in range(codes_BhwD.shape[-1])]


def lower_half(demo: Demo) -> Tensor:
    """Which codes (h, w) are drawn again: all below the first half of the rows."""
    import torch

    height, width, _ = demo.models[1].config.block_size
    return (torch.arange(height) >= height // 2).unsqueeze(1).expand(height, width)


def middle(demo: Demo) -> Tensor:
    """The inner part of the codes (h, w)."""
    import torch

    height, width, _ = demo.models[1].config.block_size
    redrawn_hw = torch.zeros(height, width, dtype=torch.bool)
    redrawn_hw[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return redrawn_hw


def samples(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """Four samples of every class."""
    return list(demo.drawn(4).chunk(4)), []


def completions(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """The lower half of real images drawn again, three times."""
    return demo.filled(lower_half(demo), 3), ["image", "kept", "drawn", "drawn", "drawn"]


def inpaintings(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """The middle of real images drawn again, three times."""
    return demo.filled(middle(demo), 3), ["image", "kept", "drawn", "drawn", "drawn"]


def coarse_to_fine(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """Real images from 1, 2, ... D of their codes."""
    rows = demo.from_codes()
    return [demo.real()[0], *rows], ["image", "1 code", *(f"{count} codes" for count in range(2, len(rows) + 1))]


def neighbours(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """A sample of every class above the training images that are nearest to it, by squared distance of pixels."""
    import torch

    from data import DatasetConfig, build_dataset

    train = build_dataset(DatasetConfig(type="digits"), "train")
    image_NCHW = torch.stack([train[index]["image"] for index in range(len(train))])
    drawn_BCHW = demo.drawn(1)
    distance_BN = torch.cdist(drawn_BCHW.flatten(1), image_NCHW.flatten(1))
    nearest = distance_BN.topk(2, largest=False).indices
    return [drawn_BCHW, image_NCHW[nearest[:, 0]], image_NCHW[nearest[:, 1]]], ["drawn", "nearest", "second"]


def hero(demo: Demo) -> tuple[list[Tensor], list[str]]:
    """The first picture of the README: samples by class, completions, coarse to fine."""
    image, kept, completed = demo.filled(lower_half(demo), 1)
    coarse = demo.from_codes()
    rows = [*demo.drawn(2).chunk(2), image, kept, completed, coarse[0], coarse[1], coarse[-1]]
    return rows, ["drawn 0-9", "drawn 0-9", "real", "kept", "completed", "1 code", "2 codes", f"{len(coarse)} codes"]


OF_DIGITS: dict[str, Callable[[Demo], tuple[list[Tensor], list[str]]]] = {
    "hero": hero,
    "samples": samples,
    "completions": completions,
    "inpaintings": inpaintings,
    "coarse_to_fine": coarse_to_fine,
    "neighbours": neighbours,
}


def draw_digits(name: str, demo: Demo, path: Path) -> None:
    """One picture of the demo's models."""
    import torch
    from torchvision.transforms.v2.functional import resize, to_pil_image

    from sampling.picture_grids import image_grid

    rows, labels = OF_DIGITS[name](demo)
    grid_CHW = image_grid(torch.cat([row.float() for row in rows]), COLUMNS, row_labels=labels)
    small_CHW = resize(grid_CHW, [round(grid_CHW.shape[1] * WIDTH / grid_CHW.shape[2]), WIDTH])
    to_pil_image(small_CHW).quantize(GREYS, dither=0).save(path, optimize=True)


def draw_prompts(run: Path, path: Path) -> None:
    """Samples of a finished run of `python -m demo.text` under their prompts."""
    from demo.commands import run_of
    from demo.text import pictures
    from demo.text.measure import HEADLINE_SCALE, PROMPT_IMAGES, PROMPTS, TextModel

    model = TextModel(run_of(run / "stage1", "pairs"), run_of(run / "stage2", "pairs"))
    prompts = [prompt for prompt in PROMPTS for _ in range(PROMPT_IMAGES)]
    pictures.draw_prompts(path, PROMPTS, model.draw(prompts, HEADLINE_SCALE, seed=1))


def draw_sweep(path: Path) -> None:
    """What guidance does to the text demo's samples, from its committed result."""
    from demo.text import pictures

    result = json.loads(Path("benchmarks/results/text_to_image.json").read_text(encoding="utf-8"))
    pictures.draw_sweep(path, result["sweep"], result["num_captions"])


def draw_badges(folder: Path) -> None:
    """The README's badges, from what the project claims."""
    from demo.badges import badges

    for file, svg in badges(Path("pyproject.toml").read_text(encoding="utf-8")).items():
        (folder / file).write_text(svg, encoding="utf-8")
        say(str(folder / file))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m demo.pictures",
        description="Draw the pictures of README and gallery from the demo's models.",
        takes_words=False,
        example="python -m demo.pictures hero samples --run runs/demo",
    )
    names = [*OF_DIGITS, "prompts", "text_to_image", "badges"]
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"{', '.join(names)} (default: all there are runs for)"
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="of `python -m demo` (default: runs/demo)")
    parser.add_argument("--text-run", type=Path, default=Path("runs/demo-text"), help="of `python -m demo.text`")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="pictures go below it (default: docs)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in names]:
        parser.error(f"{unknown[0]!r} is no picture; choose from {', '.join(names)}")
    return args


def main(args: argparse.Namespace) -> None:
    """Draws what is asked for, or everything whose run is there."""
    from runtime.pages.picture_note import COMMAND, CREDIT, sign_picture

    wanted = args.names or [*OF_DIGITS, "text_to_image", "badges", *(["prompts"] if args.text_run.is_dir() else [])]
    demo = Demo(args.run)
    if any(name in OF_DIGITS for name in wanted) and not args.run.is_dir():
        raise UserError(f"{args.run} is not there: `python -m demo --out {args.run}` trains its models first")
    (args.docs / "pictures").mkdir(parents=True, exist_ok=True)
    for name in wanted:
        if name == "badges":
            draw_badges(args.docs / "pictures")
            continue
        path = args.docs / ("text_to_image.png" if name == "text_to_image" else f"pictures/{name}.png")
        if name in OF_DIGITS:
            draw_digits(name, demo, path)
        elif name == "prompts":
            draw_prompts(args.text_run, path)
        else:
            draw_sweep(path)
        credit = DIGITS if name in OF_DIGITS else DRAWN
        sign_picture(path, {COMMAND: f"python -m demo.pictures {name}", CREDIT: credit})
        say(str(path))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
