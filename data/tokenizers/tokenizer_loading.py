"""Which tokenizer reads the captions: one that was saved, a published pair, or CLIP's file. Nothing is downloaded."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import fields, replace
from pathlib import Path

from data.config import DatasetConfig
from data.roots import ENVIRONMENT
from data.tokenizers.bpe import BPESettings, BPETokenizer
from data.tokenizers.bpe_files import CLIP_END, CLIP_START, PAD_TOKEN, find_pair, huggingface, read_clip, read_pair
from data.tokenizers.caption_tokenizer import SETTINGS_FILE, TOKENIZER_FILE, CaptionTokenizer, WordTokenizer
from data.tokenizers.library_file import read_library_file
from data.tokenizers.safe_library import library_errors, library_tokenizer, read_limited

CLIP_CONTEXT = 77
FILES_FOLDER = "tokenizer-files"
PUBLISHED_NAMES = {  # dataset.txt_tok_name -> its files, without -vocab.json and -merges.txt
    "bpe16k_huggingface": "bpe-16k",
    "bpe30k_huggingface": "bpe-30k",
    "simple": "bpe_simple_vocab_16e6.txt.gz",
}
_log = logging.getLogger(__name__)


def load_tokenizer(
    path: str | Path, context_length: int | None = None, bpe_dropout: float | None = None
) -> CaptionTokenizer:
    """The tokenizer at `path`.

    Args:
        path: a folder with `tokenizer.json` and `tokenizer_settings.json`, such as a snapshot; a `tokenizer.json` of
            the `tokenizers` library, or a folder with one; a published pair, as its folder or as DIR/bpe-16k for
            `bpe-16k-vocab.json` and `bpe-16k-merges.txt`; CLIP's `.gz` file.
        context_length: tokens per caption; None: as saved, or CLIP's 77.
        bpe_dropout: None: as saved, or 0.

    Raises:
        ValueError: one line, when nothing of the kind is there, or a file is damaged.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.name == TOKENIZER_FILE else path
    if (folder / SETTINGS_FILE).is_file():
        tokenizer = _read_saved(folder)
    elif (alone := _library_file(path)) is not None:
        tokenizer = read_library_file(alone, context_length)
    elif path.is_file() and path.suffix == ".gz":
        backend = read_clip(path)
        marks = [backend.token_to_id(token) for token in (CLIP_START, CLIP_END)]
        tokenizer = BPETokenizer(backend, BPESettings("clip-bpe", context_length or CLIP_CONTEXT, 0, 0.0, *marks))
    elif pair := find_pair(path):
        if context_length is None:
            raise ValueError(f"dataset.context_length is missing: {pair[0]} does not say how long captions are")
        backend, kind = read_pair(*pair)
        tokenizer = BPETokenizer(backend, BPESettings(kind, context_length, backend.token_to_id(PAD_TOKEN)))
    else:
        raise ValueError(
            f"no tokenizer at {path}; expected a folder with {TOKENIZER_FILE}, a pair <name>-vocab.json and "
            "<name>-merges.txt, or CLIP's bpe_simple_vocab_16e6.txt.gz"
        )
    return _adjusted(tokenizer, context_length, bpe_dropout)


def _library_file(path: Path) -> Path | None:
    """The file of the `tokenizers` library that a path names or a folder holds."""
    if path.is_dir():
        path = path / TOKENIZER_FILE
    return path if path.suffix == ".json" and not path.name.endswith("vocab.json") and path.is_file() else None


class TokenizerNotFound(ValueError):
    """No tokenizer is named, or the files of a published one are not there; one line that says where they go."""


def tokenizer_named(config: DatasetConfig, beside: Path | None = None) -> CaptionTokenizer:
    """The tokenizer of a `dataset` section: that of dataset.tokenizer, else the published one of dataset.txt_tok_name.

    Args:
        beside: a folder which may hold the files of a published tokenizer: that of the checkpoint.

    Raises:
        TokenizerNotFound: there is none.
        ValueError: it is damaged, or has more than dataset.vocab_size_txt tokens.
    """
    where = config.tokenizer or _published_files(config.txt_tok_name, beside)
    if where is None:
        raise TokenizerNotFound(
            "dataset.tokenizer is missing: captions need a folder written by `python -m data.tokenizers train`, a "
            "published pair (DIR/bpe-16k) or CLIP's bpe_simple_vocab_16e6.txt.gz"
        )
    tokenizer = load_tokenizer(where, config.context_length, config.bpe_dropout)
    if config.vocab_size_txt is not None and tokenizer.vocab_size > config.vocab_size_txt:
        raise ValueError(
            f"dataset.vocab_size_txt={config.vocab_size_txt} is less than the {tokenizer.vocab_size} tokens of {where}"
        )
    return tokenizer


