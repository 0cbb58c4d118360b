"""Run directories: `<result path>/<config stem>/<timestamp>/`, never reused and never overwritten.

Inside one: `config.yaml` (resolved), `train.log`, `metrics.jsonl`, `events.jsonl`, `tensorboard/`, `checkpoints/`,
`snapshots/`, `samples/`, `run.lock` and `owner.json` while it lives; each is created by the part that writes it.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from runtime.atomic import sweep
from runtime.errors import UserError, one_line

TIMESTAMP_FORMAT = "%Y-%m-%d_%H-%M-%S"


def new_run_dir(result_path: str | Path, config_stem: str, postfix: str = "") -> Path:
    """Create a fresh run directory and return it: the same one on every rank.

    Args:
        result_path: where all runs go (`-r`).
        config_stem: file name of the config without its ending.
        postfix: appended to the timestamp (`-p`), so that a run can be found again.
    """
    # late: the commands that only look for a run do not wait for torch
    from runtime.distributed import run_on_main

    return Path(run_on_main(lambda: str(_create(Path(result_path) / config_stem, postfix))))


def latest_run(result_path: str | Path, config_stem: str) -> Path | None:
    """The newest run of a config under `result_path`, or None."""
    return next(iter(runs(result_path, config_stem)), None)


def runs(result_path: str | Path, config_stem: str) -> list[Path]:
    """All runs of a config under `result_path`, newest first, whatever they hold.

    A run need not have a checkpoint (an evaluation, one that died early): whoever resumes takes the first that has.
    """
    parent = Path(result_path) / config_stem
    found = [entry for entry in parent.iterdir() if _is_run(entry)] if parent.is_dir() else []
    return sorted(found, key=_by_time, reverse=True)


def sweep_run(run_dir: Path) -> None:
    """Removes what killed processes left half written in a run directory. For its one writer."""
    for folder in (run_dir, *(entry for entry in run_dir.iterdir() if entry.is_dir())):
        sweep(folder, min_age_seconds=0.0)


def _create(parent: Path, postfix: str) -> Path:
    name = datetime.now().strftime(TIMESTAMP_FORMAT) + (f"_{postfix}" if postfix else "")
    if Path(name).name != name:
        raise UserError(f"postfix {postfix!r} cannot be part of a directory name")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        attempt = 1
        while True:
            path = parent / (name if attempt == 1 else f"{name}_{attempt}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                attempt += 1
    except OSError as error:
        raise UserError(f"cannot create a run directory in {parent}: {one_line(error)}") from error


def _by_time(run: Path) -> tuple[int | str, ...]:
    """Sorts by timestamp and, within one second, by number: `..._10` after `..._2`."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", run.name))


def _is_run(entry: Path) -> bool:
    try:
        datetime.strptime("_".join(entry.name.split("_")[:2]), TIMESTAMP_FORMAT)
    except ValueError:
        return False
    return entry.is_dir()
