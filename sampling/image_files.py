"""Generated images on disk: PNG files, or one `.npz` that is filled in place by all ranks. Never a pickle.

Legend: B batch, C channels, H W image, N images.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from data.images.listing import UNFINISHED
from rqtransformer.finite_draws import NonFiniteError
from runtime import distributed
from runtime.atomic import write_whole
from runtime.errors import UserError, one_line
from runtime.npz import Header, write_npz
from runtime.processes.system import take_room
from sampling.choices import FORMATS

ROWS_AT_A_TIME = 64


def save_images(
    batches: Iterable[dict[str, Tensor]],
    directory: Path,
    file_format: str,
    num_images: int,
    resolution: tuple[int, int],
    channels: int = 3,
) -> Iterator[dict[str, Tensor]]:
    """Passes batches (`image` uint8, `index`, `label` where there are classes) through and writes them on the way.

    `png`: `images/<index>_class<label>.png`, without classes `images/<index>.png`. `npz`: `samples.npz` with `arr_0`,
    uint8 (N, H, W, C), and the classes `arr_1`, int64 (N,), which is what the ADM evaluator takes, and the classes once
    more as `labels`; without classes `arr_0` alone. N images are never in memory.

    Until all are there, `UNFINISHED` says how many they will be: readers refuse the folder. Where a batch cannot be
    made because numbers are not finite, what this process wrote before is taken away again.

    Raises:
        ValueError: unknown format.
        UserError: a file cannot be written; the message names it.
    """
    if file_format not in FORMATS:
        raise ValueError(f"--format {file_format!r} is unknown; choose one of {', '.join(FORMATS)}")
    mark = directory / UNFINISHED
    if distributed.is_main():
        write_whole(mark, f"{num_images:,}\n".encode())
    writer = PngFiles(directory) if file_format == "png" else NpzFile(directory, num_images, resolution, channels)
    try:
        for batch in batches:
            image_BHWC = batch["image"].permute(0, 2, 3, 1).cpu().numpy()
            label_B = batch["label"].cpu().numpy() if "label" in batch else None
            writer.write(image_BHWC, batch["index"].cpu().numpy(), label_B)
            yield batch
    except NonFiniteError:
        writer.discard()
        if distributed.get_world_size() == 1:  # otherwise those of other processes may be there
            mark.unlink(missing_ok=True)
        raise
    writer.close()
    if distributed.is_main():
        mark.unlink(missing_ok=True)


class PngFiles:
    """One PNG file for each image."""

    def __init__(self, directory: Path):
        self.directory = directory / "images"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._written: list[Path] = []

    def write(self, image_BHWC: np.ndarray, index_B: np.ndarray, label_B: np.ndarray | None) -> None:
        """Writes one batch."""
        classes = [""] * len(index_B) if label_B is None else [f"_class{label}" for label in label_B]
        for image_HWC, index, suffix in zip(image_BHWC, index_B, classes, strict=True):
            self._written.append(self.directory / f"{index:06d}{suffix}.png")
            encoded = io.BytesIO()
            Image.fromarray(image_HWC.squeeze(2) if image_HWC.shape[2] == 1 else image_HWC).save(encoded, "PNG")
            write_whole(self._written[-1], encoded.getvalue())

    def discard(self) -> None:
        """Takes away what this process wrote."""
        for file in self._written:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Waits until every rank has written its files."""
        distributed.barrier()


class NpzFile:
    """Two memory-mapped arrays on a shared disk, packed into one archive at the end."""

    labelled = False

    def __init__(self, directory: Path, num_images: int, resolution: tuple[int, int], channels: int = 3):
        self.directory = directory
        shapes = {"arr_0": ((num_images, *resolution, channels), np.uint8), "labels": ((num_images,), np.int64)}
        self.files = {name: directory / f".{name}.npy" for name in shapes}
        if distributed.is_main():
            for name, (shape, dtype) in shapes.items():
                np.lib.format.open_memmap(self.files[name], mode="w+", dtype=dtype, shape=shape)
        distributed.run_on_main(self._reserve)
        self.arrays = {name: np.lib.format.open_memmap(file, mode="r+") for name, file in self.files.items()}

    def _reserve(self) -> None:
        """Takes the room on the disk now: writing to a map on a full one would kill the process."""
        for file in self.files.values():
            size = file.stat().st_size
            try:
                with open(file, "r+b") as opened:
                    take_room(opened.fileno(), size)
            except OSError as error:
                self.discard()
                raise UserError(f"cannot write {file}: {one_line(error)}; it needs {size / 1e6:,.1f} MB") from error

    def write(self, image_BHWC: np.ndarray, index_B: np.ndarray, label_B: np.ndarray | None) -> None:
        """Puts one batch into its rows."""
        self.arrays["arr_0"][index_B] = image_BHWC
        if label_B is not None:
            self.arrays["labels"][index_B] = label_B
            self.labelled = True

    def discard(self) -> None:
        """Takes away the arrays."""
        for file in self.files.values():
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Packs the archive on the main process, streaming."""
        for array in self.arrays.values():
            array.flush()
        labelled = any(distributed.gather_objects(self.labelled))  # waits for all ranks
        if distributed.is_main():
            image_NHWC, label_N = self.arrays["arr_0"], np.asarray(self.arrays["labels"])
            rows = range(0, len(image_NHWC), ROWS_AT_A_TIME)
            blocks = (image_NHWC[start : start + ROWS_AT_A_TIME] for start in rows)
            labels = {"arr_1": label_N, "labels": label_N} if labelled else {}
            write_npz(
                self.directory / "samples.npz",
                {"arr_0": (Header(image_NHWC.shape, image_NHWC.dtype), blocks), **labels},
            )
            for file in self.files.values():
                file.unlink()
