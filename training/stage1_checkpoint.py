"""The stage-1 checkpoint that a run of stage 2 stands on."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from sampling.trained_models import resolve_checkpoint


def stage1_checkpoint(named: str | None) -> Path:
    """The snapshot or published file that `vqvae.ckpt` stands for: of a run the newest, because the run goes on.

    Raises:
        UserError: none is named, or nothing of the kind is there.
    """
    if not named:
        raise UserError("no stage-1 checkpoint: give -v/--vqvae PATH or vqvae.ckpt")
    try:
        return resolve_checkpoint(named)
    except UserError as error:
        raise UserError(f"{error} (vqvae.ckpt); -v/--vqvae PATH says where stage 1 lies") from None
