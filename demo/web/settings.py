"""How the tabs draw: what a person writes into the fields, as settings and as the words of a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError
from sampling.flags import guidance
from sampling.sampler import SamplingSettings


@dataclass(frozen=True)
class DrawFields:
    """The fields as they are written; an empty one is what the checkpoint says.

    Attributes:
        seed: of all noise.
        temperature, top_k, top_p: one value, or one per depth with spaces between.
        cfg_scale: a number or a schedule.
    """

    seed: Any = 0
    temperature: str = ""
    top_k: str = ""
    top_p: str = ""
    cfg_scale: str = ""

    def settings(self, depth: int) -> SamplingSettings:
        """As the commands read them.

        Args:
            depth: of the model: so many values there may be.

        Raises:
            UserError: no number, or the wrong number of values.
        """
        cfg = (self.cfg_scale or "").strip()
        return SamplingSettings(
            temperature=_numbers("temperature", self.temperature, float, depth),
            top_k=_numbers("top-k", self.top_k, int, depth),
            top_p=_numbers("top-p", self.top_p, float, depth),
            cfg_scale=guidance(cfg) if cfg else None,
            weight_format="dense",
            seed=self.whole_seed(),
        )

    def whole_seed(self) -> int:
        """The seed.

        Raises:
            UserError: no whole number.
        """
        if isinstance(self.seed, bool) or not isinstance(self.seed, (int, float)) or self.seed != int(self.seed):
            raise UserError(f"seed {self.seed!r} must be a whole number")
        return int(self.seed)

    def words(self) -> list[str]:
        """As flags of the commands."""
        flags = [("-t", self.temperature), ("--top-k", self.top_k), ("--top-p", self.top_p)]
        words = ["--seed", str(self.whole_seed())]
        for flag, text in flags:
            if values := _split(text):
                words += [flag, *values]
        return [*words, "--cfg-scale", self.cfg_scale.strip()] if (self.cfg_scale or "").strip() else words


def _split(text: str | None) -> list[str]:
    return (text or "").replace(",", " ").split()


def _numbers(name: str, text: str | None, kind: Callable[[str], Any], depth: int) -> list[Any] | None:
    values = _split(text)
    if not values:
        return None
    if len(values) not in (1, depth):
        raise UserError(f"{name} {text!r} has {len(values)} values: give one, or {depth}, one for each depth")
    try:
        return [kind(value) for value in values]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{name} {text!r} must be {what}, such as {'64' if kind is int else '0.9'}") from None
