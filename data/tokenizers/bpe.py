"""A byte-pair encoding as the tokenizer of captions: what the `tokenizers` library does, and what is ours around it."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Optional

from data.tokenizers.bpe_dropout import DropoutMerges
from data.tokenizers.caption_tokenizer import SETTINGS_FILE, TOKENIZER_FILE, CaptionTokenizer, as_json, check_length
from data.tokenizers.safe_library import is_id, library_errors

KINDS = ("byte-bpe", "char-bpe", "clip-bpe", "tokenizer-json")


@dataclass(frozen=True)
class BPESettings:
    """What a tokenizer needs beyond the library's file. `start_id` and `end_id` stand around every caption."""

    kind: str
    context_length: int
    pad_id: int
    bpe_dropout: float = 0.0
    start_id: Optional[int] = None
    end_id: Optional[int] = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the kind {str(self.kind)[:40]!r} of a tokenizer is unknown; known: {', '.join(KINDS)}")
        if type(self.bpe_dropout) not in (int, float):
            raise ValueError(f"dataset.bpe_dropout must be a number, not {str(self.bpe_dropout)[:40]!r}")
        check_length(self.context_length)
        for name in ("pad_id", "start_id", "end_id"):
            number = getattr(self, name)
            if not is_id(number) and (number is not None or name == "pad_id"):
                raise ValueError(f"{name} {str(number)[:40]} of a tokenizer is no id of a token")
        if not 0 <= self.bpe_dropout <= 1:
            raise ValueError(f"dataset.bpe_dropout must lie in [0, 1], not {self.bpe_dropout}")
        marks = (self.start_id is not None) + (self.end_id is not None)
        if self.context_length <= marks:
            raise ValueError(f"dataset.context_length must be at least {marks + 1}, not {self.context_length}")


class BPETokenizer(CaptionTokenizer):
    """A byte-pair encoding. With a noise key, merges are dropped with probability `settings.bpe_dropout`.

    backend: a `tokenizers.Tokenizer` with a BPE model, without dropout, padding and truncation of its own.
    """

    def __init__(self, backend: Any, settings: BPESettings) -> None:
        self.backend, self.settings, self.kind = backend, settings, settings.kind
        vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        for name in ("pad_id", "start_id", "end_id"):
            if (number := getattr(settings, name)) is not None and number >= vocab_size:
                raise ValueError(f"{name} {number} is outside of the {vocab_size} tokens of the tokenizer")
        super().__init__(vocab_size, settings.context_length, settings.pad_id)

    @cached_property
    def _merges(self) -> DropoutMerges:
        content = json.loads(self.backend.to_str())
        unknown = content["model"].get("unk_token")
        fixed = {entry["id"] for entry in content["added_tokens"]} | {content["model"]["vocab"].get(unknown, -1)}
        return DropoutMerges(content["model"], fixed)

    @property
    def has_merges(self) -> bool:
        """Whether it is a byte-pair encoding: a `tokenizer.json` may hold another model."""
        return json.loads(self.backend.to_str())["model"]["type"] == "BPE"

    def length(self, text: str) -> int:
        marks = (self.settings.start_id is not None) + (self.settings.end_id is not None)
        return len(self._encoding(text).ids) + marks

    def _encoding(self, text: str) -> Any:
        text = text.encode("utf-8", errors="replace").decode("utf-8")
        with library_errors("a caption cannot be read by the tokenizer"):
            cleaned = clean_for_clip(text) if self.kind == "clip-bpe" else text
            return self.backend.encode(cleaned, add_special_tokens=False)

    def encode(self, text: str, noise_key: int | None = None) -> list[int]:
        """The ids of any text: nothing is refused, and what is no valid Unicode becomes a question mark."""
        encoding = self._encoding(text)
        ids, settings = encoding.ids, self.settings
        if noise_key is not None and settings.bpe_dropout > 0:
            ids = self._merges.resegment(ids, encoding.word_ids, settings.bpe_dropout, noise_key)
        start = [] if settings.start_id is None else [settings.start_id]
        end = [] if settings.end_id is None else [settings.end_id]
        return self._fit([*start, *ids[: self.context_length - len(start) - len(end)], *end])

    def decode(self, ids: Iterable[int]) -> str:
        ids, end = list(ids), self.settings.end_id
        if end is None:
            ids = [number for number in ids if number != self.pad_id]
        elif end in ids:
            ids = ids[: ids.index(end)]
        with library_errors("token ids cannot be read by the tokenizer"):
            text = self.backend.decode(ids, skip_special_tokens=True)
        return text.replace("</w>", " ").strip()

    def files(self) -> dict[str, str]:
        return {TOKENIZER_FILE: self.backend.to_str(pretty=True) + "\n", SETTINGS_FILE: as_json(asdict(self.settings))}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_merges"}


def clean_for_clip(text: str) -> str:
    """HTML entities as characters, single spaces, lower case: CLIP's own clean-up less its repair of wrongly decoded
    text (the package ftfy), which changes few captions.
    """
    return " ".join(html.unescape(html.unescape(text)).split()).lower()
