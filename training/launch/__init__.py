"""From a command line to a running stage."""

from typing import TYPE_CHECKING, Any

from training.launch.flags import LaunchSettings, training_parser

if TYPE_CHECKING:
    from training.launch.launching import launch
    from training.launch.session import Session

__all__ = ["LaunchSettings", "Session", "launch", "training_parser"]


def __getattr__(name: str) -> Any:
    # with them comes torch, for which `--help` must not wait
    if name == "launch":
        from training.launch.launching import launch

        return launch
    if name == "Session":
        from training.launch.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
