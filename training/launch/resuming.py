"""A run that goes on where its checkpoint was taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.step_directories import CHECKPOINTS, SNAPSHOTS, discard_after
from training.checkpoints.checkpoint_restoring import read_progress, restore_checkpoint
from training.checkpoints.snapshot_writer import discard_best_after
from training.experiment import RunPosition
from training.stage import Stage


@dataclass(frozen=True)
class ResumedRun:
    """A checkpoint to go on from, and what it says about its run."""

    checkpoint: Path
    progress: Mapping[str, Any]

    @classmethod
    def at(cls, checkpoint: Path) -> ResumedRun:
        """Reads what a checkpoint says about its run."""
        return cls(checkpoint, read_progress(checkpoint))

    @property
    def run_dir(self) -> Path:
        """The directory that the run goes on writing to."""
        return self.checkpoint.parent.parent

    @property
    def position(self) -> RunPosition:
        """Where it stands."""
        return RunPosition(self.progress["step"], self.progress["images_seen"])

    @property
    def global_batch(self) -> int:
        """Images of one of its steps."""
        return self.progress.get("global_batch", self.progress["images_seen"] // self.progress["step"])

    @property
    def schedule_ranks(self) -> int | None:
        """The processes it was started with, where the checkpoint says so."""
        return self.progress.get("schedule_ranks")

    @property
    def flops_per_step(self) -> Mapping[str, int]:
        """What was counted of its steps."""
        return self.progress.get("flops_per_step", {})

    def restore(self, stage: Stage) -> None:
        """Puts everything back into a stage; all ranks call it.

        Raises:
            UserError: the checkpoint is of another stage, or of one that was trained on something else.
        """
        # its files were verified when it was found
        restore_checkpoint(self.checkpoint, stage.objects(), verify=False)
        for name, value in stage.provenance().items():
            known = self.progress.get(name)
            if known != value:
                raise UserError(f"{self.checkpoint}: this run was trained with {name} {known}, not {value}")

    def abandon_later_steps(self) -> None:
        """A run resumed from an earlier step writes another history: what lies after that step must not be found."""
        step = self.position.step
        for directory in (self.run_dir / CHECKPOINTS, self.run_dir / SNAPSHOTS):
            discard_after(directory, step)
        discard_best_after(self.run_dir / SNAPSHOTS, step)
