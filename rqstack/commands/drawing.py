"""`rqstack sample` and `rqstack inpaint`: codes drawn, and the images that they stand for.

Legend: B images, C channels, H W image, h w grid of codes, D code depth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rqstack.commands.models import chosen_device, classes_of, load_both
from rqstack.commands.output import check_free, new_folder
from rqstack.commands.pictures import as_tensor, import_pillow, open_picture, save_picture, save_sheet, white_cells
from rqstack.commands.reconstructing import background_of
from rqstack.commands.settings import InpaintSettings, SampleSettings
from rqtransformer import decode_in_batches
from rqtransformer import sample as draw_codes
from rqtransformer.pretrained.loading import sampling_settings

BATCH = 100  # drawn together; what is drawn does not depend on it
COLUMNS = 8


def sample(settings: SampleSettings) -> str:
    """Draws images into `00000.png`, ..., with all of them in `samples.png` and their codes in `codes.safetensors`."""
    import_pillow()  # before the minutes of drawing, not after
    check_free(settings.out)
    tokenizer, model = load_both(settings.stage1, settings.stage2, chosen_device(settings.device), settings.ema)
    draw = settings.draw
    cond_B = classes_of(draw.class_name, draw.num, model, in_turn=True)
    rules = sampling_settings(model, **draw.rules)
    with new_folder(settings.out) as folder:
        parts, images = [], []
        for start in range(0, draw.num, BATCH):
            index_B = torch.arange(start, min(draw.num, start + BATCH))
            part = None if cond_B is None else cond_B[index_B]
            parts.append(draw_codes(model, tokenizer, part, indices=index_B, seed=draw.seed, **rules))
            images += [image for batch in decode_in_batches(tokenizer, parts[-1]) for image in batch.cpu()]
        for number, image_CHW in enumerate(images):
            save_picture(image_CHW, folder / f"{number:05}.png")
        save_sheet(images[:64], folder / "samples.png", COLUMNS)
        save_file({"codes": torch.cat(parts).cpu()}, folder / "codes.safetensors")
    return f"{draw.num} images to {settings.out}"


def inpaint(settings: InpaintSettings) -> str:
    """Draws a part of an image again: `fill-0.png`, ..., `fills.png` (the image, what is kept of it, the fills), and
    `codes.safetensors`. Codes that are not drawn again stay as they are.
    """
    import_pillow()
    check_free(settings.out)
    tokenizer, model = load_both(settings.stage1, settings.stage2, chosen_device(settings.device), settings.ema)
    draw, sizes = settings.draw, tokenizer.config.ddconfig
    cond_B = classes_of(draw.class_name, draw.num, model, in_turn=False)
    picture = open_picture(settings.image, sizes.in_channels, background_of(settings.stage1))
    height, width, _ = model.config.block_size
    redrawn_hw = cells_to_draw(settings, picture.size, sizes.image_size, (height, width))
    image_BCHW = as_tensor(picture, sizes.image_size).unsqueeze(0).to(model.pos_emb_hw.device)
    with torch.no_grad():
        codes_BhwD = tokenizer.get_codes(image_BCHW).expand(draw.num, -1, -1, -1)
    rules = sampling_settings(model, **draw.rules)
    known = (~redrawn_hw, codes_BhwD)
    filled_BhwD = draw_codes(model, tokenizer, cond_B, known=known, seed=draw.seed, **rules)
    fills = [image for batch in decode_in_batches(tokenizer, filled_BhwD) for image in batch.cpu()]
    with new_folder(settings.out) as folder:
        for number, fill_CHW in enumerate(fills):
            save_picture(fill_CHW, folder / f"fill-{number}.png")
        image_CHW = image_BCHW[0].cpu()
        save_sheet([image_CHW, greyed(image_CHW, redrawn_hw), *fills], folder / "fills.png", 2 + len(fills))
        tensors = {"image": codes_BhwD[0], "fills": filled_BhwD, "redrawn": redrawn_hw}
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / "codes.safetensors")
    return f"{draw.num} fills of {int(redrawn_hw.sum())} of {redrawn_hw.numel()} cells to {settings.out}"


def cells_to_draw(
    settings: InpaintSettings, size: tuple[int, int], wanted: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Which cells (h, w) are drawn again; ValueError where that is none, or not within the grid."""
    height, width = grid
    if settings.mask is not None:
        redrawn_hw = white_cells(open_picture(settings.mask, channels=1, background="black"), size, wanted, grid)
        if not redrawn_hw.any():
            raise ValueError(f"{settings.mask} is white nowhere: nothing is to be drawn")
        return redrawn_hw
    rows = settings.keep_rows
    if rows is None or not 0 <= rows < height:
        raise ValueError(f"--keep-rows {rows} must be 0 to {height - 1}: the codes have {height} rows")
    return (torch.arange(height) >= rows).unsqueeze(1).expand(height, width)


def greyed(image_CHW: Tensor, redrawn_hw: Tensor) -> Tensor:
    """The image with the cells that are drawn again in grey."""
    size = image_CHW.shape[-2:]
    redrawn_HW = F.interpolate(redrawn_hw[None, None].float(), size=size, mode="nearest")[0, 0] > 0
    return image_CHW.masked_fill(redrawn_HW, 0.0)
