"""Images in the forms that a user may have them in."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def random_images(count: int, size: int = 12, seed: int = 0) -> Tensor:
    """uint8 (N, 3, size, size)."""
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def as_png(image_CHW: Tensor) -> bytes:
    """One encoded image."""
    content = io.BytesIO()
    Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(content, "PNG")
    return content.getvalue()


def write_folder(folder: Path, image_NCHW: Tensor, name: str = "{:04d}.png") -> Path:
    """A folder of PNG files whose sorted order is that of the images."""
    for index, image_CHW in enumerate(image_NCHW):
        path = folder / name.format(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_png(image_CHW))
    return folder


def write_array(path: Path, image_NCHW: Tensor, **more: np.ndarray) -> Path:
    """An `.npz` file as the ADM evaluator takes it."""
    np.savez(path, arr_0=image_NCHW.permute(0, 2, 3, 1).numpy(), **more)
    return path


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """A tar file."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def images_of(source, batch_size: int = 5, **ranks: int) -> Tensor:
    """All images of a source, in the order of their index."""
    batches = list(source.batches(batch_size, **ranks))
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return torch.cat([batch["image"] for batch in batches])[order]
