"""A `tokenizer.json` as the `tokenizers` library reads it, when nobody knows who wrote the file.

Its own dropout, truncation and padding are switched off. Ids are whole and below `MOST_TOKENS`. What is built of parts
that are known to end on any text is read at once; a file with other parts (regular expressions, replacements, tables of
characters) is first tried in a process with limits, on texts that are bad for its expressions.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.text_files import read_text
from data.tokenizers import library_trial
from runtime.errors import UserError, one_line

MOST_BYTES = 1 << 26  # of a file of a tokenizer; the largest that are published have half of it
MOST_UNPACKED = 1 << 24  # of a compressed vocabulary; CLIP's has 3 MB
MOST_TOKENS = 1 << 20
_MOST_ADDED = 2000
_WALL_SECONDS = 120  # for a machine that has much else to do; the processor's time is bounded by the trial itself
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MODELS = ("BPE", "WordLevel", "WordPiece")
_KNOWN = frozenset(
    "Sequence NFC NFD NFKC NFKD Strip StripAccents Lowercase Nmt BertNormalizer ByteLevel Whitespace WhitespaceSplit "
    "BertPreTokenizer Punctuation Digits Metaspace CharDelimiterSplit TemplateProcessing BertProcessing "
    "RobertaProcessing BPEDecoder WordPiece Fuse ByteFallback Split".split()
)
CLIP_WORDS = r"'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_PATTERNS = (CLIP_WORDS,)  # our own; others are tried
_GROUP_AGAIN = re.compile(r"[+*]|\{\d+,\}")
_PROBE_LENGTH = 1000
_ORDINARY = "aA1 \n!-_'é日"
_NEVER = "\u2603"  # at the end of a probe: an expression that wants the end of the row tries all other ways first


def read_limited(path: Path) -> str:
    """The text of a file of a tokenizer; UserError where it is too long, or no text."""
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"{path} has {size} bytes, more than the {MOST_BYTES} of any tokenizer")
    return read_text(path)


def unpacked(path: Path) -> str:
    """The text of a gzip file, which may stand for a thousand times its bytes; ValueError where it is too long."""
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_UNPACKED + 1)
        if len(content) <= MOST_UNPACKED:
            return content.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no gzip file of merges: {one_line(error)}") from error
    raise ValueError(f"{path} unpacks to more than {MOST_UNPACKED} bytes")


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """UserError, in one line, for whatever the library raises; its panics are no ordinary exceptions."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{what}: {one_line(error)[:120]}") from None


def library_tokenizer(hf: Any, text: str, source: str | Path) -> tuple[Any, dict[str, Any]]:
    """(The library's tokenizer of a file without dropout, truncation and padding; what the file says).

    Args:
        hf: the `tokenizers` package.
        text: the content of the file.
        source: the file, for errors.

    Raises:
        ValueError: one line.
    """
    with library_errors(f"{source} is no file of the tokenizers library"):
        content = _checked_content(json.loads(text))
    said = {name: content.get(name) for name in ("truncation", "padding")}
    model = {**content["model"], "dropout": None} if "dropout" in content["model"] else content["model"]
    text = json.dumps({**content, "truncation": None, "padding": None, "model": model}, ensure_ascii=True)
    if problem := _try_apart(text):
        raise UserError(f"{source}: {problem}")
    with library_errors(f"{source} is no file of the tokenizers library"):
        return hf.Tokenizer.from_str(text), said


