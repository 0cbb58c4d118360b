"""Runs a training script: how every kind of end looks to the one who started it."""

from __future__ import annotations

import errno
import os

from data.errors import DataError
from runtime.cli import exit_in_order
from runtime.config import config_to_yaml
from runtime.errors import UserError, exit_on_user_error, one_line, say
from training.launch.continuation import with_run_to_continue
from training.launch.flags import LaunchSettings
from training.launch.run_config import load_run_config, with_channels_of_stage1, with_resolution_of_stage1
from training.launch.session import BuildStage, Session
from training.launch.starting_points import run_dir_of, run_to_resume
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
        if settings.print_config:
            print_config(schema, settings)
            return
        session = Session(schema, build_stage, settings)
        if settings.dry_run:
            for line in session.look():
                if session.env.is_main:
                    say(line)
            return
    with session:
        session.evaluate() if settings.evaluate else session.train()


def print_config(schema: type[Config], settings: LaunchSettings) -> None:
    """The whole config of a run as YAML, which `-m` takes: defaults, file, words, flags, and what stage 1 says.

    No data set is looked at: what only that knows stays null.
    """
    settings.check()
    settings = with_run_to_continue(settings)
    run_dir = run_dir_of(run_to_resume(settings)) if settings.resume else None
    config = with_resolution_of_stage1(load_run_config(schema, settings, run_dir))
    config = with_channels_of_stage1(config).completed()
    if os.environ.get("RANK", "0") == "0":
        for line in config_to_yaml(config).splitlines():
            say(line)
