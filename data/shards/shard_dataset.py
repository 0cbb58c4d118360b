"""`dataset.type: shards`: images (with labels and captions) in WebDataset tar files, read at random by their index.

`dataset.root` is a folder, a brace pattern (`/data/in256-train-{000000..000127}.tar`), a list, or any of these as URLs.
Local shards are shuffled as a whole; URLs shard by shard within a window, because random access to them is slow.

Axes: B batch, N samples of the split, L caption tokens.
"""

from __future__ import annotations

import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.captions.captioned_dataset import caption_numbers, segmentation_keys, warn_of_cut_captions
from data.config import SPLIT_WORDS, TEST, TRAIN, VAL, DatasetConfig
from data.dataset import VAL_FRACTION, ImageDataset
from data.images.encoded_images import check_size
from data.images.file_dataset import FileDataset
from data.order import Groups
from data.request import DatasetRequest
from data.roots import find_root
from data.shards.shard_files import ShardFiles, default_cache, is_remote, load_index, local_path, sweep_copies
from data.shards.shard_index import CAPTION, FIELDS, IMAGE, JSON_CAPTION, NO_LABEL, ShardIndex
from data.shards.shard_manifest import IMAGES, read_manifest
from data.shards.shard_names import LAYOUT, missing_shards, shards_of_root
from data.shards.tar_members import json_label_and_captions
from data.splits import split_by_name
from data.text_files import decoded, lines_of
from data.tokenizers.caption_tokenizer import CaptionTokenizer
from data.tokenizers.tokenizer_loading import tokenizer_named
from runtime.atomic import sweep
from runtime.errors import UserError, first_few

_INDEX_THREADS = 16
_CAPTIONS_LOOKED_AT = 200  # of the first samples, which lie in one shard: others may have to be fetched
_log = logging.getLogger(__name__)


class ShardSamples:
    """Chosen samples of several shards under one numbering.

    Args:
        places: paths or URLs of the shards.
        indexes: what is in them.
        config: for the cache and the order.
        chosen_N: which of all samples, in increasing order; None takes all.
    """

    def __init__(
        self,
        places: Sequence[str],
        indexes: Sequence[ShardIndex],
        config: DatasetConfig,
        chosen_N: np.ndarray | None = None,
    ) -> None:
        counts = [len(index) for index in indexes]
        chosen_N = np.arange(sum(counts)) if chosen_N is None else chosen_N
        self.shard_N = np.repeat(np.arange(len(places)), counts)[chosen_N]
        self.keys_N = np.concatenate([index.keys_N for index in indexes])[chosen_N]
        self.start_NF = np.concatenate([index.start_NF for index in indexes])[chosen_N]
        self.size_NF = np.concatenate([index.size_NF for index in indexes])[chosen_N]
        self.files = ShardFiles(
            places, [index.shard_size for index in indexes], cache_folder(config), config.shard_cache_size
        )
        by_shard = config.shuffle == "shards" or (config.shuffle == "auto" and any(map(is_remote, places)))
        sizes = np.bincount(self.shard_N, minlength=len(places))
        self.groups = Groups(tuple(sizes[sizes > 0].tolist()), config.shuffle_window) if by_shard else None

    def __len__(self) -> int:
        return len(self.shard_N)

    def name(self, index: int) -> str:
        """What a report calls a sample: its shard and its key."""
        return f"{self.files.places[self.shard_N[index]]}:{self.keys_N[index].decode('utf-8', 'replace')}"

    def names(self) -> Iterator[str]:
        """The keys."""
        return (os.fsdecode(key) for key in self.keys_N.tolist())

    def size(self, index: int) -> int:
        """Bytes of the image; of all members where there is none."""
        sizes_F = self.size_NF[index].clip(0)
        return int(sizes_F[IMAGE] or sizes_F.sum())

    def field(self, index: int, field: int, start: int = 0, size: int | None = None) -> bytes:
        """The bytes of one member of a sample, or `size` of them from `start` on; OSError where there is none."""
        length = int(self.size_NF[index, field])
        if length < 0:
            raise OSError(f"the sample has no {FIELDS[field]}")
        size = length - start if size is None else size
        if start + size > length:
            raise OSError(f"its {FIELDS[field]} has {length} bytes only")
        return self.files.read(int(self.shard_N[index]), int(self.start_NF[index, field]) + start, size)

    def read(self, index: int) -> bytes:
        """The encoded image; OSError when it cannot be had."""
        check_size(int(self.size_NF[index, IMAGE]))
        return self.field(index, IMAGE)


