"""From a command line to a running stage."""

from typing import TYPE_CHECKING

from training.launch.flags import LaunchSettings, training_parser

if TYPE_CHECKING:
    from training.launch.launching import launch
    from training.launch.session import Session
else:
    from rqstack.late_imports import late_names

    __getattr__ = late_names(
        __name__, {"training.launch.launching": ("launch",), "training.launch.session": ("Session",)}
    )

__all__ = ["LaunchSettings", "Session", "launch", "training_parser"]
