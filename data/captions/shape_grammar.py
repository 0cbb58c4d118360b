"""Captions of the synthetic shapes: a closed grammar, so that words are tokens.

a <size> <colour> <shape> on a <background> background
"""

from __future__ import annotations

from data.tokenizers.caption_tokenizer import WordTokenizer

SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross", "bar", "dome")
SIZES = {"small": 0.40, "medium": 0.58, "large": 0.76}  # radius as a share of half the image's side
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (60, 90, 230),
    "yellow": (240, 220, 50),
    "cyan": (60, 210, 220),
    "magenta": (220, 60, 200),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
BACKGROUNDS = {"black": (12, 12, 12), "gray": (120, 120, 120), "brown": (90, 60, 35), "navy": (15, 25, 85)}
PAD = "<pad>"
CAPTION_LENGTH = 8

_VOCABULARY = (PAD, "a", "on", "background", *SIZES, *COLOURS, *SHAPES, *BACKGROUNDS)


def shape_vocabulary() -> list[str]:
    """All words; a word's position is its token id, id 0 is padding."""
    return list(_VOCABULARY)


def shape_caption(size: str, colour: str, shape: str, background: str) -> str:
    """The caption of an image with these attributes."""
    return f"a {size} {colour} {shape} on a {background} background"


def shape_tokenizer(context_length: int = CAPTION_LENGTH) -> WordTokenizer:
    """The grammar's words as tokens; ValueError when captions would not fit."""
    if context_length < CAPTION_LENGTH:
        raise ValueError(f"dataset.context_length {context_length} is too short: captions have {CAPTION_LENGTH} words")
    return WordTokenizer(shape_vocabulary(), context_length)
