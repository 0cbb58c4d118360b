"""What the flags of the commands become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DrawFlags:
    """How codes are drawn.

    Attributes:
        class_name: name or number of a class; None for none in particular.
        num: how many images.
        seed: of all noise.
        rules: those of `rqtransformer.sample` that were given, by name.
    """

    class_name: str | None = None
    num: int = 1
    seed: int = 0
    rules: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"--num must be at least 1, not {self.num}")
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, not {self.seed}")


@dataclass(frozen=True)
class ReconstructSettings:
    """Images to give back: a file or a folder, into a folder to make."""

    source: Path
    stage1: Path
    out: Path
    ema: bool = False
    device: str | None = None


@dataclass(frozen=True)
class SampleSettings:
    """Images to draw, into a folder to make. `ema` is of stage 2."""

    stage1: Path
    stage2: Path
    out: Path
    ema: bool = False
    device: str | None = None
    draw: DrawFlags = DrawFlags()


@dataclass(frozen=True)
class InpaintSettings(SampleSettings):
    """An image to draw in part again: where `mask` is white, or all below the first `keep_rows` rows of codes."""

    image: Path = Path()
    mask: Path | None = None
    keep_rows: int | None = None

    def __post_init__(self) -> None:
        if (self.mask is None) == (self.keep_rows is None):
            raise ValueError("give either a MASK or --keep-rows")
