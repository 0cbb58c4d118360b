"""What turns captions into token ids: one interface for closed vocabularies and for byte-pair encodings.

A tokenizer is kept as two text files, `tokenizer.json` and `tokenizer_settings.json`, in a folder of its own or in the
snapshot of a model that was trained with it. `data.tokenizers.tokenizer_loading.load_tokenizer` reads them.

Axes: B batch, L tokens of a caption (the context length).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.atomic import write_text_atomically

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_settings.json"
MOST_CONTEXT = 1 << 16  # tokens of a caption


class CaptionTokenizer:
    """Captions as exactly `context_length` token ids in [0, vocab_size).

    Longer captions are cut, shorter ones padded with `pad_id`. Subclasses implement `encode`, `decode` and `files`.
    """

    kind = ""

    def __init__(self, vocab_size: int, context_length: int, pad_id: int) -> None:
        check_length(context_length)
        self.vocab_size, self.context_length, self.pad_id = vocab_size, context_length, pad_id

    def encode(self, text: str, noise_key: int | None = None) -> list[int]:
        """The ids of one caption. A noise key asks for the random segmentation of training, where there is one; the
        same key gives the same ids.
        """
        raise AssertionError(f"{type(self).__name__} must implement encode")

    def length(self, text: str) -> int:
        """How many tokens a caption has before it is cut, marks included."""
        raise AssertionError(f"{type(self).__name__} must implement length")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids, without padding; what encoding changed (case, spaces) stays changed."""
        raise AssertionError(f"{type(self).__name__} must implement decode")

    def files(self) -> dict[str, str]:
        """File name -> content: all that `load_tokenizer` needs."""
        raise AssertionError(f"{type(self).__name__} must implement files")

    def encode_batch(self, texts: Sequence[str], noise_keys: Sequence[int] | None = None) -> Tensor:
        """int64 (B, L)."""
        keys = [None] * len(texts) if noise_keys is None else noise_keys
        rows = [self.encode(text, key) for text, key in zip(texts, keys, strict=True)]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.context_length)

    def cut_captions(self, texts: Sequence[str], source: str) -> str:
        """A line on the captions of `source` that are cut, and where the longest is; empty when none is."""
        lengths = [self.length(text) for text in texts]
        cut = sum(length > self.context_length for length in lengths)
        if not cut:
            return ""
        longest = max(range(len(texts)), key=lengths.__getitem__)
        return (
            f"{source}: {cut} of {len(texts)} captions have more than {self.context_length} tokens and are cut; the "
            f"longest has {lengths[longest]}: {texts[longest][:60]!r}"
        )

    def save(self, directory: str | Path) -> Path:
        """Writes the two files, the settings last, each complete or not at all; returns the directory."""
        for name, content in self.files().items():
            write_text_atomically(Path(directory) / name, content)
        return Path(directory)

    def _fit(self, ids: list[int]) -> list[int]:
        ids = ids[: self.context_length]
        return ids + [self.pad_id] * (self.context_length - len(ids))


def check_length(context_length: object) -> None:
    """ValueError for what is no number of tokens of a caption."""
    if type(context_length) is not int or not 1 <= context_length <= MOST_CONTEXT:
        shown = str(context_length)[:40]
        raise ValueError(f"dataset.context_length must be at least 1 and at most {MOST_CONTEXT}, not {shown}")


class WordTokenizer(CaptionTokenizer):
    """A closed vocabulary of lower-case words, the first of which stands for padding.

    Nothing is cut here: a word outside the vocabulary or a caption that is too long is a ValueError.
    """

    kind = "words"

    def __init__(self, words: Sequence[str], context_length: int) -> None:
        if not isinstance(words, (list, tuple)) or not words or not all(isinstance(word, str) for word in words):
            raise ValueError("a vocabulary is a list of words")
        self.words = tuple(words)
        self._token = {word: token for token, word in enumerate(self.words)}
        if len(self._token) < len(self.words):
            raise ValueError("a vocabulary names every word once")
        super().__init__(len(self.words), context_length, pad_id=0)

    def encode(self, text: str, noise_key: int | None = None) -> list[int]:
        words = text.lower().split()
        if len(words) > self.context_length:
            raise ValueError(f"caption {text!r} has {len(words)} words, more than context_length {self.context_length}")
        if unknown := [word for word in words if word not in self._token]:
            raise ValueError(f"caption word {unknown[0]!r} is unknown; the words are {', '.join(self.words[1:])}")
        return self._fit([self._token[word] for word in words])

    def length(self, text: str) -> int:
        return len(text.split())

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(self.words[token] for token in ids if token != self.pad_id)

    def files(self) -> dict[str, str]:
        return {
            TOKENIZER_FILE: as_json({"words": self.words}),
            SETTINGS_FILE: as_json({"kind": self.kind, "context_length": self.context_length}),
        }


def as_json(content: Mapping[str, Any]) -> str:
    """The text of a JSON file that people may read."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
