"""Images that are not square: no style squeezes, turns or crops them to squares on its own account."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from data.build import dataset_request
from data.images.aspect import covering, fitting, middle
from data.images.transforms import NUM_DRAWS, Pipeline

STYLES = ("imagenet", "ffhq", "lsun", "dalle", "none")


def ramp(height: int, width: int) -> Image.Image:
    """Red grows from left to right, green from top to bottom, both from 0 to 255."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("image", "wanted", "covers", "fits"),
    [
        ((24, 16), (24, 16), (24, 16), (24, 16)),
        ((48, 32), (24, 16), (24, 16), (48, 32)),
        ((24, 24), (24, 16), (24, 24), (24, 16)),
        ((16, 24), (24, 16), (24, 36), (16, 11)),
        ((10, 30), (8, 8), (8, 24), (10, 10)),
        ((31, 10), (8, 8), (24, 8), (10, 10)),
        ((1, 1000), (24, 16), (24, 24000), (1, 1)),
    ],
)
def test_covering_and_fitting_sizes(image, wanted, covers, fits):
    assert covering(image, wanted) == covers and fitting(image, wanted) == fits
    assert all(side >= least for side, least in zip(covers, wanted))
    assert all(1 <= side <= most for side, most in zip(fits, image))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (40, 10), (7, 9)])
def test_every_style_gives_the_size_that_is_asked_for(style, shape):
    for draws in (None, np.zeros(NUM_DRAWS), np.full(NUM_DRAWS, 1 - 1e-9)):
        for keep in (False, True):
            image = Pipeline(style, (24, 16), keep=keep)(ramp(*shape), draws)
            assert image.shape == (3, 24, 16)
            assert (image[0, :, 1:] >= image[0, :, :-1]).all() or draws is not None  # left is left: nothing is turned
            assert (image[1, 1:] >= image[1, :-1]).all()  # and up is up


def test_an_image_of_the_size_asked_for_stays_as_it_is():
    image = ramp(24, 16)
    for style in STYLES:
        given = Pipeline(style, (24, 16), keep=True)(image, None)
        assert torch.equal(given, torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_kept_images_lose_their_sides_and_squeezed_ones_do_not():
    wide = ramp(24, 48)
    kept, squeezed = (Pipeline("none", (24, 16), keep=keep)(wide, None)[0] for keep in (True, False))
    assert squeezed.max() > 240 and squeezed.min() < 15
    assert 80 < kept.min() and kept.max() < 175  # the middle third
    assert torch.equal(kept, Pipeline("lsun", (24, 16))(wide, None)[0])


def test_training_crops_reach_every_place_and_keep_the_aspect():
    wide, tall = ramp(24, 96), ramp(96, 16)
    ends = [Pipeline("imagenet", (24, 16), hflip=False)(wide, np.full(NUM_DRAWS, draw))[0] for draw in (0, 0.999)]
    assert ends[0].min() == 0 and ends[1].max() == 255
    ends = [Pipeline("imagenet", (24, 16), hflip=False)(tall, np.full(NUM_DRAWS, draw))[1] for draw in (0, 0.999)]
    assert ends[0].min() == 0 and ends[1].max() == 255
    part = Pipeline("ffhq", (24, 16), hflip=False)(ramp(240, 160), np.array([0.5, 0.5, 1, 0.0, 0.5]))
    lengths = [int(part[channel].max()) - int(part[channel].min()) for channel in (0, 1)]
    assert all(abs(length / 255 - 0.75**0.5) < 0.06 for length in lengths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(resolution=[24, 16]), r"dataset.resolution \[24, 16\] is not square: dataset.resize=keep gives"),
        (dict(resolution=[24, 16, 3], resize="keep"), "must be a side in pixels or .height, width., not"),
        (dict(resolution=[24, 0], resize="keep"), "dataset.resolution must be at least 1, not .24, 0."),
        (dict(resolution=24.5), "must be a side in pixels"),
        (dict(resolution=True), "must be a side in pixels"),
        (dict(resolution="big"), "must be a side in pixels"),
        (dict(resolution=16, resize="crop"), "dataset.resize 'crop' is unknown; choose one of square, keep"),
        (dict(transforms="imagenet24x16"), "leave the size out of it and give dataset.resolution=.height,width."),
    ],
)
def test_wrong_sizes(settings, message):
    with pytest.raises(ValueError, match=message) as told:
        dataset_request(DatasetConfig(type="folder", **settings), "train")
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_a_plain_number_still_means_a_square():
    assert dataset_request(DatasetConfig(type="folder", resolution=16), "train").resolution == (16, 16)
    assert dataset_request(DatasetConfig(type="folder", resolution=[16, 16]), "train").resolution == (16, 16)
    assert dataset_request(DatasetConfig(type="folder", resolution=16, resize="keep"), "val").resolution == (16, 16)


def test_folders_and_data_sets_in_memory_have_the_shape(tmp_path):
    for number in range(8):
        ramp(48, 64).save(tmp_path / f"{number}.png")
    shape = dict(resolution=[24, 16], resize="keep")
    folder = build_dataset(DatasetConfig(type="folder", root=str(tmp_path), val_fraction=0.5, **shape), "val")
    digits = build_dataset(DatasetConfig(type="digits", **shape), "val")
    drawn = build_dataset(DatasetConfig(type="synthetic", num_samples=8, **shape), "train")
    pairs = build_dataset(DatasetConfig(type="synthetic-pairs", num_samples=8, **shape), "train")
    for dataset in (folder, digits, drawn, pairs):
        batch = dataset.fetch(np.arange(2), np.arange(2))
        assert dataset.resolution == (24, 16) and batch["image"].shape == (2, 3, 24, 16)
    square = build_dataset(DatasetConfig(type="digits", resolution=24), "val")
    assert torch.equal(digits.image_NCHW, middle(square.image_NCHW, (24, 16)))
    whole = build_dataset(DatasetConfig(type="synthetic", num_samples=8, resolution=24), "train")
    assert torch.equal(drawn.fetch(np.arange(8), None)["image"], whole.fetch(np.arange(8), None)["image"][..., 4:20])
