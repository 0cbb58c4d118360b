"""Tests that hold the libraries against the experiments are left out where only the wheel's own needs are there."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("hydra") else ["test_printable.py", "commands/test_console.py"]
