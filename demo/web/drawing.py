"""The tabs that draw whole pictures: for a class, for prompts, or for nothing, position by position.

Legend: B batch, C channels, H W image, h w grid of codes, N samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from demo.web.models import Models
from demo.web.settings import DrawFields
from evaluation.protocol import to_uint8
from runtime.errors import UserError
from sampling.conditions import ClassConditions, Conditions
from sampling.inpaint import greyed
from sampling.prompts import Prompts, tokenize
from sampling.sampler import Sampler

MOST_PROMPTS, MOST_PICTURES = 8, 9


@dataclass(frozen=True)
class Wish:
    """What is to be drawn.

    Attributes:
        number: pictures, of each prompt where there are any.
        fields: how.
        class_number: for a model with classes.
        prompts: for a model of captions.
    """

    number: int
    fields: DrawFields
    class_number: int | None = None
    prompts: tuple[str, ...] = ()

    def check(self, models: Models) -> None:
        """UserError for what the models cannot draw."""
        if not 1 <= self.number <= MOST_PICTURES:
            raise UserError(f"{self.number} pictures must be 1 to {MOST_PICTURES}")
        if models.tokenizer is not None and not 1 <= len(self.prompts) <= MOST_PROMPTS:
            raise UserError(f"write 1 to {MOST_PROMPTS} prompts, not {len(self.prompts)}")
        if models.classes and self.class_number not in models.classes:
            raise UserError(f"class {self.class_number} is none of the model's: choose one of the list")

    def conditions(self, models: Models) -> Conditions:
        """What the samples are asked to show, as the command numbers them."""
        if models.tokenizer is not None:
            return tokenize(Prompts(list(self.prompts), "the prompt"), models.tokenizer)
        if not models.classes:
            return ClassConditions(1)
        return ClassConditions(models.stage2.config.vocab_size_cond, torch.tensor([self.class_number]))

    def command(self, models: Models) -> list[str]:
        """What draws the same into files."""
        how = [*self.fields.words(), "--save-dir", str(models.folder)]
        if models.tokenizer is not None:
            prompts = [word for prompt in self.prompts for word in ("--prompt", prompt)]
            return ["main_sampling_txt2img.py", *models.words(), *prompts, "--num", str(self.number), *how]
        asked = [] if self.class_number is None else ["--class", models.class_word(self.class_number)]
        number = ["-n", str(self.number)]
        return ["main_sampling_fid.py", *models.words(), *asked, *number, *how, "--no-stats-saving"]

    def file_names(self) -> list[str]:
        """What the command calls the pictures."""
        suffix = "" if self.class_number is None or self.prompts else f"_class{self.class_number}"
        return [f"{index:06d}{suffix}.png" for index in range(self.number * max(1, len(self.prompts)))]

    def labels(self) -> list[str]:
        """What stands below each picture."""
        names = self.file_names()
        if len(self.prompts) < 2:
            return names
        return [f"{self.prompts[index % len(self.prompts)]} ({name})" for index, name in enumerate(names)]


@dataclass(frozen=True)
class Growing:
    """Pictures that are not all there yet.

    Attributes:
        position: how many positions are drawn.
        total: of so many.
        image_NCHW: uint8; what is still to be drawn is grey.
        codes_NhwD: of finished pictures; None before.
    """

    position: int
    total: int
    image_NCHW: Tensor
    codes_NhwD: Tensor | None = None


def grow(models: Models, wish: Wish, clock: Callable[[], float] = time.perf_counter) -> Iterator[Growing]:
    """Draws, and shows the pictures after every position, as long as showing takes no longer than drawing does.

    Raises:
        ValueError: what cannot be drawn.
    """
    wish.check(models)
    conditions = wish.conditions(models)
    sampler = Sampler(
        models.stage1, models.stage2, conditions, wish.fields.settings(models.depth), amp_dtype=models.amp_dtype
    )
    num_samples = wish.number * max(1, len(wish.prompts))
    total = models.stage2.num_positions
    started, showing = clock(), 0.0
    for partial in sampler.stream(torch.arange(num_samples), conditions.of_samples(num_samples)):
        before = clock()
        done = partial.position == total
        if done or showing <= (before - started) / 2:
            image_NCHW = sampler.decode(partial.codes)
            if done:
                yield Growing(total, total, to_uint8(image_NCHW).cpu(), partial.codes)
                return
            shown_NCHW = greyed(image_NCHW, waiting_cells(partial.position, models.grid))
            yield Growing(partial.position, total, to_uint8(shown_NCHW).cpu())
            showing += clock() - before


def waiting_cells(position: int, grid: tuple[int, int]) -> Tensor:
    """Which cells (h, w) come after the first `position` in raster order."""
    return (torch.arange(grid[0] * grid[1]) >= position).view(grid)


def prompts_in(text: str) -> tuple[str, ...]:
    """One prompt a line; empty lines are left out."""
    return tuple(line.strip() for line in (text or "").splitlines() if line.strip())


def pieces(models: Models, prompt: str) -> list[tuple[int, str]]:
    """How the tokenizer reads a prompt: every id and what it stands for, without padding.

    Raises:
        ValueError: a word that a closed vocabulary does not have.
    """
    tokenizer = models.tokenizer
    assert tokenizer is not None
    ids = tokenizer.encode(prompt)
    while ids and ids[-1] == tokenizer.pad_id:
        ids = ids[:-1]
    return [(number, tokenizer.decode([number])) for number in ids]


def text_commands(models: Models, prompts: Sequence[str]) -> list[list[str]]:
    """What shows the same tokens on a terminal; none where the tokenizer lies in no folder of its own."""
    folder = models.checkpoint if models.checkpoint.is_dir() else models.checkpoint.parent
    if not (folder / "tokenizer_settings.json").is_file():
        return []
    return [["-m", "data.tokenizers", "show", str(folder), "--text", prompt] for prompt in prompts]
