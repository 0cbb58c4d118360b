"""Where numbers and pictures of a run go besides its files: TensorBoard, trackio, Weights & Biases. One table of them.

Each is opened with the first number and given up with the first error: a run never ends because of one.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

Scalars = Sequence[tuple[str, float]]


class Logger(Protocol):
    """What takes numbers and pictures."""

    def scalars(self, step: int, numbers: Scalars) -> None:
        """Named numbers after `step` steps."""

    def image(self, step: int, name: str, image_CHW: Tensor) -> None:
        """A uint8 picture on the CPU."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Events in `tensorboard/` of the run directory.

    Args:
        run_dir: the run.
        resume_step: what was logged after it is not shown any more.
    """

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        # Imported here because it takes longer than everything else together and other ranks do not need it.
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if resume_step is None else resume_step + 1
        self._writer: SummaryWriter = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge_step)

    def scalars(self, step: int, numbers: Scalars) -> None:
        for name, number in numbers:
            self._writer.add_scalar(name, number, step)

    def image(self, step: int, name: str, image_CHW: Tensor) -> None:
        self._writer.add_image(name, image_CHW, step)

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """A library with the interface of Weights & Biases, which trackio shares.

    The project is the config's name, the run the time of its start; a resumed run goes on in the same one. Whether
    something leaves the machine is for the library's own settings to say: `WANDB_MODE=offline`; trackio keeps all here.

    Args:
        module: name of the library.
        run_dir: the run.
        options: what only this library's `init` takes.
    """

    def __init__(self, module: str, run_dir: Path, options: Mapping[str, Any]) -> None:
        self._library = importlib.import_module(module)
        self._run = self._library.init(project=run_dir.parent.name, name=run_dir.name, resume="allow", **options)

    def scalars(self, step: int, numbers: Scalars) -> None:
        self._run.log(dict(numbers), step=step)

    def image(self, step: int, name: str, image_CHW: Tensor) -> None:
        image_HWC = image_CHW.permute(1, 2, 0).contiguous().numpy()
        self._run.log({name: self._library.Image(image_HWC)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _open_wandb(run_dir: Path, resume_step: int | None) -> Tracker:
    # the id is what a resumed run is found by; a directory is one run, wherever else one of its name lies
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    return Tracker("wandb", run_dir, {"dir": str(run_dir), "id": identity})


def _open_trackio(run_dir: Path, resume_step: int | None) -> Tracker:
    return Tracker("trackio", run_dir, {"embed": False})


LOGGERS: dict[str, Callable[[Path, int | None], Logger]] = {
    "tensorboard": TensorBoard,
    "trackio": _open_trackio,
    "wandb": _open_wandb,
}
TITLES = {"tensorboard": "TensorBoard", "trackio": "trackio", "wandb": "Weights & Biases"}
