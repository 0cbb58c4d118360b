"""Captions of the synthetic pairs, a closed grammar in which every word is a token:

a <size> <colour> <shape> <relation> a <size> <colour> <shape>

with the relations above, below, left of, right of: "a large red circle above a small blue square".
"""

from __future__ import annotations

from typing import NamedTuple

from data.captions.shape_grammar import COLOURS as ALL_COLOURS
from data.captions.shape_grammar import PAD

SIZES = {"small": 0.28, "large": 0.42}  # radius as a share of half the image's side
COLOURS = {name: ALL_COLOURS[name] for name in ("red", "green", "blue", "yellow", "magenta", "white")}
SHAPES = ("circle", "square", "triangle", "cross")
RELATIONS = ("above", "below", "left of", "right of")
CAPTION_LENGTH = 10

ATTRIBUTES = ("size", "colour", "shape")  # of each object, in the order of the caption
_OBJECT = (tuple(SIZES), tuple(COLOURS), SHAPES)
CHOICES = (*_OBJECT, RELATIONS, *_OBJECT)  # what each number of a scene chooses from

_VOCABULARY = (PAD, "a", "of", "above", "below", "left", "right", *SIZES, *COLOURS, *SHAPES)
_TOKEN = {word: token for token, word in enumerate(_VOCABULARY)}


class Scene(NamedTuple):
    """What a caption says, as words."""

    size: str
    colour: str
    shape: str
    relation: str
    other_size: str
    other_colour: str
    other_shape: str

    def caption(self) -> str:
        """The sentence."""
        return (
            f"a {self.size} {self.colour} {self.shape} {self.relation} "
            f"a {self.other_size} {self.other_colour} {self.other_shape}"
        )


def pair_vocabulary() -> list[str]:
    """All words; a word's position is its token id, id 0 is padding."""
    return list(_VOCABULARY)


def parse_pair_caption(text: str) -> Scene:
    """The scene that a caption describes; ValueError shows the grammar when it is none."""
    words = text.lower().replace("left of", "left_of").replace("right of", "right_of").split()
    if len(words) == 9 and words[0] == words[5] == "a":
        scene = Scene(*(word.replace("_", " ") for word in (*words[1:5], *words[6:])))
        if all(word in choices for word, choices in zip(scene, CHOICES)):
            return scene
    size, colour, shape, relation = ("|".join(choices) for choices in CHOICES[:4])
    raise ValueError(
        f"caption {text!r} is not of the form 'a S C F <relation> a S C F' with S {size}, C {colour}, F {shape} and "
        f"relation {relation}"
    )


def tokenize_pair_caption(text: str, context_length: int = CAPTION_LENGTH) -> list[int]:
    """Token ids of a caption, padded to context_length; ValueError for a text outside the grammar or too long."""
    words = parse_pair_caption(text).caption().split()
    if len(words) > context_length:
        raise ValueError(f"caption {text!r} has {len(words)} words, more than context_length {context_length}")
    return [_TOKEN[word] for word in words] + [_TOKEN[PAD]] * (context_length - len(words))