def tokenizer_beside(config: DatasetConfig, folder: Path) -> str | None:
    """What dataset.tokenizer may be for the model in `folder`: the tokenizer that was saved there, or the files of the
    published one that the config names; None where it holds neither.
    """
    if (folder / SETTINGS_FILE).is_file():
        return str(folder)
    place = folder / PUBLISHED_NAMES.get(config.txt_tok_name or "", "-")
    return str(place) if place.is_file() or find_pair(place) else None


def tokenizer_named_or_none(config: DatasetConfig, split: str) -> CaptionTokenizer | None:
    """`tokenizer_named` for a split whose images are of use without captions (stage 1, references): None for none.

    One whose name is published and whose files are missing is a warning, of the training split alone: once a run.
    """
    try:
        return tokenizer_named(config)
    except TokenizerNotFound as error:
        if config.txt_tok_name is not None and split == "train":
            _log.warning("%s gives images without captions: %s", config.name, error)
        return None


def _published_files(name: str | None, beside: Path | None) -> Path | None:
    """Where a published tokenizer lies: `beside`, $RQ_DATA_ROOT/tokenizer-files, data/tokenizer-files; or no name."""
    if name is None:
        return None
    if name not in PUBLISHED_NAMES:
        raise ValueError(f"dataset.txt_tok_name {name!r} is unknown; choose one of {', '.join(PUBLISHED_NAMES)}")
    roots = [Path(root).expanduser() / FILES_FOLDER for root in (os.environ.get(ENVIRONMENT), "data") if root]
    places = [folder / PUBLISHED_NAMES[name] for folder in ([] if beside is None else [beside]) + roots]
    for place in places:
        if place.is_file() or find_pair(place):
            return place
    raise TokenizerNotFound(
        f"dataset.txt_tok_name={name}: no {' or '.join(map(str, places))}; put its files there or set "
        "dataset.tokenizer=<path> (see data/README.md)"
    )


def _adjusted(tokenizer: CaptionTokenizer, context_length: int | None, dropout: float | None) -> CaptionTokenizer:
    if isinstance(tokenizer, BPETokenizer):
        settings = tokenizer.settings
        length = settings.context_length if context_length is None else context_length
        dropout = settings.bpe_dropout if dropout is None else dropout
        if dropout and not tokenizer.has_merges:
            raise ValueError(f"dataset.bpe_dropout={dropout} needs a byte-pair encoding; this tokenizer has no merges")
        return BPETokenizer(tokenizer.backend, replace(settings, context_length=length, bpe_dropout=dropout))
    if dropout:
        raise ValueError(f"dataset.bpe_dropout={dropout} needs a byte-pair encoding; this tokenizer knows whole words")
    if context_length is None or not isinstance(tokenizer, WordTokenizer):
        return tokenizer
    return WordTokenizer(tokenizer.words, context_length)


def _read_saved(folder: Path) -> CaptionTokenizer:
    with library_errors(f"the tokenizer in {folder} cannot be read"):
        settings = json.loads(read_limited(folder / SETTINGS_FILE))
        content = read_limited(folder / TOKENIZER_FILE)
        if not isinstance(settings, dict):
            raise ValueError(f"{SETTINGS_FILE} is no JSON object")
        if unknown := sorted(settings.keys() - {field.name for field in fields(BPESettings)}):
            raise ValueError(f"{SETTINGS_FILE} has the unknown setting {unknown[0]!r}")
        if settings.get("kind") == WordTokenizer.kind:
            return WordTokenizer(json.loads(content)["words"], settings["context_length"])
        backend, _ = library_tokenizer(huggingface(), content, folder / TOKENIZER_FILE)
        return BPETokenizer(backend, BPESettings(**settings))
    raise AssertionError("it returns or raises")
