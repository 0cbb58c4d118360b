"""Decoding: what is an image, what is refused before it costs memory, and the order in which threads give images."""

from __future__ import annotations

import io
import tarfile
import threading

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.images.decoding import UNREADABLE, decode_in_order, decode_rgb, image_format
from data.images.listing import IMAGE_EXTENSIONS, holds_image, list_images
from data.shards.tar_members import IMAGE_KINDS
from runtime.errors import UserError
from scoring.image_source import open_source


def encoded(pixels, form="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)


def test_limits_are_checked_before_decoding():
    assert decode_rgb(encoded(GREY), 48).size == (8, 6)
    with pytest.raises(ValueError, match="8x6 pixels are more than max_image_pixels 47"):
        decode_rgb(encoded(GREY), 47)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(GREY)[:40]])
def test_what_is_no_whole_image(content):
    with pytest.raises(UNREADABLE) as raised:
        decode_rgb(content)
    assert "0x" not in str(raised.value)  # no address of an object


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize(
    "content", [POSTSCRIPT, *(encoded(GREY, form) for form in ("GIF", "ICO", "TGA", "PCX", "SGI"))]
)
def test_only_named_formats_are_opened_whatever_a_file_is_called(content, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for read in (decode_rgb, image_format):
        with pytest.raises(UNREADABLE):
            read(content)


def test_the_format_is_read_from_the_file():
    assert [image_format(encoded(GREY, form)) for form in ("PNG", "JPEG", "BMP")] == ["PNG", "JPEG", "BMP"]


class Rows:
    """Images whose first pixel is their number; number 3 is none, and the first one comes last."""

    def __init__(self):
        self.others = threading.Semaphore(0)

    def __len__(self):
        return 12

    def name(self, index):
        return f"row {index}"

    def read(self, index):
        if index == 0:
            assert self.others.acquire(timeout=60)
        else:
            self.others.release()
        return b"" if index == 3 else encoded(np.full((2, 2), index, dtype=np.uint8))


def test_threads_give_images_in_order_and_errors_in_their_place():
    decoded = list(decode_in_order(Rows(), range(12), threads=2))
    assert [index for index, _ in decoded] == list(range(12))
    for index, image_HWC in decoded:
        if index == 3:
            assert isinstance(image_HWC, UserError) and "row 3 cannot be read" in str(image_HWC)
        else:
            assert image_HWC.shape == (2, 2, 3) and (image_HWC == index).all()


def test_the_same_files_are_images_in_folders_and_in_shards(tmp_path):
    names = [f"x{extension}" for extension in IMAGE_EXTENSIONS]
    assert [f"x.{kind}" for kind in IMAGE_KINDS] == names
    assert not holds_image(tmp_path) and list_images(tmp_path) == []
    for name in (".x.png", ".hidden/x.png", "x.txt", "png", "x.png.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert not holds_image(tmp_path) and list_images(tmp_path) == []
    for name in (*names, "b/A.JPEG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert holds_image(tmp_path) and holds_image(tmp_path / "b")
    assert list_images(tmp_path) == sorted([*names, "b/A.JPEG"])


def test_a_file_of_more_bytes_than_any_image_has_is_unreadable_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr("data.images.encoded_images.MAX_IMAGE_BYTES", 1000)
    noise = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    for number, pixels in enumerate((GREY, noise, GREY)):
        (tmp_path / f"{number}.png").write_bytes(encoded(pixels))
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for number in range(3):
            tar.add(tmp_path / f"{number}.png", f"{number}.png")
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / f"{number}.png").rename(tmp_path / "images" / f"{number}.png")
    shards = [str(tmp_path / "train.tar")]
    for kind, root in (("folder", str(tmp_path / "images")), ("shards", shards)):
        sides = [build_dataset(DatasetConfig(type=kind, root=root, resolution=8), split) for split in ("train", "val")]
        for dataset in sides:
            for index in range(len(dataset)):
                if "1" in dataset.source.name(index).rpartition("/")[2].rpartition(":")[2]:
                    with pytest.raises(OSError, match="it has more than 1000 bytes"):
                        dataset.source.read(index)
                else:
                    assert dataset.source.read(index)
    for spec in (str(tmp_path / "images"), shards[0]):
        with pytest.raises(UserError, match="cannot be read: it has more than 1000 bytes"):
            list(open_source(spec).batches(1))
