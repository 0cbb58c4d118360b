"""Training a byte-level BPE on captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from data.text_files import read_lines
from data.tokenizers.bpe import BPESettings, BPETokenizer
from data.tokenizers.bpe_files import PAD_TOKEN, huggingface

SMALLEST_VOCABULARY = 257  # all bytes, and padding


def train_bpe(
    captions: Iterable[str], vocab_size: int, context_length: int, *, lowercase: bool = True, min_frequency: int = 2
) -> BPETokenizer:
    """A byte-level BPE (Sennrich et al. 2016, 1508.07909; on bytes as GPT-2's) of at most `vocab_size` tokens.

    Token 0 is padding and the bytes follow, so that no text is unknown. Unicode is composed (NFC); every word, the
    first included, starts with its space. Fewer tokens come out where the captions have no pair left that occurs
    `min_frequency` times.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"--vocab-size must be at least {SMALLEST_VOCABULARY} (bytes and padding), not {vocab_size}")
    hf = huggingface()
    backend = hf.Tokenizer(hf.models.BPE())
    steps = [hf.normalizers.NFC(), hf.normalizers.Strip(), *([hf.normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = hf.normalizers.Sequence(steps)
    backend.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD_TOKEN],
        show_progress=False,
        initial_alphabet=sorted(hf.pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(captions, trainer)
    return BPETokenizer(backend, BPESettings("byte-bpe", context_length, backend.token_to_id(PAD_TOKEN)))


def read_captions(path: Path, column: int | None = None) -> Iterator[str]:
    """The captions of a text file, one a line; `column` (from 1) of lines whose columns are separated by tabs."""
    for number, line in enumerate(read_lines(path, replace=True), start=1):
        if column is None:
            yield line
            continue
        columns = line.split("\t")
        if not 1 <= column <= len(columns):
            raise ValueError(f"{path}, line {number} has {len(columns)} columns, not {column}")
        yield columns[column - 1]