def _checked_content(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("it has no 'model'")
    vocab = content["model"].get("vocab")
    if isinstance(vocab, dict):
        check_vocabulary(vocab)
    elif not isinstance(vocab, list) or not 0 < len(vocab) <= MOST_TOKENS:
        raise ValueError(f"its vocabulary must have 1 to {MOST_TOKENS} tokens")
    for token in content.get("added_tokens") or ():
        if not isinstance(token, dict) or not is_id(token.get("id")) or not token.get("content"):
            raise ValueError(f"its added token {repr(token)[:60]} has no content, or no id below {MOST_TOKENS}")
    for pattern in _patterns(content):
        if _repeats_repetitions(pattern):
            raise ValueError(f"its pattern {pattern[:40]!r} repeats a repetition, which may never end")
    return content


def check_vocabulary(vocab: Mapping[str, Any]) -> None:
    """ValueError where a token is none or its id is not whole, negative, or beyond all vocabularies."""
    wrong = next((token for token, number in vocab.items() if not is_id(number)), None)
    if wrong is not None:
        raise ValueError(f"token {wrong[:40]!r} has id {str(vocab[wrong])[:40]}; ids are 0 to {MOST_TOKENS - 1}")
    if not vocab:
        raise ValueError("its vocabulary is empty")


def is_id(number: Any) -> bool:
    """Whether something can be the id of a token."""
    return type(number) is int and 0 <= number < MOST_TOKENS


def _parts(content: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All parts of the pipeline, those inside others included."""
    waiting = [content.get(name) for name in _PARTS]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            yield part
            for inside in part.values():
                waiting += inside if isinstance(inside, list) else [inside] if isinstance(inside, Mapping) else []


def _patterns(content: Mapping[str, Any]) -> list[str]:
    return [part["Regex"] for part in _parts(content) if isinstance(part.get("Regex"), str)]


def _repeats_repetitions(pattern: str) -> bool:
    """Whether a group that holds an unbounded repetition is itself repeated without bound: `(a+)+`."""
    bare = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "x", pattern)
    holds = [False]
    for place, sign in enumerate(bare):
        if sign == "(":
            holds.append(False)
        elif sign == ")" and len(holds) > 1:
            inside = holds.pop()
            again = _GROUP_AGAIN.match(bare, place + 1)
            if inside and again and bare[again.end() : again.end() + 1] != "+":  # possessive ones give nothing back
                return True
            holds[-1] = holds[-1] or inside
        elif _GROUP_AGAIN.match(bare, place):
            holds[-1] = True
    return False


def _is_known(content: Mapping[str, Any]) -> bool:
    """Whether all parts end on any text, and soon."""
    kinds = {part["type"] for part in _parts(content) if isinstance(part.get("type"), str)}
    kinds -= {"Special", "Sequence", "A", "B"}
    short_words = content["model"].get("max_input_chars_per_word", 100)
    return (
        content["model"].get("type") in _MODELS
        and kinds <= _KNOWN
        and all(pattern in _PATTERNS for pattern in _patterns(content))
        and len(content.get("added_tokens") or ()) <= _MOST_ADDED
        and type(short_words) is int
        and short_words <= _PROBE_LENGTH
    )


@lru_cache(maxsize=2)  # training and validation read the same file
def _try_apart(text: str) -> str:
    """What is wrong with a file that is tried in a process of its own; empty for a sound one."""
    content = json.loads(text)
    if _is_known(content):
        return ""
    told = json.dumps({"path": sys.path, "content": text, "probes": probes(_patterns(content))})
    try:
        ended = subprocess.run(
            [sys.executable, "-I", library_trial.__file__],
            input=told.encode("ascii"),
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"its patterns or normalizers did not end within {_WALL_SECONDS} s"
    said = ended.stdout.decode("ascii", "replace").strip()
    if ended.returncode == 0 and said == library_trial.SOUND:
        return ""
    if said == library_trial.UNLIMITED:
        return (
            "it has parts that are tried in a process with limits alone, which this system does not offer (Linux does)"
        )
    if ended.returncode < 0:
        seconds, memory = library_trial.PROCESSOR_SECONDS, library_trial.MEMORY_BYTES >> 20
        return f"reading texts with it takes more than {seconds} s of the processor or {memory} MiB, or crashes"
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing said"]
    return f"the library cannot read texts with it: {lines[-1][:120]}"


def probes(patterns: list[str]) -> list[str]:
    """Texts on which bad expressions take long: rows of one or two of the signs that they name."""
    named = [sign for pattern in patterns for sign in re.sub(r"\\[pPux]\{?\w*\}?|\\.", "", pattern)]
    signs = list(dict.fromkeys([*_ORDINARY, *(sign for sign in named if sign.isalnum() or sign in " -_'.,/@#")]))[:30]
    rows = [sign * _PROBE_LENGTH for sign in signs]
    rows += [(first + second) * (_PROBE_LENGTH // 2) for first in signs[-8:] for second in signs[:8] if first != second]
    return ["", "a cat on a mat", *rows, *(row + _NEVER for row in rows)]
