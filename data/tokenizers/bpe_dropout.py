"""BPE dropout (Provilkov et al., ACL 2020, arXiv 1910.13267) whose noise is derived from a key.

The dropout of Hugging Face's `tokenizers` draws from a generator that cannot be seeded, so that a resumed run would
read other tokens than an uninterrupted one. Here the library normalises the text, splits it into words and encodes them
without dropout; the words are then segmented again with the library's own merges, dropped by our draws.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from data.noise import uniforms

_STREAM = 0x4250  # keeps these draws apart from every other use of the same key
_CHUNK = 64
LONGEST_WORD = 1000  # symbols; longer "words" (links, rows of signs) keep their plain segmentation


class DropoutMerges:
    """The merges of a BPE model, each left out with a probability at every step.

    Args:
        model: the `model` section of a `tokenizer.json`.
        fixed: ids which are never taken apart: special tokens and the one for unknown symbols.
    """

    def __init__(self, model: Mapping[str, Any], fixed: set[int]) -> None:
        self.token_id: dict[str, int] = model["vocab"]
        self.token = {number: token for token, number in self.token_id.items()}
        self.suffix: str = model.get("end_of_word_suffix") or ""
        self.fixed = fixed
        pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        self.rank: dict[tuple[str | int | None, ...], int] = {pair: rank for rank, pair in enumerate(pairs)}

    def resegment(
        self, ids: Sequence[int], words: Sequence[int | None], probability: float, noise_key: int
    ) -> list[int]:
        """Token ids of the same text. `ids` is its encoding without dropout, `words` the number of each id's word."""
        draws, result, start = _draws(noise_key), [], 0
        while start < len(ids):
            end = start + 1
            while end < len(ids) and words[end] == words[start] is not None:
                end += 1
            result += self._word(ids[start:end], probability, draws)
            start = end
        return result

    def _word(self, ids: Sequence[int], probability: float, draws: Iterator[float]) -> list[int]:
        symbols = [symbol for number in ids for symbol in self._symbols(number)]
        if len(symbols) > LONGEST_WORD:
            return list(ids)
        merged = self.merge(symbols, probability, draws)
        return [symbol if isinstance(symbol, int) else self.token_id[symbol] for symbol in merged]

    def _symbols(self, number: int) -> list[str | int]:
        """The symbols that merging starts from; what must stay whole is its own id, which no merge mentions."""
        if number in self.fixed or number not in self.token:
            return [number]
        token = self.token[number]
        if not self.suffix or not token.endswith(self.suffix):
            return list(token)
        characters = list(token[: -len(self.suffix)])
        return [*characters[:-1], characters[-1] + self.suffix]

    def merge(self, given: Sequence[str | int], probability: float, draws: Iterator[float]) -> list[str | int]:
        """The symbols after all merges that are not dropped, by rank and then from the left.

        A dropped merge gets another chance after the next one from the queue that is not dropped. As in the library,
        that one may be out of date (its symbols were merged with others meanwhile), which makes dropout weaker in long
        words than Algorithm 1 of the paper: published models were trained so.
        """
        symbols: list[str | int | None] = list(given)
        end = len(symbols)
        left, right = list(range(-1, end - 1)), list(range(1, end + 1))
        queue: list[tuple[int, int, str]] = []
        dropped: list[tuple[int, int, str]] = []

        def push(place: int) -> None:
            if place >= 0 and right[place] < end and (pair := (symbols[place], symbols[right[place]])) in self.rank:
                heapq.heappush(queue, (self.rank[pair], place, f"{pair[0]}{pair[1]}"))

        for place in range(end):
            push(place)
        while queue:
            first = heapq.heappop(queue)
            if next(draws) < probability:
                dropped.append(first)
                continue
            while dropped:
                heapq.heappush(queue, dropped.pop())
            _, place, merged = first
            after = right[place]
            pair = (symbols[place], symbols[after] if after < end else None)
            if pair not in self.rank or f"{pair[0]}{pair[1]}" != merged:
                continue  # out of date
            symbols[place], symbols[after], right[place] = merged, None, right[after]
            if right[place] < end:
                left[right[place]] = place
            push(left[place])
            push(place)
        return [symbol for symbol in symbols if symbol is not None]


def _draws(noise_key: int) -> Iterator[float]:
    for chunk in count():
        yield from uniforms(_CHUNK, _STREAM, noise_key, chunk).tolist()
