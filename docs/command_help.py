"""A directive that shows what a command says on `--help`, as its own parser writes it while the site is built.

```{command-help} python -m sampling.inpaint
```
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = "100"


def help_of(command: str) -> str:
    """The text of `COMMAND --help`; the command is run in this process and ends there.

    Raises:
        RuntimeError: where it does not end well or says nothing.
    """
    python, *words = shlex.split(command)
    if python != "python" or not words:
        raise RuntimeError(f"{command!r} is neither `python SCRIPT` nor `python -m MODULE`")
    said = io.StringIO()
    argv, columns = sys.argv, os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a module that was imported before is run again
            if words[0] == "-m":
                sys.argv = [words[1], *words[2:], "--help"]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [*words, "--help"]
                runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = argv
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    if not said.getvalue().strip():
        raise RuntimeError(f"{command} --help says nothing")
    # under `python -m` argparse knows the name of the file only
    return re.sub(r"^usage: \S+\.py", f"usage: {command}", said.getvalue().strip())


class CommandHelp(Directive):
    """See the module."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """The text as a block of code."""
        text = help_of(self.arguments[0])
        return [nodes.literal_block(text, text, language="none")]


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": False}
