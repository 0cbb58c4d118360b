"""Images with captions: texts kept compactly, one chosen per image, turned into token ids in one place.

In training the caption of an image that has several, and the dropout of the tokenizer, are decided by the noise key; in
evaluation the first caption is taken, without dropout.

Axes: B batch, L tokens of a caption, M captions, N images.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from data.images.encoded_images import Encoded, PackedPaths
from data.images.file_dataset import FileDataset
from data.noise import hash_keys, uniforms
from data.request import DatasetRequest
from data.tokenizers.caption_tokenizer import CaptionTokenizer
from data.tokenizers.tokenizer_loading import tokenizer_named_or_none

CAPTIONS_LOOKED_AT = 1000  # by a data set that is opened, to say whether captions are cut
_CHOICE_STREAM = 0x4343  # keep these draws apart from every other use of the same seed
_SEGMENTATION_STREAM = 0x4353
_log = logging.getLogger(__name__)


def segmentation_keys(seed: int, noise_key_B: np.ndarray | None) -> list[int] | None:
    """The tokenizer's noise keys of a batch: derived from the seed and the keys of the images; None for none."""
    return None if noise_key_B is None else hash_keys(_SEGMENTATION_STREAM, seed, noise_key_B).view(np.int64).tolist()


def caption_numbers(seed: int, noise_key_B: np.ndarray | None, count_B: np.ndarray) -> np.ndarray:
    """Which caption each image of a batch gets, of the `count_B` that it has: the first where there is no noise key."""
    if noise_key_B is None:
        return np.zeros(len(count_B), dtype=np.int64)
    return (uniforms(1, _CHOICE_STREAM, seed, noise_key_B)[:, 0] * count_B).astype(np.int64)


def warn_of_cut_captions(tokenizer: CaptionTokenizer, texts: Sequence[str], source: str) -> None:
    """Says so where some of a data set's captions, of which these are a few, are too long for the model."""
    if line := tokenizer.cut_captions(texts, source):
        _log.warning(line)


def build_captioned(
    request: DatasetRequest, root: Path, pairs: Sequence[tuple[str, Sequence[str]]]
) -> CaptionedDataset:
    """The data set of (path below root, captions) pairs, with the tokenizer that the config names, if it does."""
    source, table = PackedPaths(root, [name for name, _ in pairs]), CaptionTable(texts for _, texts in pairs)
    return CaptionedDataset(request, source, table, tokenizer_named_or_none(request.config, request.split))


class CaptionTable:
    """The captions of N images, at least one each, in one buffer: millions of Python strings would be copied into every
    data worker as their reference counts change.
    """

    def __init__(self, captions: Iterable[Sequence[str]]) -> None:
        encoded, count_N = [], []
        for texts in captions:
            assert texts, "every image has a caption"
            encoded += [text.encode("utf-8", "replace") for text in texts]
            count_N.append(len(texts))
        self.count_N = np.array(count_N, dtype=np.int64)
        self.first_N = np.concatenate([[0], np.cumsum(self.count_N)[:-1]]).astype(np.int64)
        self.end_M = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.text = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.count_N)

    def text_of(self, index: int, number: int = 0) -> str:
        """Caption `number` of image `index`."""
        place = int(self.first_N[index]) + number
        start = int(self.end_M[place - 1]) if place else 0
        return self.text[start : int(self.end_M[place])].tobytes().decode("utf-8")

    def texts_of(self, index: int) -> list[str]:
        """All captions of image `index`."""
        return [self.text_of(index, number) for number in range(int(self.count_N[index]))]


class CaptionedDataset(FileDataset):
    """Encoded images with captions. With a tokenizer, batches also hold `cond`: caption token ids (B, L), int64.

    An unreadable image is replaced together with its caption.
    """

    def __init__(
        self,
        request: DatasetRequest,
        source: Encoded,
        table: CaptionTable,
        tokenizer: CaptionTokenizer | None,
        labels_N: np.ndarray | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        assert len(source) == len(table)
        labels_N = np.zeros(len(source), dtype=np.int64) if labels_N is None else labels_N
        super().__init__(request, source, labels_N, class_names or [request.name])
        self.table, self.tokenizer = table, tokenizer
        if tokenizer is not None:
            spread = range(0, len(table), max(1, len(table) // CAPTIONS_LOOKED_AT))
            warn_of_cut_captions(tokenizer, [table.text_of(index) for index in spread], f"{self.name} ({self.split})")

    def fetch(self, index_B: np.ndarray, noise_key_B: np.ndarray | None) -> dict[str, Tensor]:
        batch = super().fetch(index_B, noise_key_B)
        if self.tokenizer is None:
            return batch
        training_key_B = noise_key_B if self.split == "train" else None
        used_B = np.array([self.read_for(index) for index in index_B.tolist()], dtype=np.int64)
        numbers_B = caption_numbers(self.seed, training_key_B, self.table.count_N[used_B])
        texts = [self.table.text_of(index, number) for index, number in zip(used_B.tolist(), numbers_B.tolist())]
        return {**batch, "cond": self.tokenizer.encode_batch(texts, segmentation_keys(self.seed, training_key_B))}

    def content_mark(self) -> str:
        return f"{zlib.crc32(self.table.text.data):08x}"

    def captions(self, index_B: np.ndarray | Sequence[int]) -> list[str]:
        """The first captions of these images, in words."""
        return [self.table.text_of(int(index)) for index in index_B]

    def all_captions(self, index: int) -> list[str]:
        """All captions of an image."""
        return self.table.texts_of(index)
