"""Which files of a folder are images. Every image is listed once, and what is left out is said.

Links are followed, but what they lead to is listed once: a link to a folder or file that is listed anyway (`latest` ->
`run`, `copy.png` -> `a.png`), or to a folder above, is left out. An error while listing is an error: a folder that
cannot be read would silently take a class or a part of one away.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import UserError, first_few

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_OTHER_IMAGES = frozenset(
    ".apng .arw .avif .cr2 .dds .dng .emf .eps .exr .gif .hdr .heic .heif .ico .icns .j2k .jfif .jif .jp2 .jpe .jpx "
    ".jxl .mpo .nef .npy .pbm .pcx .pfm .pgm .pnm .psd .qoi .raw .sgi .svg .tga .wmf .xcf".split()
)
UNFINISHED = "UNFINISHED"
"""A file of this name says that the images of its folder, and below, are being written: how many they will be."""
_SHOWN = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What `scan` found.

    Attributes:
        images: relative POSIX paths, sorted.
        folders: names of the folders directly below, sorted, whether or not they hold images.
        others: how many other files have which ending, in lower case.
    """

    images: list[str]
    folders: list[str]
    others: Counter[str]

    def other_files(self) -> str:
        """In words, for an error about images that are not there; empty where there are no files at all."""
        if not self.others:
            return ""
        most = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in self.others.most_common(_SHOWN))
        return f" ({sum(self.others.values())} files that are not read: {most})"


def scan(root: Path) -> Listing:
    """All images below root; hidden files and folders are left out.

    Raises:
        OSError: a folder cannot be read.
        UserError: a folder, or the one around `root`, holds the mark of images that were not written to their end.
        ValueError: a link without the ending of an image leads nowhere: it may stand for a folder of images.
    """
    refuse_unfinished(root)
    refuse_unfinished(root.parent)
    walk = _Walk(root)
    walk.all()
    for line in walk.notes():
        _say_once(line)
    return Listing(sorted(walk.images), sorted(walk.first), walk.others)


def refuse_unfinished(folder: Path) -> None:
    """UserError where a set of images was not written to its end: a part of it is not the set."""
    mark = folder / UNFINISHED
    if not mark.is_file():
        return
    text = mark.read_text(encoding="utf-8", errors="replace").strip()[:20]
    there = sum(is_image(file.name) for file in folder.rglob("*"))
    raise UserError(
        f"{folder} was not written to its end: {there:,} of {text or '?'} images are there; make them again "
        f"(or remove {UNFINISHED} to take them as they are)"
    )


def list_images(root: Path) -> list[str]:
    """The images of `scan`."""
    return scan(root).images


def folders_with_images(root: Path) -> list[str]:
    """The folders directly below root that hold images of `scan`, sorted; fast where there are no links."""
    with os.scandir(root) as entries:
        folders = [entry for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    plain = {entry.name: None if entry.is_symlink() else _holds_plain_image(entry.path) for entry in folders}
    if None in plain.values():  # whether a link counts, only the whole listing tells
        return sorted({path.split("/", 1)[0] for path in scan(root).images if "/" in path})
    return sorted(name for name, holds in plain.items() if holds)


def holds_image(root: str | Path) -> bool:
    """Whether any image lies below root."""
    holds = _holds_plain_image(root)
    return bool(scan(Path(root)).images) if holds is None else holds


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_EXTENSIONS)


def _holds_plain_image(root: str | Path) -> bool | None:
    """Stops at the first image that is no link; None where there are links and nothing else."""
    linked = False
    folders = [os.fspath(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_symlink():
                    linked = True
                elif entry.is_dir():
                    folders.append(entry.path)
                elif is_image(entry.name):
                    return True
    return None if linked else False


class _Walk:
    """Real folders first, then what links lead to, in sorted order."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[str] = []
        self.first: set[str] = set()
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.links: list[tuple[str, str]] = []  # path, relative path
        self.numbers: dict[int, array[int]] = {}  # device -> inodes of the images
        self.visited = {_identity(folder) for folder in Path(os.path.realpath(root)).parents}

    def all(self) -> None:
        self._folder(os.fspath(self.root), "")
        files: list[tuple[str, os.stat_result]] = []
        while self.links:
            links, self.links = sorted(self.links), []
            for path, relative in links:
                try:
                    found = os.stat(path)
                except OSError:
                    self._broken(path, relative)
                    continue
                if stat.S_ISDIR(found.st_mode):
                    self._folder(path, relative + "/")
                else:
                    files.append((relative, found))
        self._linked_files(files)

    def _folder(self, root: str, prefix: str) -> None:
        folders = [(root, prefix)]
        while folders:
            path, prefix = folders.pop()
            device, number = _identity(path)
            if (device, number) in self.visited:
                self.left_out.append(prefix.rstrip("/"))
                continue
            self.visited.add((device, number))
            if prefix.count("/") == 1:
                self.first.add(prefix.rstrip("/"))
            inodes = self.numbers.setdefault(device, array("Q"))
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    relative = prefix + entry.name
                    if entry.name == UNFINISHED:
                        refuse_unfinished(Path(path))
                    if entry.is_symlink():
                        self.links.append((entry.path, relative))
                    elif entry.is_dir():
                        folders.append((entry.path, relative + "/"))
                    elif is_image(entry.name) and entry.is_file():
                        self.images.append(relative)
                        inodes.append(entry.inode())
                    else:
                        self.others[os.path.splitext(entry.name)[1].lower()] += 1

    def _linked_files(self, links: Iterable[tuple[str, os.stat_result]]) -> None:
        listed: set[tuple[int, int]] | None = None
        for relative, found in links:
            if not is_image(relative) or not stat.S_ISREG(found.st_mode):
                self.others[os.path.splitext(relative)[1].lower()] += 1
                continue
            if listed is None:  # a set of all images only where there is a link among them
                listed = {(device, inode) for device, inodes in self.numbers.items() for inode in inodes}
            identity = found.st_dev, found.st_ino
            if identity in listed:
                self.left_out.append(relative)
            else:
                listed.add(identity)
                self.images.append(relative)

    def _broken(self, path: str, relative: str) -> None:
        if not is_image(relative):
            raise ValueError(f"{path} is a link that leads nowhere (or in a circle); mend it or remove it")
        self.images.append(relative)  # it will count as unreadable

    def notes(self) -> list[str]:
        notes = []
        if self.left_out:
            shown = first_few(sorted(self.left_out), _SHOWN)
            notes.append(f"{self.root}: {len(self.left_out)} links lead to what is listed anyway, left out: {shown}")
        unread = {ending: count for ending, count in sorted(self.others.items()) if ending in _OTHER_IMAGES}
        if unread:
            counts = ", ".join(f"{count} {ending}" for ending, count in unread.items())
            notes.append(f"{self.root}: not read: {counts}; images end in {', '.join(IMAGE_EXTENSIONS)}")
        return notes


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


@functools.lru_cache(maxsize=1024)
def _say_once(line: str) -> None:
    """Both splits list the same folder."""
    _log.warning(line)
