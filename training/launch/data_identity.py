"""Whether a run is trained on the images that it was begun with, and validated on images that are new to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import ImageDataset
from data.fingerprint import Fingerprint, fingerprint, from_json
from data.shards.cached_latents import LatentDataset
from data.shards.shard_prints import as_json, is_changed, shard_prints, touched
from data.shards.shard_prints import from_json as shards_from_json
from rqstack.snapshots import METADATA_FILE
from runtime import distributed
from runtime.atomic import write_text_atomically
from runtime.errors import UserError, first_few
from sampling.trained_models import read_metadata
from training.launch.resuming import ResumedRun

SHARDS_FILE = "shards.json"
FACT = "data"  # under this name checkpoints and snapshots keep the fingerprint


@dataclass(frozen=True)
class DataIdentity:
    """The fingerprint of a run's two splits.

    Attributes:
        content: the fingerprint as checkpoints keep it.
        warnings: what was accepted, for the log.
    """

    train_set: ImageDataset
    val_set: ImageDataset
    content: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, train_set: ImageDataset, val_set: ImageDataset) -> DataIdentity:
        """The identity of two splits; every rank must call it."""
        content = distributed.run_on_main(lambda: fingerprint(train_set, val_set).as_json())
        return cls(train_set, val_set, content)

    def facts(self) -> dict[str, Any]:
        """For checkpoints and the metadata of snapshots."""
        return {FACT: dict(self.content)}

    def check_resumed(self, resumed: ResumedRun, accept: bool) -> None:
        """UserError when the images are not those that the run was trained on, unless that is accepted."""
        if problem := self._changed(from_json(resumed.progress.get(FACT))):
            problem = f"{resumed.checkpoint}: {problem}"
            self.warnings.append(_accepted(problem, accept, "dataset.accept_changed=true goes on with them"))

    def check_shards(self, run_dir: Path, accept: bool) -> None:
        """UserError when a shard was changed in place since the run began, unless that is accepted.

        Every rank must call it: they share the hashing of shards whose size or time is another one.
        """
        known = distributed.run_on_main(lambda: _read_shards(run_dir))
        rank, world_size = distributed.get_rank(), distributed.get_world_size()
        for split, dataset in self._splits.items():
            mine = touched(shards_from_json(known.get(split)), dataset)[rank::world_size]
            judged = distributed.gather_objects([[str(path), is_changed(before, path)] for before, path in mine])
            judged = [row for of_rank in judged for row in of_rank]
            if changed := [path for path, answer in judged if answer]:
                count = f"{len(changed)} shards have" if len(changed) > 1 else "it has"
                problem = f"{first_few(changed, 1)}: {count} other content than when the run began"
                self.warnings.append(_accepted(problem, accept, "dataset.accept_changed=true goes on with them"))
            if unknown := [path for path, answer in judged if answer is None]:
                count = f"{len(unknown)} shards were" if len(unknown) > 1 else "it was"
                line = f"{first_few(unknown, 1)}: {count} written to since the run began"
                self.warnings.append(f"{line}; without a manifest nobody knows whether the content is the same")

    def note_shards(self, run_dir: Path) -> None:
        """Writes what `check_shards` compares with, where there are shards. For the main process."""
        prints = {split: as_json(shard_prints(dataset)) for split, dataset in self._splits.items()}
        if any(prints.values()):
            write_text_atomically(run_dir / SHARDS_FILE, json.dumps(prints) + "\n")

    @property
    def _splits(self) -> dict[str, ImageDataset]:
        return {"train": self.train_set, "val": self.val_set}

    def check_unseen(self, config: Any, accept: bool) -> None:
        """`check_unseen` for a run of stage 2, whose config names the stage-1 snapshot."""
        if line := check_unseen(getattr(getattr(config, "vqvae", None), "ckpt", None), self.val_set, accept):
            self.warnings.append(line)

    def _changed(self, known: Fingerprint | None) -> str:
        if known is None:
            return "the run was begun when other validation images were held out" if self.train_set.held_out else ""
        current = from_json(self.content)
        assert current is not None
        if (known.train, known.val) == (current.train, current.val):
            return ""
        then, now = (f"{each.train.count}+{each.val.count}" for each in (known, current))
        share = distributed.run_on_main(lambda: known.share_trained_on(self.val_set))
        seen = f"; the run has seen {share:.0%} of its validation images of now" if share else ""
        return f"the images are not those of the run ({then} then, {now} now, or other names, sizes or labels){seen}"


def _read_shards(run_dir: Path) -> dict[str, Any]:
    """What `note_shards` wrote; empty where nothing was, or something else stands there."""
    try:
        content = json.loads((run_dir / SHARDS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_unseen(stage1: str | Path | None, val_set: ImageDataset, accept: bool) -> str:
    """A line about validation images that a stage-1 snapshot was trained on; empty where all are new to it.

    Cached latents were checked when they were extracted. Every rank must call it.

    Raises:
        UserError: there are some, and that is not accepted.
    """
    if stage1 is None or isinstance(val_set, LatentDataset) or not (Path(stage1) / METADATA_FILE).is_file():
        return ""
    known = from_json(read_metadata(stage1).get(FACT))
    if known is None:
        unknown = "stage 1 does not say what it was trained on: perhaps validation images too"
        return unknown if val_set.held_out else ""
    share = distributed.run_on_main(lambda: known.share_trained_on(val_set))
    if not share:
        return ""
    problem = f"stage 1 was trained on about {share:.0%} of the {len(val_set)} validation images of {val_set.name}"
    return _accepted(problem, accept, "give the dataset settings of stage 1, or dataset.accept_seen=true")


def _accepted(problem: str, accept: bool, remedy: str) -> str:
    if not accept:
        raise UserError(f"{problem}; {remedy}")
    return f"{problem} (accepted)"
