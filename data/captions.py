"""Captions of the synthetic shapes: a closed grammar, so that words are tokens.

a <size> <colour> <shape> on a <background> background
"""

from __future__ import annotations

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
_TOKEN = {word: token for token, word in enumerate(_VOCABULARY)}


def caption_vocabulary() -> list[str]:
    """All words; a word's position is its token id, id 0 is padding."""
    return list(_VOCABULARY)


def caption_text(size: str, colour: str, shape: str, background: str) -> str:
    """The caption of an image with these attributes."""
    return f"a {size} {colour} {shape} on a {background} background"


def tokenize_caption(text: str, context_length: int = CAPTION_LENGTH) -> list[int]:
    """Token ids of a caption, padded to context_length; ValueError names an unknown word or a text too long."""
    words = text.lower().split()
    if len(words) > context_length:
        raise ValueError(f"caption {text!r} has {len(words)} words, more than context_length {context_length}")
    unknown = [word for word in words if word not in _TOKEN]
    if unknown:
        raise ValueError(f"caption word {unknown[0]!r} is unknown; the words are {', '.join(_VOCABULARY[1:])}")
    return [_TOKEN[word] for word in words] + [0] * (context_length - len(words))
