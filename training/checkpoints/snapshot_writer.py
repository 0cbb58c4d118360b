"""Snapshots of a run: those of its steps, and the best one by its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rqstack.finite import non_finite_names
from runtime import distributed
from runtime.atomic import is_complete, remove_directory
from runtime.errors import UserError
from runtime.step_directories import BEST, step_name
from sampling.trained_models import read_metadata
from training.checkpoints.snapshots import save_snapshot
from training.stage import SnapshotWeights


@dataclass(frozen=True)
class SnapshotWriter:
    """Writes snapshots from the main process; every rank calls its methods, with weights that only that one needs.

    Args:
        directory: the run's `snapshots`.
        config: the resolved config, which lies beside the weights.
        facts: what the metadata of all snapshots say: stage, seed.
        files: file name -> text of what else belongs to the model.
        keep_last: how many snapshots of steps stay; None keeps all.
    """

    directory: Path
    config: Any
    facts: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    keep_last: int | None = None

    def check(self, weights: SnapshotWeights, step: int) -> None:
        """Before a step is saved, as a checkpoint or as a snapshot.

        Raises:
            UserError: on every rank, naming the weights that are not finite.
        """
        raw, averaged = weights

        def look() -> None:
            for kind, tensors in (("weights", raw), ("averaged weights", averaged or {})):
                if names := non_finite_names(tensors.items()):
                    raise UserError(
                        f"the {kind} after step {step} are not finite: {names}; nothing of this step is saved, the "
                        "last checkpoint and snapshot are kept"
                    )

        distributed.run_on_main(look)

    def save(self, weights: SnapshotWeights, progress: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Writes the snapshot of a step, whose weights were given to `check`.

        Args:
            weights: of the main process; those of the others are not looked at.
            progress: where the run stands; its `step` names the snapshot.
            metrics: what was measured at this step.
        """
        metadata = {**progress, **self.facts, "metrics": dict(metrics)}
        self._write(step_name(progress["step"]), weights, metadata, self.keep_last)

    def save_best(
        self,
        weights: SnapshotWeights,
        progress: Mapping[str, Any],
        metrics: Mapping[str, Any],
        reason: Mapping[str, Any],
    ) -> None:
        """Writes `best` in the place of the one before; `reason` is what `best_reason` will give."""
        self.check(weights, progress["step"])
        metadata = {**progress, **self.facts, "metrics": dict(metrics), BEST: dict(reason)}
        self._write(BEST, weights, metadata, None)

    def best_reason(self) -> dict[str, Any]:
        """Why the best snapshot is the best; empty when there is none."""
        best = self.directory / BEST
        return read_metadata(best).get(BEST, {}) if is_complete(best) else {}

    def _write(
        self,
        name: str,
        weights: SnapshotWeights,
        metadata: Mapping[str, Any],
        keep_last: int | None,
    ) -> None:
        raw, averaged = weights

        def write() -> None:
            path = self.directory / name
            save_snapshot(path, raw, self.config, metadata, averaged, keep_last=keep_last, extra_files=self.files)

        distributed.run_on_main(write)


def discard_best_after(snapshots: Path, step: int) -> None:
    """Removes a best snapshot of a later step than the one a run resumes at: that trajectory is given up.

    The steps that are repeated find it again, because nothing before it was better.
    """
    best = snapshots / BEST
    if is_complete(best) and read_metadata(best)["step"] > step:
        remove_directory(best)
