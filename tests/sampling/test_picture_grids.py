"""Grids: enlarged without mixing pixels, rows and images under their labels."""

from __future__ import annotations

import torch

from sampling.picture_grids import MIN_SIDE, _wrapped, uint8_grid


def images(count: int, channels: int = 3, side: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8)


def test_small_images_are_enlarged_pixel_by_pixel():
    image_NCHW = images(6, channels=1, side=100)
    grid_CHW = uint8_grid(image_NCHW, columns=3)
    assert grid_CHW.shape == (3, 2 * 200 + 3 * 2, 3 * 200 + 4 * 2)
    shown = grid_CHW[:, 2 + 200 + 2 : 2 + 2 * 200 + 2, 2:202]  # second row, first column
    assert torch.equal(shown[:, ::2, ::2], image_NCHW[3].expand(3, -1, -1))
    assert torch.equal(shown[:, 1::2, 1::2], shown[:, ::2, ::2])


def test_large_images_keep_their_pixels():
    image_NCHW = images(2, side=MIN_SIDE)
    assert torch.equal(uint8_grid(image_NCHW, columns=2)[:, 2:-2, 2 : 2 + MIN_SIDE], image_NCHW[0])


def test_labels_stand_beside_rows_and_above_images():
    image_NCHW = torch.full((4, 3, MIN_SIDE, MIN_SIDE), 7, dtype=torch.uint8)
    plain = uint8_grid(image_NCHW, columns=2)
    rows = uint8_grid(image_NCHW, columns=2, row_labels=["original", "1 code"])
    margin = rows.shape[2] - plain.shape[2]
    assert rows.shape[1] == plain.shape[1] and margin > 40
    assert torch.equal(rows[:, :, margin:], plain)
    for row in (0, 1):  # something is written, half way down each row
        middle = row * (MIN_SIDE + 2) + MIN_SIDE // 2
        assert rows[:, middle - 12 : middle + 12, :margin].min() < 100
    named = uint8_grid(image_NCHW, columns=2, image_labels=["cat", "a dog that is on a very long boat", "", "x"])
    head = (named.shape[1] - plain.shape[1]) // 2
    assert head >= 30 and named.shape[2] == plain.shape[2]
    for row in (0, 1):
        top = 2 + row * (head + MIN_SIDE + 2)
        assert (named[:, top + head : top + head + MIN_SIDE, 2 : 2 + MIN_SIDE] == 7).all()
    assert named[:, :head, :MIN_SIDE].min() < 100 and named[:, -MIN_SIDE - head : -MIN_SIDE - 8, :MIN_SIDE].min() > 200


def test_labels_of_columns_stand_above_the_first_row_alone():
    image_NCHW = torch.full((4, 3, MIN_SIDE, MIN_SIDE), 7, dtype=torch.uint8)
    plain = uint8_grid(image_NCHW, columns=2)
    named = uint8_grid(image_NCHW, columns=2, column_labels=["cat", "a dog that is on a very long boat"])
    head = named.shape[1] - plain.shape[1]
    assert head >= 30 and named.shape[2] == plain.shape[2]
    assert torch.equal(named[:, head:], plain)
    assert named[:, :head, :MIN_SIDE].min() < 100 and named[:, :head, MIN_SIDE + 4 :].min() < 100
    margin = uint8_grid(image_NCHW, columns=2, row_labels=["a", "b"]).shape[2] - plain.shape[2]
    both = uint8_grid(image_NCHW, columns=2, row_labels=["a", "b"], column_labels=["cat", "dog"])
    assert torch.equal(both[:, -plain.shape[1] :, margin:], plain)


def test_labels_are_cut_where_they_do_not_fit():
    assert _wrapped("cat", 128) == ["cat"]
    lines = _wrapped("word " * 40, 128)
    assert len(lines) == 3 and lines[-1].endswith("...")
    (line,) = _wrapped("x" * 100, 128)
    assert line.endswith("...") and len(line) < 30
