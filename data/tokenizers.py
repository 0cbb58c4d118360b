"""Byte-pair encodings of captions: trained here, published, or CLIP's.

    python -m data.tokenizers train captions.txt --vocab-size 16384 --out DIR
    python -m data.tokenizers show DIR --text "a cat on a mat"

`load_tokenizer(path)` reads what the first command writes, a published pair of vocabulary and merges, or CLIP's file;
nothing is downloaded.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from data.bpe import BPESettings, BPETokenizer
from data.bpe_files import CLIP_END, CLIP_START, PAD_TOKEN, find_pair, huggingface, read_clip, read_pair
from data.bpe_training import read_captions, train_bpe
from data.caption_tokenizer import SETTINGS_FILE, TOKENIZER_FILE, CaptionTokenizer, WordTokenizer
from data.config import DatasetConfig
from data.roots import ENVIRONMENT
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, one_line

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
        path: a folder with `tokenizer.json` and `tokenizer_settings.json`, such as a snapshot; a published pair, as its
            folder or as DIR/bpe-16k for `bpe-16k-vocab.json` and `bpe-16k-merges.txt`; CLIP's `.gz` file.
        context_length: tokens per caption; None: as saved, or CLIP's 77.
        bpe_dropout: None: as saved, or 0.

    Raises:
        ValueError: one line, when nothing of the kind is there, or a file is damaged.
    """
    path = Path(path).expanduser()
    folder = path.parent if path.name == TOKENIZER_FILE else path
    if (folder / SETTINGS_FILE).is_file():
        tokenizer = _read_saved(folder)
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
            f"no tokenizer at {path}; expected a folder with {TOKENIZER_FILE} and {SETTINGS_FILE}, a pair "
            "<name>-vocab.json and <name>-merges.txt, or CLIP's bpe_simple_vocab_16e6.txt.gz"
        )
    return _adjusted(tokenizer, context_length, bpe_dropout)


class TokenizerNotFound(ValueError):
    """No tokenizer is named, or the files of a published one are not there; one line that says where they go."""


def find_tokenizer(config: DatasetConfig, beside: Path | None = None) -> CaptionTokenizer:
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
    place = folder / PUBLISHED_NAMES.get(config.txt_tok_name, "-")
    return str(place) if place.is_file() or find_pair(place) else None


def find_or_warn(config: DatasetConfig) -> CaptionTokenizer | None:
    """`find_tokenizer` for a data set whose images are of use without captions: None, and a warning, for none."""
    try:
        return find_tokenizer(config)
    except TokenizerNotFound as error:
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
        return BPETokenizer(tokenizer.backend, replace(settings, context_length=length, bpe_dropout=dropout))
    if dropout:
        raise ValueError(f"dataset.bpe_dropout={dropout} needs a byte-pair encoding; this tokenizer knows whole words")
    return tokenizer if context_length is None else WordTokenizer(tokenizer.words, context_length)


def _read_saved(folder: Path) -> CaptionTokenizer:
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        content = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
        if settings.get("kind") == WordTokenizer.kind:
            return WordTokenizer(json.loads(content)["words"], settings["context_length"])
        backend = huggingface().Tokenizer.from_str(content)
        return BPETokenizer(backend, BPESettings(**settings))
    except UserError:
        raise
    except Exception as error:  # the library raises the plain class
        raise ValueError(f"the tokenizer in {folder} cannot be read: {one_line(error)}") from error


def parse(words: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(prog="python -m data.tokenizers", description="Tokenizers of captions.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
    train = commands.add_parser("train", help="byte-level BPE of the captions in a text file")
    train.add_argument("captions", type=Path, nargs="+", help="text files, one caption a line")
    train.add_argument("--vocab-size", type=int, required=True, help="tokens, padding included")
    train.add_argument("--out", type=Path, required=True, help="folder for the two files")
    train.add_argument("--context-length", type=int, default=64, help="tokens per caption (default: 64)")
    train.add_argument("--column", type=int, help="which column of tab-separated lines (train_list.txt: 2)")
    train.add_argument("--min-frequency", type=int, default=2, help="of a pair that becomes a token (default: 2)")
    train.add_argument("--keep-case", action="store_true", help="capital letters are letters of their own")
    show = commands.add_parser("show", help="what a tokenizer is, and how it reads a text")
    show.add_argument("path", type=Path, help="anything that dataset.tokenizer may name")
    show.add_argument("--text", default="", help="a caption")
    show.add_argument("--context-length", type=int, help="needed for published pairs")
    args = parser.parse_args(words)
    if args.overrides:
        parser.error(f"unexpected argument {args.overrides[0]!r}")
    return args


def main(args: Namespace) -> None:
    (_train if args.command == "train" else _show)(args)


def _train(args: Namespace) -> None:
    def captions() -> Iterator[str]:
        for path in args.captions:
            yield from read_captions(path, args.column)

    tokenizer = train_bpe(captions(), args.vocab_size, args.context_length, lowercase=not args.keep_case,
                          min_frequency=args.min_frequency)
    count = tokens = cut = 0
    for text in captions():
        length = len(tokenizer.backend.encode(text, add_special_tokens=False).ids)
        count, tokens, cut = count + 1, tokens + length, cut + (length > args.context_length)
    if not count:
        raise UserError(f"{args.captions[0]} holds no captions")
    tokenizer.save(args.out)
    print(f"{tokenizer.vocab_size} tokens to {args.out}: {count} captions have {tokens / count:.1f} tokens each, "
          f"{cut} of them more than --context-length {args.context_length}")
    if tokenizer.vocab_size < args.vocab_size:
        print(f"warning: the captions give only {tokenizer.vocab_size} of {args.vocab_size} tokens", file=sys.stderr)


def _show(args: Namespace) -> None:
    tokenizer = load_tokenizer(args.path, args.context_length)
    print(f"{tokenizer.kind}: {tokenizer.vocab_size} tokens, {tokenizer.context_length} per caption, padding is "
          f"{tokenizer.pad_id}")
    if args.text:
        ids = tokenizer.encode(args.text)
        print(" ".join(map(str, ids)))
        print(tokenizer.decode(ids))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
