"""Byte-pair encodings as files: the pairs that published models come with, and CLIP's own; each to the tokenizer of the
`tokenizers` library that they describe.

| layout    | files                                             | what is done with a text                        |
|-----------|---------------------------------------------------|-------------------------------------------------|
| char-bpe  | <name>-vocab.json, <name>-merges.txt with `</w>`  | BERT's clean-up, lower case, split at signs     |
| byte-bpe  | vocab.json, merges.txt of bytes                   | lower case, split as GPT-2 does, bytes          |
| clip-bpe  | bpe_simple_vocab_16e6.txt.gz                      | HTML entities, spaces, lower case, CLIP's words |
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

from data.text_files import lines_of
from data.tokenizers.safe_library import CLIP_WORDS, check_vocabulary, library_errors, read_limited, unpacked
from runtime.errors import UserError

PAD_TOKEN, UNKNOWN_TOKEN = "[PAD]", "[UNK]"
WORD_END = "</w>"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 48894  # how many of the file's are CLIP's; with 512 bytes and two marks they are 49,408 tokens


def huggingface() -> ModuleType:
    """The `tokenizers` package; UserError with the command that installs it."""
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("captions need the package `tokenizers`: pip install tokenizers") from error
    return tokenizers


def find_pair(path: Path) -> tuple[Path, Path] | None:
    """(vocabulary, merges) of a folder that holds one pair, or of a path without the ending `-vocab.json`."""
    if path.is_dir():
        pairs = [(vocab, _merges_beside(vocab)) for vocab in sorted(path.glob("*vocab.json"))]
        found = [(vocab, merges) for vocab, merges in pairs if merges.is_file()]
        if len(found) > 1:
            names = ", ".join(str(vocab).removesuffix("-vocab.json") for vocab, _ in found)
            raise ValueError(f"{path} holds several vocabularies; choose one of {names}")
        return found[0] if found else None
    if path.name.endswith("vocab.json"):
        vocab = path
    else:
        vocab = path.with_name(f"{path.name}-vocab.json")
    return (vocab, _merges_beside(vocab)) if vocab.is_file() and _merges_beside(vocab).is_file() else None


def _merges_beside(vocab: Path) -> Path:
    return vocab.with_name(vocab.name.removesuffix("vocab.json") + "merges.txt")


def read_pair(vocab: Path, merges: Path, lowercase: bool = True) -> tuple[Any, str]:
    """The library's tokenizer of a published pair, and its layout: 'char-bpe' or 'byte-bpe'.

    As the published text-to-image models use theirs: [UNK] stands for unknown characters, [PAD] is a special token
    (added behind the others where the vocabulary has none). Whether symbols are characters or bytes shows in the
    word-end marks, which only the former have.

    Raises:
        ValueError: a file that cannot be read or is no such file.
    """
    hf = huggingface()
    with library_errors(f"{vocab} and {merges.name} are no byte-pair encoding"):
        tokens = json.loads(read_limited(vocab))
        if not isinstance(tokens, dict):
            raise ValueError("the vocabulary is no JSON object")
        check_vocabulary(tokens)
        read_limited(merges)
        by_character = any(token.endswith(WORD_END) for token in tokens)
        kind = hf.CharBPETokenizer if by_character else hf.ByteLevelBPETokenizer
        options = {"unk_token": UNKNOWN_TOKEN} if by_character else {}
        backend = kind.from_file(str(vocab), str(merges), lowercase=lowercase, **options)
    backend.add_special_tokens([PAD_TOKEN])
    return hf.Tokenizer.from_str(backend.to_str()), "char-bpe" if by_character else "byte-bpe"


def read_clip(path: Path) -> Any:
    """The library's tokenizer of CLIP's merges file. The text has to be cleaned by `bpe.clean_for_clip`.

    Ids 0-511 are the bytes, plain and at the end of a word; then one per merge; the last two are start and end
    (Radford et al. 2021, arXiv 2103.00020, and the file of their release).
    """
    hf = huggingface()
    lines = lines_of(unpacked(path))[1 : CLIP_MERGES + 1]
    merges = [tuple(line.split()) for line in lines if line.strip()]
    if not merges or any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{path} is no list of merges, two symbols a line, under a line with its version")
    # Printable bytes stand for themselves and the others for characters from 256 on: both in the order of the bytes.
    alphabet = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(symbol + WORD_END for symbol in alphabet), *("".join(pair) for pair in merges)]
    vocab = {token: number for number, token in enumerate([*tokens, CLIP_START, CLIP_END])}
    with library_errors(f"the merges of {path} do not fit each other"):
        model = hf.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix=WORD_END)
    backend = hf.Tokenizer(model)
    split = hf.pre_tokenizers.Split(hf.Regex(CLIP_WORDS), behavior="removed", invert=True)
    to_bytes = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = hf.pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = hf.decoders.ByteLevel()
    backend.add_special_tokens([CLIP_START, CLIP_END])
    return backend
