"""Picture grids: reconstructions from coarse to fine, and samples of all ranks.

Grids are made to be looked at: small images are enlarged, rows and images carry labels.

Legend: B batch, C channels, H W image, D code depth, N images.
"""

import io
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from evaluation.protocol import check_uint8_images, to_uint8
from rqvae import RQVAE
from runtime import distributed
from runtime.runlog import RunLog

COARSE_TO_FINE, SINGLE_DEPTHS = "reconstruction_coarse_to_fine", "reconstruction_single_depths"  # names of pictures
GRID_IMAGES = 100
GRID_COLUMNS = 10
MIN_SIDE = 128  # pixels of an image in a grid; smaller ones are enlarged by a whole factor
LABEL_LINES = 3
_GAP, _MARGIN, _FONT_SIZE, _LINE_HEIGHT = 2, 8, 15, 19
_INK, _GROUND = (32, 32, 32), 255


@torch.no_grad()
def coarse_to_fine(model: RQVAE, image_BCHW: Tensor) -> Tensor:
    """Rows of pictures: the originals, then the decoded sum of the first 1, 2, ..., D codes.

    Args:
        image_BCHW: images in [-1, 1]; one column each.

    Returns:
        One grid, uint8 (3, H, W).
    """
    depth = len(model.quantizer.num_codes)
    return _rows(model, image_BCHW, "add", ["1 code", *(f"{number} codes" for number in range(2, depth + 1))])


@torch.no_grad()
def single_depths(model: RQVAE, image_BCHW: Tensor) -> Tensor:
    """Rows of pictures: the originals, then what the codes of one depth decode to on their own."""
    depth = len(model.quantizer.num_codes)
    return _rows(model, image_BCHW, "select", [f"code {number} alone" for number in range(1, depth + 1)])


def _rows(model: RQVAE, image_BCHW: Tensor, kind: str, labels: Sequence[str]) -> Tensor:
    model.eval()
    codes_BHWD = model.get_codes(image_BCHW)
    rows = [image_BCHW, *(model.decode_partial_code(codes_BHWD, depth, kind) for depth in range(codes_BHWD.shape[-1]))]
    images_NCHW = torch.cat([row.float() for row in rows])
    return image_grid(images_NCHW, len(image_BCHW), row_labels=["original", *labels])


def image_grid(image_BCHW: Tensor, columns: int, **labels: Sequence[str]) -> Tensor:
    """Float images in [-1, 1] as one grid, uint8 (3, H, W); the labels are those of `uint8_grid`."""
    return uint8_grid(to_uint8(image_BCHW), columns, **labels)


def uint8_grid(
    image_NCHW: Tensor,
    columns: int,
    *,
    row_labels: Sequence[str] = (),
    image_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Tensor:
    """uint8 images of any channels as one RGB grid, uint8 (3, H, W), on the CPU.

    Images of less than `MIN_SIDE` pixels are enlarged by repeating pixels.

    Args:
        columns: images in a row.
        row_labels: what stands to the left of each row.
        image_labels: what stands above each image, on up to `LABEL_LINES` lines.
        column_labels: what stands above each column, likewise.
    """
    image_NCHW = check_uint8_images(image_NCHW.cpu())
    factor = -(-MIN_SIDE // min(image_NCHW.shape[-2:]))
    large_NCHW = image_NCHW.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    width = large_NCHW.shape[-1]
    texts = [_wrapped(label, width) for label in image_labels]
    titles = [_wrapped(label, width) for label in column_labels]
    head, top = (_LINE_HEIGHT * max((len(lines) for lines in found), default=0) for found in (texts, titles))
    if head:
        large_NCHW = torch.nn.functional.pad(large_NCHW, (0, 0, head, 0), value=_GROUND)
    grid_CHW = make_grid(large_NCHW, nrow=columns, padding=_GAP, pad_value=_GROUND)
    if not row_labels and not head and not top:
        return grid_CHW
    margin = round(max((_font().getlength(label) for label in row_labels), default=0))
    margin += 2 * _MARGIN if margin else 0
    picture = to_pil_image(torch.nn.functional.pad(grid_CHW, (margin, 0, top, 0), value=_GROUND))
    draw = ImageDraw.Draw(picture)
    step_x, step_y = width + _GAP, large_NCHW.shape[-2] + _GAP
    for row, label in enumerate(row_labels):
        draw.text((_MARGIN, top + (row + 0.5) * step_y + head / 2), label, _INK, _font(), anchor="lm")
    for number, lines in enumerate(texts):
        row, column = divmod(number, columns)
        place = (margin + column * step_x + _GAP, top + row * step_y + _GAP)
        draw.text(place, "\n".join(lines), _INK, _font(), spacing=3)
    for column, lines in enumerate(titles):
        draw.text((margin + column * step_x + _GAP, 0), "\n".join(lines), _INK, _font(), spacing=3)
    return pil_to_tensor(picture)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_FONT_SIZE)


def _wrapped(text: str, width: int) -> list[str]:
    """A label in lines that fit above its image; dots stand for what does not."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _font().getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LABEL_LINES:
        lines = [*lines[: LABEL_LINES - 1], f"{lines[LABEL_LINES - 1]} ..."]
    return [_cut(line, width) for line in lines]


def _cut(line: str, width: int) -> str:
    if _font().getlength(line) <= width:
        return line
    while line and _font().getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."


def save_image_file(image_CHW: Tensor, path: Path) -> None:
    """Writes one uint8 image, grey or RGB, by the ending of the file name."""
    to_pil_image(image_CHW).save(path)


def png_bytes(image_CHW: Tensor) -> bytes:
    """The bytes that `save_image_file` writes into a PNG."""
    encoded = io.BytesIO()
    to_pil_image(image_CHW).save(encoded, "PNG")
    return encoded.getvalue()


def keep_images(
    batches: Iterable[dict[str, Tensor]], kept: dict[int, Tensor], wanted: Collection[int] = range(GRID_IMAGES)
) -> Iterator[dict[str, Tensor]]:
    """Passes batches through and remembers the images of the preview grid, by sample number."""
    for batch in batches:
        for index, image_CHW in zip(batch["index"].tolist(), batch["image"], strict=True):
            if index in wanted:
                kept[index] = image_CHW.cpu()
        yield batch


def save_grid(
    kept: dict[int, Tensor],
    log: RunLog,
    directory: Path,
    columns: int = GRID_COLUMNS,
    order: list[int] | None = None,
    label_of: Callable[[int], str] | None = None,
) -> None:
    """Collects the preview images of all ranks and writes `samples.png`.

    Args:
        kept: sample number -> image, on every rank its own.
        columns: images in a row.
        order: sample numbers, row by row; None takes them in ascending order.
        label_of: what stands above the sample of a number.
    """
    own = torch.tensor(sorted(kept), dtype=torch.long)
    images = torch.stack([kept[index] for index in sorted(kept)]) if kept else None
    index_N = torch.cat(distributed.gather_rows(own))
    shapes = distributed.gather_objects(None if images is None else list(images.shape[1:]))
    shape = next(shape for shape in shapes if shape is not None)
    image_NCHW = torch.cat(
        distributed.gather_rows(torch.empty(0, *shape, dtype=torch.uint8) if images is None else images)
    )
    if distributed.is_main():
        row_of = {int(index): row for row, index in enumerate(index_N)}
        numbers = sorted(row_of) if order is None else order
        labels = [] if label_of is None else [label_of(number) for number in numbers]
        grid = uint8_grid(image_NCHW[[row_of[number] for number in numbers]], columns, image_labels=labels)
        save_image_file(grid, directory / "samples.png")
        log.log_images("samples", grid, 0)
