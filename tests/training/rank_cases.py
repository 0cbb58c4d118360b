"""Training runs of several ranks: what each of them ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tests.training.tiny_runs import only_run, train, train_until
from training.checkpoints.state_tree import encode


@dataclass(frozen=True)
class RankCase:
    """One run: its flags, and the step before which it dies to be resumed."""

    name: str
    stage: str
    flags: tuple[str, ...]
    stop: int | None = None


def train_cases(rank: int, cases: list[RankCase], out: str) -> dict[str, dict[str, Tensor]]:
    """Trains every case as one of several ranks. Case -> the tensors of this rank's own objects.

    The usual run directory is under `out/<case>/runs`.
    """
    return {case.name: _train_case(case, Path(out) / case.name / "runs") for case in cases}


def _train_case(case: RankCase, results: Path) -> dict[str, Tensor]:
    flags = [*case.flags, "-r", str(results)]
    if case.stop is not None:
        train_until(case.stop, case.stage, *flags)
        flags = ["--resume", "-l", str(only_run(results))]
    run = train(case.stage, *flags)
    states = {name: encode(item.state_dict())[1] for name, item in run.stage.objects().items()}
    return {f"{name}/{key}": tensor.clone() for name, part in states.items() for key, tensor in part.items()}
