"""Pictures and small models that commands are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(tmp_path: Path) -> Path:
    """A folder with a picture of 24 x 16 pixels and another below; beside it a mask, white at the upper left."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for name in ("a.png", "more/b.jpg"):
        Image.fromarray(draw.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(folder / name)
    mask = np.zeros((16, 24), np.uint8)
    mask[1, 5] = 255  # column 4 of the image begins the crop of 16 x 16
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return folder


def model_flags(checkpoints: Path, stage2: str = "rqtransformer-class") -> list[object]:
    """The flags of both models, of copies of the golden folders."""
    return ["-v", checkpoints / "rqvae-shared" / "model.pt", "-a", checkpoints / stage2 / "model.pt"]
