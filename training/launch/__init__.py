"""From a command line to a running stage."""

from training.launch.flags import LaunchSettings, training_parser
from training.launch.launching import launch
from training.launch.session import Session

__all__ = ["LaunchSettings", "Session", "launch", "training_parser"]
