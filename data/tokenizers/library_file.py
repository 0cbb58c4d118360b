"""A `tokenizer.json` of the `tokenizers` library that comes alone, as most published models have it.

The file says what is done with a text, and which marks stand around it; how long captions are and what fills them up it
may say (`truncation`, `padding`). Its own truncation and padding are taken as settings, and then switched off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.tokenizers.bpe import BPESettings, BPETokenizer
from data.tokenizers.bpe_files import huggingface
from data.tokenizers.caption_tokenizer import CaptionTokenizer, WordTokenizer
from data.tokenizers.safe_library import library_errors, library_tokenizer, read_limited
from runtime.errors import UserError

PADDING_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|padding|>")
KIND = "tokenizer-json"
_PROBE = "a"


def read_library_file(path: Path, context_length: int | None) -> CaptionTokenizer:
    """The tokenizer of a file that has no settings beside it.

    Args:
        context_length: tokens per caption; None: as its `truncation` says.

    Raises:
        ValueError: it is no such file, or does not say what it must: the length, the padding, at most one mark at
            either end.
    """
    hf = huggingface()
    text = read_limited(path)
    with library_errors(f"{path} is no file of the tokenizers library"):
        content = json.loads(text)
        words = content.get("words") if isinstance(content, dict) else None
    backend, said = (None, {}) if words is not None else library_tokenizer(hf, text, path)
    truncation, padding = (_section(said.get(name)) for name in ("truncation", "padding"))
    length = context_length or truncation.get("max_length")
    if length is None:
        raise UserError(f"dataset.context_length is missing: {path} does not say how long captions are")
    with library_errors(f"the tokenizer in {path} cannot be read"):
        if words is not None:
            return WordTokenizer(words, length)
        start, end = _marks(path, backend)
        pad = padding["pad_id"] if padding else _padding(path, backend, end)
        return BPETokenizer(backend, BPESettings(KIND, length, pad, 0.0, start, end))


def _section(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _marks(path: Path, backend: Any) -> tuple[int | None, int | None]:
    """The ids that its template puts before and behind a text."""
    body = backend.encode(_PROBE, add_special_tokens=False).ids
    ids = backend.encode(_PROBE, add_special_tokens=True).ids
    for before in range(len(ids) - len(body) + 1):
        start, end = ids[:before], ids[before + len(body) :]
        if ids[before : before + len(body)] == body and max(len(start), len(end)) <= 1:
            return (start or [None])[0], (end or [None])[0]
    raise UserError(f"{path} puts {len(ids) - len(body)} marks around a text; at most one at either end can be kept")


def _padding(path: Path, backend: Any, end: int | None) -> int:
    known = (backend.token_to_id(token) for token in PADDING_TOKENS)
    if (found := next((number for number in known if number is not None), end)) is None:
        raise UserError(f"{path} has no token for padding; expected one of {', '.join(PADDING_TOKENS)}, or an end mark")
    return found
