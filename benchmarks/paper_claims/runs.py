"""One run of the benchmark: what decides its numbers, and the name under which they are kept.

A run is a training of stage 1 or stage 2, a further set of samples of a trained model, or a measurement of speed. It
says all that decides its numbers; its key is a hash of that, of the keys of the runs it needs and of the code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.paper_claims.sizes import Size

KINDS = ("stage1", "stage2", "samples", "speed")


@dataclass(frozen=True)
class Run:
    """What is run.

    Attributes:
        kind: one of `KINDS`.
        label: what differs from the others, for people.
        size: what is common to all.
        seed: of the run.
        changes: `key=value` words over the YAML file.
        settings: how the result is measured or sampled.
        needs: the runs whose models it takes.
    """

    kind: str
    label: str
    size: Size
    seed: int
    changes: tuple[str, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    needs: tuple[Run, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """All that decides the numbers but the code."""
        config = {"stage1": self.size.stage1, "stage2": self.size.stage2}.get(self.kind)
        return {
            "kind": self.kind,
            "seed": self.seed,
            "config": None if config is None else _read(config),
            "changes": list(self.changes),
            "settings": dict(self.settings),
            "needs": [run.facts() for run in self.needs],
        }

    def key(self, code: str) -> str:
        """Name of the result with this version of the code."""
        return hashlib.sha256(json.dumps([self.facts(), code], sort_keys=True).encode()).hexdigest()[:20]

    def __str__(self) -> str:
        return f"{self.kind} {self.label}, seed {self.seed}"


@cache
def _read(path: str) -> Any:
    """A YAML file as values: comments and layout do not count."""
    return OmegaConf.to_container(OmegaConf.create(Path(path).read_text(encoding="utf-8")))


def stage1_run(
    size: Size,
    seed: int,
    label: str,
    *changes: str,
    depth: int = 4,
    num_codes: int | None = None,
    fine: bool = False,
    batch_size: int | None = None,
) -> Run:
    """Training of an RQ-VAE.

    Args:
        depth, num_codes: D, and K (None: that of the size).
        fine: codes on an 8x8 grid instead of 4x4.
        batch_size: another one, on the same number of images.
    """
    side, batch = 8 if fine else 4, batch_size or size.batch_size
    steps = size.images1 // batch
    words = (
        *size.stage1_changes,
        f"arch.ddconfig.ch_mult={size.fine if fine else size.coarse}",
        f"arch.hparams.n_embed={num_codes or size.num_codes}",
        f"arch.hparams.latent_shape=[{side},{side},32]",
        f"arch.hparams.code_shape=[{side},{side},{depth}]",
        *changes,
        *_lengths(size, steps, batch),
    )
    return Run("stage1", label, size, seed, words, (("scored", size.scored),))


def stage2_run(stage1: Run, label: str, *changes: str) -> Run:
    """Training of an RQ-Transformer on the codes of a run of stage 1, with that run's seed."""
    size = stage1.size
    words = (*size.stage2_changes, *changes, *_lengths(size, size.images2 // size.batch_size, size.batch_size))
    return Run("stage2", label, size, stage1.seed, words, (("scored", size.scored),), (stage1,))


def samples_run(stage2: Run, label: str, **settings: float) -> Run:
    """Samples of a trained model, drawn otherwise: `cfg_scale` or `reject_keep`."""
    return Run(
        "samples",
        label,
        stage2.size,
        stage2.seed,
        settings=(("scored", stage2.size.scored), *settings.items()),
        needs=(stage2,),
    )


def _lengths(size: Size, steps: int, batch_size: int) -> tuple[str, ...]:
    return (
        f"experiment.batch_size={batch_size}",
        f"experiment.max_steps={steps}",
        f"experiment.test_steps={steps}",
        f"experiment.save_steps={steps}",
        f"experiment.log_steps={max(1, steps // 8)}",
        f"experiment.test_images={size.test_images}",
    )
