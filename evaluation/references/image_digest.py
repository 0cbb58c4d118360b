"""One hash of many images, the same for any order of arrival, batch size and number of ranks, in constant memory.

Axes: B batch, C channels, H W image.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import torch
from torch import Tensor

from evaluation.protocol import check_uint8_images
from evaluation.statistics import Reduce

_LANES = 4


class ImageDigest:
    """The SHA-256 values of all images, added up modulo 2^64 in four lanes (an additive multiset hash: Bellare and
    Micciancio, "A new paradigm for collision-free hashing", 1997), with their number.

    It tells images apart that differ in a single value. It is meant against mistakes: somebody who sets out to make a
    second set of images with the same digest may succeed.

    Args:
        ordered: which image has which global index matters.
        labelled: which image has which label (or none) matters.
    """

    def __init__(self, ordered: bool = False, labelled: bool = False):
        self.ordered, self.labelled = ordered, labelled
        self.sums = np.zeros(_LANES + 1, dtype=np.uint64)

    def update(self, image_BCHW: Tensor, index_B: Tensor | None = None, label_B: Tensor | None = None) -> None:
        """Adds a batch of uint8 images; a grey image is the same as the colour image it stands for.

        Raises:
            ValueError: not uint8 images.
        """
        image_BHWC = check_uint8_images(image_BCHW).cpu().permute(0, 2, 3, 1).contiguous().numpy()
        numbers_B2 = np.full((len(image_BHWC), 2), -1, dtype=np.int64)
        if self.ordered:
            assert index_B is not None, "an ordered digest needs global indices"
            numbers_B2[:, 0] = index_B.cpu().numpy()
        if self.labelled and label_B is not None:
            numbers_B2[:, 1] = label_B.cpu().numpy()
        for image_HWC, numbers in zip(image_BHWC, numbers_B2.tolist()):
            digest = hashlib.sha256(struct.pack("<4q", *image_HWC.shape[:2], *numbers))
            digest.update(image_HWC)
            self.sums[:_LANES] += np.frombuffer(digest.digest(), dtype="<u8")
            self.sums[_LANES] += np.uint64(1)

    def all_reduce(self, reduce: Reduce, device: torch.device | str = "cpu") -> None:
        """Adds the images of all ranks; `device` is where the reduction can see tensors."""
        sums = torch.from_numpy(self.sums.view(np.int64).copy()).to(device)
        reduce(sums)  # integers wrap around, as the lanes do
        self.sums = sums.cpu().numpy().view(np.uint64)

    @property
    def count(self) -> int:
        """Number of images."""
        return int(self.sums[_LANES])

    def hexdigest(self) -> str:
        """64 hex digits."""
        flags = struct.pack("<2?", self.ordered, self.labelled)
        return hashlib.sha256(flags + self.sums.astype("<u8").tobytes()).hexdigest()
