"""The command that trains and shows tokenizers of captions.

    python -m data.tokenizers train captions.txt --vocab-size 16384 --out DIR
    python -m data.tokenizers show DIR --text "a cat on a mat"

`data.tokenizers.tokenizer_loading` reads what the first one writes. Nothing imports this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error, say, warn


@dataclass(frozen=True)
class TrainSettings:
    """What `train` is told."""

    captions: tuple[Path, ...]
    vocab_size: int
    out: Path
    context_length: int = 64
    column: int | None = None
    min_frequency: int = 2
    keep_case: bool = False


@dataclass(frozen=True)
class ShowSettings:
    """What `show` is told."""

    path: Path
    text: str = ""
    context_length: int | None = None


def parse(words: Sequence[str] | None = None) -> TrainSettings | ShowSettings:
    training = "python -m data.tokenizers train captions.txt --vocab-size 4096 --out tokenizers/mine"
    parser = ArgumentParser(
        prog="python -m data.tokenizers", description="Tokenizers of captions.", takes_words=False, example=training
    )
    commands = parser.add_subparsers(dest="command", required=True, parser_class=ArgumentParser)
    train = commands.add_parser("train", help="byte-level BPE of the captions in a text file", example=training)
    train.add_argument("captions", type=Path, nargs="+", help="text files, one caption a line")
    train.add_argument("--vocab-size", type=int, required=True, help="tokens, padding included")
    train.add_argument("--out", type=Path, required=True, help="folder for the two files")
    train.add_argument("--context-length", type=int, default=64, help="tokens per caption (default: 64)")
    train.add_argument("--column", type=int, help="which column of tab-separated lines (train_list.txt: 2)")
    train.add_argument("--min-frequency", type=int, default=2, help="of a pair that becomes a token (default: 2)")
    train.add_argument("--keep-case", action="store_true", help="capital letters are letters of their own")
    show = commands.add_parser(
        "show",
        help="what a tokenizer is, and how it reads a text",
        example='python -m data.tokenizers show tokenizers/mine --text "a red circle"',
    )
    show.add_argument("path", type=Path, help="anything that dataset.tokenizer may name")
    show.add_argument("--text", default="", help="a caption")
    show.add_argument("--context-length", type=int, help="needed for published pairs")
    args = parser.parse_args(words)
    if args.command == "show":
        return ShowSettings(args.path, args.text, args.context_length)
    return TrainSettings(
        tuple(args.captions),
        args.vocab_size,
        args.out,
        args.context_length,
        args.column,
        args.min_frequency,
        args.keep_case,
    )


def main(settings: TrainSettings | ShowSettings) -> None:
    if isinstance(settings, TrainSettings):
        train(settings)
    else:
        show(settings)


def train(settings: TrainSettings) -> None:
    """Trains a tokenizer, writes it, and says how long captions become."""
    # after the flags are read: `--help` does not wait for torch
    from data.tokenizers.bpe_training import read_captions, train_bpe

    def captions() -> Iterator[str]:
        for path in settings.captions:
            yield from read_captions(path, settings.column)

    tokenizer = train_bpe(
        captions(),
        settings.vocab_size,
        settings.context_length,
        lowercase=not settings.keep_case,
        min_frequency=settings.min_frequency,
    )
    count = tokens = cut = 0
    for text in captions():
        length = len(tokenizer.backend.encode(text, add_special_tokens=False).ids)
        count, tokens, cut = count + 1, tokens + length, cut + (length > settings.context_length)
    if not count:
        raise UserError(f"{settings.captions[0]} holds no captions")
    tokenizer.save(settings.out)
    say(
        f"{tokenizer.vocab_size} tokens to {settings.out}: {count} captions have {tokens / count:.1f} tokens each, "
        f"{cut} of them more than --context-length {settings.context_length}"
    )
    if tokenizer.vocab_size < settings.vocab_size:
        warn(f"the captions give only {tokenizer.vocab_size} of {settings.vocab_size} tokens")


def show(settings: ShowSettings) -> None:
    """Prints what a tokenizer is, and how it reads a text."""
    from data.tokenizers.tokenizer_loading import load_tokenizer

    tokenizer = load_tokenizer(settings.path, settings.context_length)
    say(
        f"{tokenizer.kind}: {tokenizer.vocab_size} tokens, {tokenizer.context_length} per caption, padding is "
        f"{tokenizer.pad_id}"
    )
    if settings.text:
        ids = tokenizer.encode(settings.text)
        say(" ".join(map(str, ids)))
        say(tokenizer.decode(ids))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main(parse())
