"""How images are cropped and resized, and what is refused before that fills the memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from data.images.transforms import Pipeline


def _image(value, size=(20, 16)):
    """An image whose pixels tell its number and their place."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = value, np.arange(width) * 5, np.arange(height)[:, None] * 5
    return Image.fromarray(pixels)


@pytest.mark.parametrize("style", ["imagenet", "ffhq", "lsun", "none"])
@pytest.mark.parametrize("size", [(40, 20), (20, 40), (16, 16), (7, 9)])
def test_crops_are_square_for_any_aspect(style, size):
    image = _image(5, size)
    for draws in (None, np.zeros(4), np.full(4, 1 - 1e-9)):
        assert Pipeline(style, 16)(image, draws).shape == (3, 16, 16)


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("style", ["imagenet256x256", "ffhq256x256", "LSUN-cat"])
def test_a_small_file_that_would_become_a_huge_image_is_unreadable(tmp_path, size, style, monkeypatch):
    """20,000 pixels, of which resizing the shorter side to 256 made 1.3 billion."""
    for number in range(6):
        _image(number).save(tmp_path / f"{number}.png")
    Image.new("RGB", size).save(tmp_path / "bomb.png")
    resize, made = Image.Image.resize, []

    def recorded(image, wanted, *args, **kwargs):
        made.append(wanted[0] * wanted[1])
        assert made[-1] < 10**7
        return resize(image, wanted, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", recorded)
    config = DatasetConfig(type="folder", root=str(tmp_path), transforms=style, resolution=256)
    found = [build_dataset(config, split) for split in ("train", "val")]
    for dataset in found:
        dataset.fetch(np.arange(len(dataset)), np.arange(len(dataset)))
    assert made and sum(dataset.corrupt_count() for dataset in found) == 1
    for style_of_any_shape in ("none", "dalle-vqvae"):
        dataset = build_dataset(replace(config, transforms=style_of_any_shape, resolution=16), "train")
        dataset.fetch(np.arange(len(dataset)), np.arange(len(dataset)))
        assert dataset.corrupt_count() == 0


def test_long_images_are_read():
    image = Image.new("RGB", (3000, 30))
    Pipeline("imagenet", 256).check(image, 10**7)
    with pytest.raises(ValueError, match="3000x30 becomes 6553600 pixels .* more than max_image_pixels 1000000"):
        Pipeline("imagenet", 256).check(image, 10**6)


def test_imagenet_crops():
    image = _image(5, (48, 16))
    pipeline = Pipeline("imagenet", 16, hflip=False)
    assert torch.equal(pipeline(image, None), torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[:, :, 16:32])
    lefts = {int(pipeline(image, np.array([0, draw, 0, 0]))[1, 0, 0]) // 5 for draw in np.arange(0, 1, 0.01)}
    assert lefts == set(range(33))
    flipped = Pipeline("imagenet", 16)
    assert torch.equal(flipped(image, np.array([0, 0, 0.49, 0])), pipeline(image, np.zeros(4)).flip(-1))
    assert torch.equal(flipped(image, np.array([0, 0, 0.51, 0])), pipeline(image, np.zeros(4)))


def test_ffhq_crops_keep_three_quarters_of_the_area():
    image = _image(5, (50, 50))
    pipeline = Pipeline("ffhq", 50, hflip=False)
    whole = pipeline(image, np.array([0, 0, 0, 1 - 1e-12]))
    assert torch.equal(whole, pipeline(image, None))
    smallest = pipeline(image, np.zeros(4))
    side = smallest[1].max() / 5 + 1
    assert abs(float(side) - 50 * 0.75**0.5) < 1
    assert smallest[1].min() == 0 and smallest[2].min() == 0
    corner = pipeline(image, np.array([1 - 1e-9, 1 - 1e-9, 0, 0]))
    assert corner[1].max() == 49 * 5 and corner[2].max() == 49 * 5


def test_lsun_and_none_never_augment():
    image = _image(5, (40, 20))
    for style in ("lsun", "none"):
        assert torch.equal(Pipeline(style, 16)(image, np.zeros(4)), Pipeline(style, 16)(image, None))
    mirrored = Pipeline("lsun", 16, hflip=True)(image, np.zeros(4))
    assert torch.equal(mirrored, Pipeline("lsun", 16)(image, None).flip(-1))
