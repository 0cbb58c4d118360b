"""Runs a training script: how every kind of end looks to the one who started it."""

from __future__ import annotations

import errno

from data.errors import DataError
from runtime.cli import exit_in_order
from runtime.errors import UserError, exit_on_user_error, one_line
from training.launch.flags import LaunchSettings
from training.launch.session import BuildStage, Session
from training.stage import Config

SETUP_ERRORS = (ValueError, OSError)
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


def launch(schema: type[Config], build_stage: BuildStage[Config], settings: LaunchSettings) -> None:
    """Runs one training script.

    Args:
        schema: dataclass of the YAML file.
        build_stage: the stage's class, called with config, plan and env.
        settings: what the command line says.
    """
    with exit_in_order(DataError):
        try:
            # in a function of its own, because the process group must outlive everything that refers to it
            _run(schema, build_stage, settings)
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(f"{one_line(error)}; the last checkpoint is kept") from error


def _run(schema: type[Config], build_stage: BuildStage[Config], settings: LaunchSettings) -> None:
    with exit_on_user_error(*SETUP_ERRORS):
        session = Session(schema, build_stage, settings)
    with session:
        session.evaluate() if settings.evaluate else session.train()