class CaptionedShards(FileDataset):
    """Images of shards with captions, one a line of `txt`, else those of `json`. With a tokenizer, batches also hold
    `cond`: caption token ids (B, L).
    """

    source: ShardSamples

    def __init__(
        self,
        request: DatasetRequest,
        source: ShardSamples,
        labels_N: np.ndarray,
        class_names: Sequence[str],
        tokenizer: CaptionTokenizer | None,
    ) -> None:
        super().__init__(request, source, labels_N, class_names)
        self.tokenizer = tokenizer
        if tokenizer is None:
            return
        if without := int(np.count_nonzero(~has_caption(source))):
            _log.warning("shards: %d of %d samples have no caption and are given an empty one", without, len(source))
        first = [text for index in range(min(len(source), _CAPTIONS_LOOKED_AT)) for text in self._lines(index)]
        warn_of_cut_captions(tokenizer, first, f"shards ({self.split}), the first")

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        batch = super().fetch(index_B, noise_key_B)
        if self.tokenizer is None:
            return batch
        training_key_B = noise_key_B if self.split == "train" else None
        lines = [self._lines(self.read_for(index)) for index in index_B.tolist()]
        numbers_B = caption_numbers(self.seed, training_key_B, np.array([len(texts) for texts in lines]))
        texts = [texts[number] for texts, number in zip(lines, numbers_B.tolist())]
        return {**batch, "cond": self.tokenizer.encode_batch(texts, segmentation_keys(self.seed, training_key_B))}

    def content_mark(self) -> str:
        lines_N, json_N = self.source.size_NF[:, CAPTION], self.source.size_NF[:, JSON_CAPTION]
        return f"{zlib.crc32(np.where(lines_N >= 0, lines_N, json_N).data):08x}"

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The first captions of these images, in words."""
        return [self._lines(int(index))[0] for index in index_B]

    def all_captions(self, index: int) -> list[str]:
        """All captions of an image; none where it has none."""
        has_one = self.source.size_NF[index, (CAPTION, JSON_CAPTION)].max() >= 0
        return self._lines(index) if has_one else []

    def _lines(self, index: int) -> list[str]:
        """All captions of an image; one that is empty where it has none."""
        if self.source.size_NF[index, CAPTION] >= 0:
            return lines_of(decoded(self.source.field(index, CAPTION)).strip()) or [""]
        if self.source.size_NF[index, JSON_CAPTION] >= 0:
            return json_label_and_captions(self.source.field(index, JSON_CAPTION))[1] or [""]
        return [""]


def has_caption(samples: ShardSamples) -> np.ndarray:
    """Whether each sample has one, bool (N,)."""
    return np.asarray(np.any(samples.size_NF[:, (CAPTION, JSON_CAPTION)] >= 0, axis=1))


def build_shards(request: DatasetRequest) -> ImageDataset:
    """A split of a folder of shards with manifest; or of any shards, by the `train` and `val` in their names.

    Where only training shards, or shards of no split, are there, val_fraction of them is held out, each by its key.
    """
    config, split, root = request.config, request.split, _roots(request.config)
    manifest = None
    if isinstance(root, str) and not root.endswith(".tar") and "{" not in root:
        manifest = read_manifest(root, split)
        if manifest is None and split == "val" and read_manifest(root, "train") is not None:
            raise UserError(
                f"shards: {root} has a manifest of the train split alone, all of which is trained on; write the val "
                "split too (python -m data.prepare --split val)"
            )
    if isinstance(root, str) and manifest is not None:
        if manifest["kind"] != IMAGES:
            raise ValueError(f"shards: {root} holds {manifest['kind']}; read it with dataset.type={manifest['kind']}")
        places, indexes = indexed_by(manifest, root, config)
        samples, labels_N = ShardSamples(places, indexes, config), _labels(indexes, root)
        return _of_split(_dataset(request, samples, labels_N, manifest["class_names"]))
    by_split = _by_split(shards_of_root(root))
    found = {}
    for name in by_split:
        by_split[name], found[name] = _without_empty(by_split[name], load_indexes(by_split[name], config))
    labels = {name: _labels(indexes, root) for name, indexes in found.items()}
    class_names = [str(label) for label in range(1 + max(labels_N.max() for labels_N in labels.values()))]
    if split in by_split and (split == "val" or "val" in by_split):
        samples, labels_N = ShardSamples(by_split[split], found[split], config), labels[split]
        return _of_split(_dataset(request, samples, labels_N, class_names))
    if "train" in by_split:
        keys = [os.fsdecode(key) for index in found["train"] for key in index.keys_N.tolist()]
        train_N, val_N = split_by_name(keys, config.val_fraction or VAL_FRACTION, config.split_seed)
        chosen_N = train_N if split == "train" else val_N
        samples = ShardSamples(by_split["train"], found["train"], config, chosen_N)
        labels_N = labels["train"][chosen_N]
        dataset = _dataset(request, samples, labels_N, class_names)
        dataset.held_out = True
        return dataset
    raise missing_shards(root)


def _of_split(dataset: FileDataset) -> FileDataset:
    """Keys are counted anew in every split: the name of an image begins with it."""
    dataset.prefix = f"{dataset.split}/"
    return dataset


def folder_of(config: DatasetConfig, layout: str = LAYOUT) -> str:
    """The folder or URL of dataset.root where it is given, else the folder `find_root` finds."""
    return str(find_root(config, layout) if config.root is None else config.root)


def _roots(config: DatasetConfig) -> str | list[str]:
    return list(config.root) if isinstance(config.root, (list, tuple)) else folder_of(config)


def join(root: str, name: str) -> str:
    """The place of a file below a folder or URL."""
    return f"{root.rstrip('/')}/{name}" if is_remote(root) else str(local_path(root) / name)


def cache_folder(config: DatasetConfig) -> Path:
    return Path(config.shard_cache).expanduser() if config.shard_cache else default_cache()


def indexed_by(manifest: Mapping[str, Any], root: str, config: DatasetConfig) -> tuple[list[str], list[ShardIndex]]:
    """The places and indexes of the shards of a manifest; ValueError where one has not the samples that it says."""
    places = [join(root, shard["name"]) for shard in manifest["shards"]]
    indexes = load_indexes(places, config)
    for place, index, shard in zip(places, indexes, manifest["shards"], strict=True):
        if len(index) != shard["samples"]:
            raise ValueError(f"{place} has {len(index)} samples, its manifest says {shard['samples']}")
    return places, indexes


def _without_empty(places: list[str], indexes: list[ShardIndex]) -> tuple[list[str], list[ShardIndex]]:
    """The shards that hold samples; the others are counted. ValueError where none does."""
    empty = [place for place, index in zip(places, indexes, strict=True) if not len(index)]
    if len(empty) == len(places):
        raise ValueError(f"{places[0]} holds no samples with an image, latents or codes ({len(places)} shards do not)")
    if empty:
        left_out = first_few(empty, 1)
        _log.warning("shards: %d of %d hold no images and are left out: %s", len(empty), len(places), left_out)
    kept = [(place, index) for place, index in zip(places, indexes, strict=True) if len(index)]
    return [place for place, _ in kept], [index for _, index in kept]


def load_indexes(places: Sequence[str], config: DatasetConfig) -> list[ShardIndex]:
    """The indexes of all shards, several at a time. What killed processes left beside them is taken away."""
    cache = cache_folder(config)
    sweep_copies(cache)
    for folder in {cache, *(local_path(place).parent for place in places if not is_remote(place))}:
        sweep(folder)
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        return list(pool.map(lambda place: load_index(place, cache_folder(config)), places))


def _by_split(places: Sequence[str]) -> dict[str, list[str]]:
    """The shards of each split, by the words in their names or their folders'.

    Those whose names do not tell are for training where no others are; else they are left out and counted, as are those
    of a test split where there is another one for validation.
    """
    found: dict[str, list[str]] = {TRAIN: [], VAL: [], TEST: []}
    others = []
    for place in places:
        for part in reversed(place.split("/")[-2:]):
            words = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_WORDS}
            if len(words) == 1:
                found[words.pop()].append(place)
                break
        else:
            others.append(place)
    tested = found.pop(TEST)
    if len(tested) == len(places):
        return {TRAIN: tested}
    if not found[VAL]:
        found[VAL] = tested
    elif tested:
        line = f"{len(tested)} of a test split are left out, there is one for validation: {first_few(tested)}"
        _log.warning("shards: %s", line)
    if not found[TRAIN]:
        found[TRAIN] = others
    elif others:
        left_out = f"{len(others)} of {len(places)} have no split in their names and are left out: {first_few(others)}"
        _log.warning("shards: %s", left_out)
    return {split: chosen for split, chosen in found.items() if chosen}


def _labels(indexes: Sequence[ShardIndex], root: str | Sequence[str]) -> np.ndarray:
    """The labels of all samples; zeros where no sample has one."""
    label_N = np.concatenate([index.label_N for index in indexes])
    without = np.count_nonzero(label_N == NO_LABEL)
    if without == len(label_N):
        return np.zeros(len(label_N), dtype=np.int64)
    if without:
        raise ValueError(f"shards: {without} of {len(label_N)} samples in {root} have no label (.cls)")
    return label_N


def _dataset(
    request: DatasetRequest, samples: ShardSamples, labels_N: np.ndarray, class_names: Sequence[str]
) -> FileDataset:
    if labels_N.max() >= len(class_names):
        raise ValueError(f"shards: label {labels_N.max()} is none of the {len(class_names)} classes of the manifest")
    config = request.config
    if not has_caption(samples).any():
        return FileDataset(request, samples, labels_N, class_names)
    named = (config.tokenizer or config.txt_tok_name) is not None
    return CaptionedShards(request, samples, labels_N, class_names, tokenizer_named(config) if named else None)
