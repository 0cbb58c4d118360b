"""Compiles the C++ beside this file for the processor it runs on, once per machine and version.

Nothing needs it: without a compiler, or with RQTRANSFORMER_NATIVE=0, the same arithmetic runs as torch's kernels.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

SWITCH = "RQTRANSFORMER_NATIVE"
SOURCES = ("step.cpp", "draw.cpp", "position.cpp", "digest.cpp")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
COMPILERS = ("c++", "g++", "clang++")
BUILD_SECONDS = 120


@functools.cache
def library_path() -> Path | None:
    """The compiled library, built now if this is the first time; None where that is not possible or not wanted."""
    if os.environ.get(SWITCH, "1") == "0" or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        return build(compiler, cache_folder())
    except (OSError, subprocess.SubprocessError):
        return None


def find_compiler() -> str | None:
    """$CXX, or the first C++ compiler on the path."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, (named,) if named else COMPILERS)), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept, of this user only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rqtransformer"


def build(compiler: str, folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """The library for this processor, compiler and source, in `folder`.

    Raises:
        OSError, subprocess.SubprocessError: if it cannot be compiled or written.
    """
    here = Path(__file__).parent
    target = folder / f"native-{_fingerprint(compiler, flags, here)}.so"
    if target.exists():
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [compiler, *flags, *(str(here / name) for name in SOURCES), "-o", unfinished]
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
        os.replace(unfinished, target)  # whole or not there, whoever else builds it
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    return target


def _fingerprint(compiler: str, flags: tuple[str, ...], here: Path) -> str:
    """Changes with the source, the compiler, and what the compiler knows of this processor."""
    macros = subprocess.run(
        [compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull], check=True, capture_output=True, timeout=BUILD_SECONDS
    ).stdout
    digest = hashlib.sha256(repr((compiler, flags)).encode() + macros)
    for path in sorted((*here.glob("*.cpp"), *here.glob("*.h"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]
