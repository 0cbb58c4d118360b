"""How a sound file becomes a damaged one: by bits, by numbers that formats keep in places like these, and by words."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
LARGE = (*NUMBERS, (1 << 33), (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
DIGITS = (b"0", b"-1", b"1e999", b"2147483648", b"99999999999999999999", b"-0.5", b"1" * 400)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?")
Mutation = Callable[[bytearray, Sequence[bytes], random.Random, Sequence[bytes]], None]


def mutated(content: bytes, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> bytes:
    """One to six mutations of a file.

    Args:
        content: the sound file.
        seeds: other sound ones, of which parts are taken.
        words: what means something in the format.
    """
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 6))):
        draw.choice(MUTATIONS)(changed, seeds, draw, words)
    return bytes(changed[: 1 << 22])


def _bit(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)


def _byte(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        changed[draw.randrange(len(changed))] = draw.choice((0, 0xFF, 0x7F, 0x80, draw.randrange(256)))


def _number(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    width = draw.choice((2, 4, 4, 8))
    if len(changed) >= width:
        place = draw.randrange(len(changed) - width + 1)
        value = draw.choice(LARGE if width == 8 else NUMBERS) & ((1 << 8 * width) - 1)
        changed[place : place + width] = value.to_bytes(width, draw.choice(("little", "big")))


def _digits(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if found := list(_NUMBER.finditer(bytes(changed[: 1 << 16]))):
        start, end = draw.choice(found).span()
        changed[start:end] = draw.choice(DIGITS)


def _word(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if words:
        place = draw.randrange(len(changed) + 1)
        word = draw.choice(words)
        changed[place : place + draw.choice((0, len(word)))] = word


def _cut(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        del changed[draw.randrange(len(changed)) :]


def _gap(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        place = draw.randrange(len(changed))
        del changed[place : place + draw.choice((1, 2, 4, 16, 512))]


def _twice(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    if changed:
        place = draw.randrange(len(changed))
        part = bytes(changed[place : place + draw.choice((1, 4, 32, 512, 4096))])
        changed[place:place] = part * draw.choice((1, 2, 20, 200))


def _graft(changed: bytearray, seeds: Sequence[bytes], draw: random.Random, words: Sequence[bytes]) -> None:
    other = draw.choice(seeds)
    if other:
        start = draw.randrange(len(other))
        place = draw.randrange(len(changed) + 1)
        size = draw.choice((4, 64, 512, 4096))
        changed[place : place + size] = other[start : start + size]


MUTATIONS: tuple[Mutation, ...] = (_bit, _byte, _number, _digits, _word, _cut, _gap, _twice, _graft)
