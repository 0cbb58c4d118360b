"""Which files of a folder are images."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def list_images(root: Path) -> list[str]:
    """Relative POSIX paths of all images below root, sorted; hidden files and folders are left out."""
    found = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(folder).relative_to(root).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found += [prefix + name for name in files if not name.startswith(".") and is_image(name)]
    return sorted(found)


def holds_image(root: str | Path) -> bool:
    """Whether any image lies below root; stops at the first."""
    subfolders = []
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                subfolders.append(entry.path)
            elif is_image(entry.name):
                return True
    return any(holds_image(folder) for folder in subfolders)


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS)
