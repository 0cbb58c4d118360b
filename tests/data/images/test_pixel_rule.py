"""What files of every mode, bit depth, orientation and transparency become: the same for training and for scoring."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, EvalLoader, build_dataset
from data.dataset import reading_notes
from data.images.decoding import read_pixels
from data.images.pixel_rule import PixelRule, parse_background
from scoring.image_source import open_source

GREY = np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
HALF = np.where(np.arange(8) < 4, 0, 255).astype(np.uint8) * np.ones((6, 1), dtype=np.uint8)  # the left is transparent


def saved(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def read(encoded, **rule):
    return np.asarray(read_pixels(encoded, PixelRule(**rule)).image)


def over(colour_HWC, alpha_HW, background):
    alpha_HW1 = alpha_HW[..., None] / 255
    return np.rint(colour_HWC * alpha_HW1 + np.array(background) * (1 - alpha_HW1))


def png_chunks(width, height, depth, kind, rows, **chunks):
    """A PNG file by hand: Pillow writes neither 16 bits of colour nor their transparent value."""

    def chunk(name, content):
        crc = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


RGBA = Image.fromarray(np.dstack([COLOUR, HALF]))
LA = Image.fromarray(np.dstack([GREY, HALF]))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_composited_over_the_background(form):
    encoded = saved(RGBA, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    np.testing.assert_array_equal(read(encoded), over(COLOUR, HALF, (255, 255, 255)))
    np.testing.assert_array_equal(read(encoded, background=(9, 0, 200)), over(COLOUR, HALF, (9, 0, 200)))
    np.testing.assert_array_equal(read(encoded, channels=4), np.asarray(RGBA))
    assert read_pixels(encoded).flattened and not read_pixels(encoded, PixelRule(channels=4)).flattened


def test_partial_transparency_grey_and_palettes():
    partly = Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 100)]))
    assert np.abs(read(saved(partly)) - over(COLOUR, np.full_like(GREY, 100), (255,) * 3)).max() <= 1
    np.testing.assert_array_equal(read(saved(LA)), over(np.dstack([GREY] * 3), HALF, (255,) * 3))
    np.testing.assert_array_equal(read(saved(LA), channels=1), over(GREY[..., None], HALF, (255,))[..., 0])
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(
            read(saved(palette, transparency=bytes([0, 255, 255]))), [[[255] * 3, [40, 50, 60], [70, 80, 90]]]
        )
    np.testing.assert_array_equal(read(saved(palette, transparency=1))[0, 1], [255] * 3)


def test_a_transparent_colour_without_alpha():
    colour = COLOUR.copy()
    colour[0, 0] = (1, 2, 3)
    expected = colour.copy()
    expected[0, 0] = 255
    np.testing.assert_array_equal(read(saved(Image.fromarray(colour), transparency=(1, 2, 3))), expected)
    bilevel = Image.fromarray(GREY > 100)
    assert (read(saved(bilevel, transparency=0)) == 255).all()


def test_an_opaque_alpha_channel_changes_nothing_and_is_not_counted():
    found = read_pixels(saved(Image.fromarray(np.dstack([COLOUR, np.full_like(GREY, 255)]))))
    np.testing.assert_array_equal(np.asarray(found.image), COLOUR)
    assert not found.flattened


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_become_their_upper_8(form):
    deep_HW = GREY.astype(np.uint16) * 257 + 3
    np.testing.assert_array_equal(read(saved(Image.fromarray(deep_HW), form))[..., 1], GREY)
    np.testing.assert_array_equal(read(saved(Image.fromarray(deep_HW), form), channels=1), GREY)


def test_16_bits_of_colour_agree_with_16_bits_of_grey_also_where_a_value_is_transparent():
    deep_HWC = (COLOUR.astype(np.uint16) << 8) + 77
    rows = [row.astype(">u2").tobytes() for row in deep_HWC]
    np.testing.assert_array_equal(read(png_chunks(8, 6, 16, 2, rows)), COLOUR)
    clear = png_chunks(8, 6, 16, 2, rows, tRNS=deep_HWC[2, 3].astype(">u2").tobytes())
    expected = COLOUR.copy()
    expected[2, 3] = 255
    np.testing.assert_array_equal(read(clear), expected)
    rows = [row.astype(">u2").tobytes() for row in deep_HWC[..., 0]]
    clear = png_chunks(8, 6, 16, 0, rows, tRNS=deep_HWC[2, 3, :1].astype(">u2").tobytes())
    expected = np.dstack([GREY] * 3)
    expected[2, 3] = 255
    np.testing.assert_array_equal(read(clear), expected)


def test_16_bits_of_a_ppm_and_12_bits_of_a_tiff():
    grey = b"P5 8 6 65535\n" + (GREY.astype(np.uint16) * 256).astype(">u2").tobytes()
    np.testing.assert_array_equal(read(grey)[..., 2], GREY)
    value_N = np.array([0, 0xFFF, 0x800, 0x7F0])
    packed = b"".join(struct.pack(">I", int(a) << 12 | int(b))[1:] for a, b in value_N.reshape(2, 2))
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    file = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + struct.pack("<H", len(tags)) + entries + bytes(4)
    np.testing.assert_array_equal(read(file)[0, :, 0], value_N >> 4)


def test_floats_lie_in_0_to_1():
    unit = (GREY / 255).astype(np.float32)
    np.testing.assert_array_equal(read(saved(Image.fromarray(unit), "TIFF"))[..., 0], GREY)
    for wrong in (unit * 255, unit - 1, np.where(GREY == 5, np.nan, unit).astype(np.float32)):
        with pytest.raises(ValueError, match=r"its pixels are floats from .*; floats must lie in 0..1"):
            read(saved(Image.fromarray(wrong), "TIFF"))


def test_integers_whose_white_is_not_known_are_refused():
    with pytest.raises(ValueError, match="integers of 32 bits or with a sign"):
        read(saved(Image.fromarray(GREY.astype(np.int32)), "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "LAB"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_modes_are_as_pillow_converts_them(mode, channels):
    image = Image.fromarray(COLOUR, "LAB") if mode == "LAB" else Image.fromarray(COLOUR).convert(mode)
    expected = image.convert("RGB") if mode == "LAB" else image
    expected = expected.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    np.testing.assert_array_equal(read(saved(image, "TIFF"), channels=channels), np.asarray(expected))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(form, orientation):
    scene = np.zeros((32, 48, 3), dtype=np.uint8)
    scene[:16, :24], scene[16:, 24:] = 255, (0, 0, 255)
    turned = {  # what a camera stores when the scene should be shown as it is
        1: scene, 2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.transpose(1, 0, 2),
        6: np.rot90(scene, 1), 7: scene[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(scene, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {"quality": 100, "subsampling": 0} if form == "JPEG" else {}
    encoded = saved(Image.fromarray(np.ascontiguousarray(turned)), form, exif=exif, **options)
    found = read(encoded).astype(int)
    assert found.shape == scene.shape and np.abs(found - scene).max() < 8


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_a_damaged_orientation_tag_says_nothing(exif):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(saved(Image.fromarray(COLOUR), "JPEG", exif=exif, quality=100)).shape == (6, 8, 3)


def test_backgrounds():
    assert (parse_background("white"), parse_background("#0a0B0c")) == ((255, 255, 255), (10, 11, 12))
    assert parse_background("rgba(1, 2, 3, 4)") == (1, 2, 3)
    with pytest.raises(ValueError, match="dataset.background 'nowhere' is no colour"):
        build_dataset(DatasetConfig(type="digits", background="nowhere"), "train")


def _folder(tmp_path):
    deep = Image.fromarray(GREY.astype(np.uint16) << 8)
    for number, image in enumerate((RGBA, LA, deep, Image.fromarray(COLOUR))):
        image.save(tmp_path / f"{number}.png")
    return tmp_path


def test_training_and_scoring_give_the_same_pixels_and_count_the_transparent_ones(tmp_path, capsys):
    folder = _folder(tmp_path)
    settings = dict(type="folder", root=str(folder), resolution=6, transforms="none")
    config = DatasetConfig(**settings, split_seed=1)
    seen = {}
    flattened = 0
    for split in ("train", "val"):
        dataset = build_dataset(config, split)
        for batch in EvalLoader(dataset, 2):
            for index, image_CHW in zip(batch["index"].tolist(), batch["image"]):
                seen[dataset.source.name(index)] = image_CHW.mul(127.5).add(127.5).round().byte()
        flattened += dataset.flattened_count()
        assert len(reading_notes(dataset)) == bool(dataset.flattened_count())
    assert len(seen) == 4 and flattened == 2
    for path in folder.iterdir():
        image = read_pixels(path.read_bytes()).image.resize((6, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(seen[str(path)].permute(1, 2, 0), np.asarray(image))
    source = open_source(str(folder))
    images = np.concatenate([batch["image"].permute(0, 2, 3, 1).numpy() for batch in source.batches(3)])
    for image, path in zip(images, sorted(folder.iterdir())):
        np.testing.assert_array_equal(image, read(path.read_bytes()))
    assert capsys.readouterr().err.count("2 images have transparency") == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_data_sets_give_the_channels_that_are_asked_for(tmp_path, channels):
    folder = _folder(tmp_path)
    config = DatasetConfig(type="folder", root=str(folder), resolution=6, channels=channels, val_fraction=0.5)
    for settings in (config, DatasetConfig(type="digits", channels=channels)):
        dataset = build_dataset(settings, "train")
        batch = next(iter(EvalLoader(dataset, 3)))
        assert batch["image"].shape[1] == channels == dataset.channels
        assert float(batch["image"].min()) >= -1 and float(batch["image"].max()) <= 1
    with pytest.raises(ValueError, match="dataset.channels must be 1 .grey., 3 .RGB. or 4 .RGBA., not 2"):
        build_dataset(DatasetConfig(type="digits", channels=2), "train")
