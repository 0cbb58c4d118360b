"""What a run says: console and `train.log`, `metrics.jsonl`, loggers, image files and the progress bar."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from runtime.atomic import write_whole
from runtime.errors import PrintableFormatter, UserError, one_line, printable_traceback
from runtime.progress import Progress, TqdmStream, duration
from runtime.records.events_file import EVENTS_FILE, write_event
from runtime.records.loggers import LOGGERS, TITLES, Logger
from runtime.records.metrics_file import METRICS_FILE, MetricsFile, truncate_metrics

Handler = TypeVar("Handler", bound=logging.Handler)
LOGGER_NAME = "rq"
LOG_FILE = "train.log"
_FORMAT = "%(asctime)s %(levelname).1s %(message)s"
_COLUMNS, _PREFIX = 100, len("12:34:56 I ")  # of a line with a headline on the console
Headline = Callable[[Mapping[str, Any], Mapping[str, Any], int], str]


class RunLog:
    """Everything a run reports. Rank 0 writes files; the other ranks only print warnings to stderr.

    Once it is open, nothing that goes wrong here ends the run: a logger, a full disk, a closed terminal cost one
    warning each and what could not be written.

    Args:
        run_dir: the run directory; None keeps everything on the console.
        is_main: whether this process is rank 0.
        resume_step: continue a run whose checkpoint was taken after this many steps: what was logged for later steps
            is removed, so that no step appears twice.
        loggers: names out of `LOGGERS`; each gets all numbers and pictures.
        rank: shown in the warnings of ranks other than 0.
        headline: `(metrics, timing, room) -> text`: what is said of metrics in so many columns; None says all of them.
    """

    def __init__(
        self,
        run_dir: str | Path | None,
        is_main: bool = True,
        *,
        resume_step: int | None = None,
        loggers: Sequence[str] = ("tensorboard",),
        rank: int = 0,
        headline: Headline | None = None,
    ) -> None:
        self.run_dir = Path(run_dir) if run_dir is not None and is_main else None
        self.is_main = is_main
        self._metrics: MetricsFile | None = None
        self._loggers: dict[str, Logger] = {}
        self._progress: Progress | None = None
        self._told: set[str] = set()
        self._headline = headline
        self._logger = self._build_logger(rank)
        if self.run_dir is not None:
            path = self.run_dir / METRICS_FILE
            if resume_step is not None and path.exists() and (note := truncate_metrics(path, resume_step)):
                self.warning(note)
            self._metrics = MetricsFile(path)
            for name in loggers:
                with self._harmless(TITLES[name], Exception):
                    self._loggers[name] = LOGGERS[name](self.run_dir, resume_step)

    def info(self, message: str) -> None:
        """A line on the console and in `train.log`, from rank 0 alone."""
        if self.is_main:
            self._logger.info(message)

    def warning(self, message: str, event: str = "") -> None:
        """A line from any rank; one that names an event is noted as such by rank 0."""
        self._logger.warning(message)
        if event:
            self.event(event, message)

    def event(self, kind: str, text: str, step: int | None = None) -> None:
        """Notes something that happened at a moment, with its time: a line of `events.jsonl`, from rank 0 alone.

        Args:
            kind: a word or two: `resume`, `spike`, ...
            text: what a person should know.
            step: when; None takes the step that the run has reached.
        """
        if self.run_dir is None:
            return
        if step is None:
            step = 0 if self._progress is None else self._progress.step
        with self._harmless(EVENTS_FILE, OSError):
            write_event(self.run_dir, kind, text, step)

    def log_metrics(
        self,
        step: int,
        metrics: Mapping[str, Any],
        prefix: str = "",
        *,
        epoch: float | None = None,
        timing: Mapping[str, float] | None = None,
    ) -> None:
        """Record named numbers after `step` steps.

        Args:
            metrics: numbers, or tensors with one element or one per depth (then `name/0`, `name/1`, ... on
                TensorBoard and a list in the file). Tensors are read here, so call this only when logging is due.
            prefix: put before every name: `train` makes `train/loss`.
            epoch: passes over the data so far, where that means something.
            timing: numbers that two equal runs need not share (images/s, waiting): kept apart, under `timing`.
        """
        if not self.is_main:
            return
        values = {f"{prefix}/{name}" if prefix else name: _plain(value) for name, value in metrics.items()}
        times = {name: _plain(value) for name, value in (timing or {}).items()}
        self._write_metrics(step, values, epoch, times)
        spread = _flat(values) + [(f"timing/{name}", number) for name, number in _flat(times)]
        self._send(lambda logger: logger.scalars(step, spread))
        shown = {name.removeprefix(f"{prefix}/"): value for name, value in values.items()}
        self._logger.info(self._line(step, prefix or "metrics", shown, times))

    def log_images(self, name: str, grid_CHW: Tensor, step: int) -> Path | None:
        """Save one uint8 image (1 or 3 channels), usually a grid, to `samples/` and TensorBoard; returns its file."""
        assert grid_CHW.dtype == torch.uint8, "images are logged as uint8: convert with evaluation.protocol.to_uint8"
        if self.run_dir is None:
            return None
        image_CHW = grid_CHW.detach().cpu()
        path = self.run_dir / "samples" / f"{name.replace('/', '_')}_{step:08d}.png"
        image_HWC = image_CHW.expand(3, -1, -1).permute(1, 2, 0).contiguous()
        with self._harmless("samples", OSError, UserError):
            path.parent.mkdir(exist_ok=True)
            encoded = io.BytesIO()
            Image.fromarray(image_HWC.numpy()).save(encoded, "PNG")
            write_whole(path, encoded.getvalue())
        self._send(lambda logger: logger.image(step, name, image_CHW))
        return path if path.is_file() else None

    def progress(self, total: int, initial: int = 0, images_per_step: int = 1, name: str = "train") -> Progress:
        """A progress bar with ETA and images/s: a bar on a terminal, the time left in the metric lines everywhere."""
        self._progress = Progress(total, initial, images_per_step, name, visible=self.is_main)
        return self._progress

    def close(self) -> None:
        for handler in list(self._logger.handlers):
            self._logger.removeHandler(handler)
            handler.close()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        for logger in self._loggers.values():
            with suppress(Exception):
                logger.close()
        self._loggers = {}

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is not None and self.run_dir is not None and not isinstance(error, SystemExit):
            self.event("error", one_line(error))
            # the error itself may be a full disk; it must not be hidden behind one of this file
            with suppress(OSError), open(self.run_dir / LOG_FILE, "a", encoding="utf-8") as file:
                file.write(printable_traceback(error))
        self.close()

    def _build_logger(self, rank: int) -> logging.Logger:
        logger = logging.Logger(LOGGER_NAME, logging.INFO if self.is_main else logging.WARNING)
        console = _quietly_failing(logging.StreamHandler(TqdmStream(sys.stderr)))
        console.setFormatter(PrintableFormatter(_FORMAT if self.is_main else f"[rank {rank}] {_FORMAT}", "%H:%M:%S"))
        logger.addHandler(console)
        if self.run_dir is not None:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            file = _quietly_failing(logging.FileHandler(self.run_dir / LOG_FILE, encoding="utf-8"))
            file.setFormatter(PrintableFormatter(_FORMAT))
            logger.addHandler(file)
        return logger

    def _write_metrics(self, step: int, values: dict[str, Any], epoch: float | None, times: dict[str, Any]) -> None:
        if self._metrics is None:
            return
        line = {"step": step, **({} if epoch is None else {"epoch": epoch}), **values}
        if times:
            line["timing"] = times
        with self._harmless(METRICS_FILE, OSError):
            self._metrics.write(_finite_or_none(line))

    @contextmanager
    def _harmless(self, what: str, *errors: type[Exception]) -> Iterator[None]:
        """Turns errors into a warning, the first time."""
        try:
            yield
        except errors as error:
            if what not in self._told:
                self._told.add(what)
                self.warning(f"cannot write {what}: {one_line(error)[:200]}; the run goes on without")

    def _send(self, send: Callable[[Logger], None]) -> None:
        """Gives something to every logger; one that fails is given up."""
        for name in list(self._loggers):
            logger = self._loggers.pop(name)
            with self._harmless(TITLES[name], Exception):
                send(logger)
                self._loggers[name] = logger

    def _line(self, step: int, name: str, shown: Mapping[str, Any], times: Mapping[str, Any]) -> str:
        progress = self._progress
        if self._headline is not None:
            where = f"{name} {step}" if progress is None else f"{name} {step}/{progress.total}"
            left = f"  eta {duration(progress.eta_seconds)}" if progress is not None and progress.eta_seconds else ""
            return f"{where}{left}  {self._headline(shown, times, _COLUMNS - _PREFIX - len(where + left) - 2)}"
        position = f"step {step}"
        if progress is not None:
            position = f"step {step}/{progress.total} ({timedelta(seconds=round(progress.eta_seconds))} left)"
        text = "  ".join(f"{name} {_short(value)}" for name, value in {**shown, **times}.items())
        return f"{name} {position}: {text}"


def _quietly_failing(handler: Handler) -> Handler:
    """A log handler that says nothing of lines it could not write: a full disk, a terminal that is gone."""
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # logging's own hook
    return handler


def _plain(value: Any) -> Any:
    """A Python number, string or (nested) list of a tensor, array or number."""
    if isinstance(value, Tensor):
        value = value.detach().float().tolist() if value.is_floating_point() else value.detach().tolist()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _finite_or_none(value: Any) -> Any:
    """JSON has no nan and no inf: they become null."""
    if isinstance(value, list):
        return [_finite_or_none(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite_or_none(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The numbers of a mapping, lists spread over numbered names, texts left out."""
    numbers: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, list):
            numbers.extend(_flat({f"{name}/{index}": item for index, item in enumerate(value)}))
        elif isinstance(value, (bool, int, float)):
            numbers.append((name, float(value)))
    return numbers


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join(_short(item) for item in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
