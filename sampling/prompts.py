"""The captions that samples are drawn for: where they come from, and what turns them into token ids.

Legend: L condition length, M captions, N samples.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data import DatasetConfig, ImageDataset
from data.build import DATASETS, dataset_row
from data.text_files import read_lines
from data.tokenizers.caption_tokenizer import SETTINGS_FILE, TOKENIZER_FILE, CaptionTokenizer, WordTokenizer
from data.tokenizers.tokenizer_loading import TokenizerNotFound, load_tokenizer, tokenizer_named
from rqtransformer import RQTransformerConfig
from runtime.atomic import write_text_atomically
from runtime.errors import UserError
from sampling.conditions import CaptionConditions

CAPTIONS_FILE = "captions.jsonl"


@dataclass(frozen=True)
class Prompts:
    """M captions, taken in turn by N samples.

    Attributes:
        captions: the texts.
        source: what the user called them.
    """

    captions: list[str]
    source: str

    def __post_init__(self) -> None:
        if not any(caption.strip() for caption in self.captions):
            raise UserError(f"{self.source} holds no captions")

    def facts(self) -> dict[str, object]:
        """For the result line: where the captions come from, how many there are, and a hash of them in order."""
        digest = hashlib.sha256("\n".join(self.captions).encode("utf-8", errors="replace")).hexdigest()
        return {"source": self.source, "num": len(self.captions), "digest": digest}

    def write(self, directory: Path, num_samples: int, file_format: str) -> None:
        """`captions.jsonl`: a line for every sample, with its number, its caption and, for `png`, its file."""
        lines = []
        for index in range(num_samples):
            line = {"index": index, "text": self.captions[index % len(self.captions)]}
            if file_format == "png":
                line["file_name"] = f"images/{index:06d}.png"
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        write_text_atomically(directory / CAPTIONS_FILE, "".join(lines))


def caption_file(name: str) -> Path | None:
    """The file that `--dataset` names, if it names one."""
    path = Path(name).expanduser()
    return path if path.is_file() else None


def read_caption_file(path: Path) -> Prompts:
    """One caption a line; empty lines are left out.

    Raises:
        UserError: no caption, or no text file.
    """
    return Prompts([line.strip() for line in read_lines(path) if line.strip()], str(path))


def dataset_named(config: DatasetConfig, name: str | None, overrides: Sequence[str]) -> DatasetConfig:
    """The checkpoint's data set, or the one that `--dataset` names, which then has its own root."""
    if name is None:
        return config
    if DatasetConfig(type=name).name not in DATASETS:
        what = "a folder" if Path(name).expanduser().is_dir() else "no file"
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(
            f"--dataset {name} is {what} and no data set{hint}; give a text file with a caption a line, or a data set "
            "with captions, such as cc3m, coco or caption-folder"
        )
    named = replace(config, type=name, dataset=None)
    same = config.type is not None and named.name == config.name
    if same or any(word.lstrip("+").startswith("dataset.root=") for word in overrides):
        return named
    return replace(named, root=None)


def dataset_prompts(split: ImageDataset, source: str) -> Prompts:
    """The captions of a split of a data set, one for each image.

    Raises:
        UserError: it has none.
    """
    if not hasattr(split, "captions"):
        raise UserError(f"{split.name} has no captions; --dataset names one that has, or a text file with one a line")
    return Prompts(list(split.captions(range(len(split)))), source)


def find_tokenizer(
    given: str | None, checkpoint: Path, dataset: DatasetConfig, arch: RQTransformerConfig
) -> CaptionTokenizer:
    """`--tokenizer`, else the one inside the checkpoint's folder, else what the config's dataset section says.

    Raises:
        ValueError: none is found, or its ids or its length do not fit the model.
    """
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    if given is not None:
        tokenizer, origin = load_tokenizer(given, context_length=arch.block_size_cond), given
    elif (folder / SETTINGS_FILE).is_file():
        tokenizer, origin = load_tokenizer(folder, context_length=arch.block_size_cond), str(folder)
    else:
        tokenizer, origin = tokenizer_of(dataset, arch, folder), f"{folder / 'config.yaml'} (dataset)"
    if tokenizer.vocab_size > arch.vocab_size_cond:
        raise UserError(
            f"the tokenizer of {origin} has {tokenizer.vocab_size} tokens, the model knows "
            f"{arch.vocab_size_cond} (arch.vocab_size_cond)"
        )
    if tokenizer.context_length != arch.block_size_cond:
        raise UserError(
            f"the tokenizer of {origin} gives {tokenizer.context_length} tokens, the model takes "
            f"{arch.block_size_cond} (arch.block_size_cond)"
        )
    return tokenizer


def tokenizer_of(dataset: DatasetConfig, arch: RQTransformerConfig, folder: Path) -> CaptionTokenizer:
    """The closed vocabulary of drawn images; for others what dataset.tokenizer or dataset.txt_tok_name names, the
    latter also looked for in the checkpoint's `folder`.
    """
    words = None if dataset.type is None else dataset_row(dataset).words
    if words is not None:
        return WordTokenizer(words(), arch.block_size_cond)
    try:
        return tokenizer_named(replace(dataset, context_length=arch.block_size_cond, vocab_size_txt=None), folder)
    except TokenizerNotFound as error:
        raise UserError(
            f"no tokenizer in the checkpoint's folder: give --tokenizer PATH, a folder with "
            f"{TOKENIZER_FILE} or DIR/NAME of a published pair ({error})"
        ) from error


def tokenize(prompts: Prompts, tokenizer: CaptionTokenizer) -> CaptionConditions:
    """Token ids (M, L) of all captions; `CaptionTokenizer.cut_captions` says which are too long for the model."""
    return CaptionConditions(tokenizer.encode_batch(prompts.captions))
