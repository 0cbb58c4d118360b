"""The named resizes, each against what its name promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.protocol import metric_name
from evaluation.resizes import RESIZES, resize_named

SHAPES = [(40, 32), (299, 299), (300, 512), (17, 640)]


def resized(name, image_BCHW, size=299):
    return resize_named(name).network_input(image_BCHW, size)


@pytest.fixture(params=SHAPES, ids=str)
def image_BCHW(request):
    return torch.randint(256, (2, 3, *request.param), dtype=torch.uint8)


@pytest.mark.parametrize("name", RESIZES)
def test_size_range_and_constant_images(name, image_BCHW):
    result = resized(name, image_BCHW)
    assert result.shape == (2, 3, 299, 299) and result.dtype == torch.float32
    assert result.abs().max() <= (1.6 if name == "clean-bicubic" else 1)
    flat = resized(name, torch.full_like(image_BCHW, 64))
    expected = 64 / 127.5 - 1 if name == "bilinear" else (64 - 128) / 128
    torch.testing.assert_close(flat, torch.full_like(flat, expected), rtol=0, atol=1e-5)


def test_clean_bicubic_is_pillows_on_float_channels(image_BCHW):
    expected = [
        [np.array(Image.fromarray(c.numpy().astype(np.float32), mode="F").resize((299, 299), Image.Resampling.BICUBIC))
         for c in image_CHW]
        for image_CHW in image_BCHW
    ]  # fmt: skip
    torch.testing.assert_close(
        resized("clean-bicubic", image_BCHW) * 128 + 128, torch.tensor(np.array(expected)), rtol=0, atol=0.02
    )


def test_tf1_bilinear_reads_at_multiples_of_the_ratio():
    # 4 -> 6 pixels: output i reads at 2 i / 3, and beyond the last pixel the last pixel.
    row = torch.tensor([0, 30, 60, 120], dtype=torch.uint8).expand(1, 3, 4, 4).contiguous()
    across = resized("inception-tf1", row, 6) * 128 + 128
    torch.testing.assert_close(across[0, 0, 0], torch.tensor([0.0, 20, 40, 60, 100, 120]), rtol=0, atol=1e-4)
    down = resized("inception-tf1", row.transpose(2, 3), 6) * 128 + 128
    torch.testing.assert_close(down[0, 0, :, 0], across[0, 0, 0])


def test_the_resizes_differ_where_it_matters():
    checkered = (torch.arange(600).remainder(2) * 255).to(torch.uint8).expand(1, 3, 600, 600).contiguous()
    deviation = {name: resized(name, checkered).std().item() for name in RESIZES}
    assert deviation["clean-bicubic"] < 0.1 < min(deviation["bilinear"], deviation["inception-tf1"])


def test_names():
    with pytest.raises(ValueError, match="'area': choose one of bilinear, inception-tf1, clean-bicubic"):
        resize_named("area")
    assert len({resize.tag for resize in RESIZES.values()}) == len(RESIZES)
    assert metric_name("kid", "x", "r", "train", detail="subsets2x5") == "kid_x_r_subsets2x5_vs_train"
    assert metric_name("psnr", "rgb", reference="val") == "psnr_rgb_vs_val"
