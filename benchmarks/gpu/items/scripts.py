"""Entry scripts as processes of their own, started from an item that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import time

from benchmarks.gpu.running import ROOT


def run_script(name: str, *words: object, gpu: bool) -> float:
    """Runs `python NAME WORDS` to its end; seconds. RuntimeError if it does not end well.

    The process is forked before this one has touched CUDA, which saves the imports of a new one.
    """
    begun = time.monotonic()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(name, [str(word) for word in words], gpu))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{name} ended with exit code {process.exitcode}")
    return time.monotonic() - begun


def _run(name: str, words: list[str], gpu: bool) -> None:
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    sys.argv = [name, *words]
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / name), run_name="__main__")
