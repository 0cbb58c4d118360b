"""Compiles the C++ beside this file for the processor it runs on, once per machine and version.

Nothing needs it: without a compiler, or with RQTRANSFORMER_NATIVE=0, the same arithmetic runs as torch's kernels. What
is compiled is loaded into this process, so it is taken from nowhere but a folder that nobody else can write, and only
as it was when it was made: a manifest, written last, names the file and holds its hash.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from rqtransformer.native.compiler import CompilerFailed, find_compiler, run_until
from rqtransformer.native.private_folder import is_private_file, make_private, why_not_private

SWITCH = "RQTRANSFORMER_NATIVE"
SOURCES = ("step.cpp", "draw.cpp", "position.cpp", "digest.cpp", "between_products.cpp")
SYMBOLS = (
    *("rq_attend_close", "rq_attend_close_slopes", "rq_block", "rq_cross_entropy_rows", "rq_digest", "rq_draw"),
    *("rq_drop", "rq_linear", "rq_position", "rq_step"),
)
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
BUILD_SECONDS = 120.0  # all that the compiler may take
RETRY_SECONDS = 24 * 3600.0  # before a compiler that failed is asked again
_UNFINISHED = "unfinished-"
# run in a process of its own: half a library can end the process that loads it
_CHECK = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); [getattr(library, name) for name in sys.argv[2:]]"


@functools.cache
def library_path() -> Path | None:
    """The compiled library, built now if this is the first time; None where that is not possible or not wanted.

    Where it should be possible and is not, one warning says why.
    """
    if os.name != "posix" or os.environ.get(SWITCH, "1") == "0":
        return None
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        return build(compiler, cache_folder())
    except (OSError, RuntimeError) as error:  # the latter: this user has no home
        warnings.warn(
            f"decoding and training on a CPU run without compiled code, slower: {one_line(error)} "
            f"({SWITCH}=0 says that none is wanted)",
            stacklevel=2,
        )
        return None


def cache_folder() -> Path:
    """Where compiled libraries are kept, of this user only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rqtransformer"


def build(compiler: str, folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """The library for this processor, compiler and source, in `folder`.

    The compiler may take `BUILD_SECONDS`. Where it fails or takes longer, that is noted, and it is not asked again for
    `RETRY_SECONDS`, unless it or the source changes.

    Raises:
        OSError: if it cannot be compiled or written, or others may write the folder.
    """
    make_private(folder)
    folder = folder.resolve()
    if (reason := why_not_private(folder)) is not None:
        raise OSError(f"{reason}: nothing is loaded from there; chmod go-w, or set XDG_CACHE_HOME")
    note = folder / f"failed-{_failure_key(compiler, flags)}.json"
    _check_not_failed(note)
    deadline = time.monotonic() + BUILD_SECONDS
    try:
        return _found_or_built(compiler, folder, flags, deadline)
    except CompilerFailed as error:
        with contextlib.suppress(OSError):
            _write(note, {"reason": one_line(error), "time": time.time()})
        raise


def one_line(error: BaseException) -> str:
    """What an error says, short and without control characters."""
    words = " ".join(str(error).split())
    return "".join(character if character.isprintable() else "?" for character in words)[:300]


def _found_or_built(compiler: str, folder: Path, flags: tuple[str, ...], deadline: float) -> Path:
    fingerprint = _fingerprint(compiler, flags, deadline)
    manifest = folder / f"native-{fingerprint}.json"
    found = _described(manifest)
    if found is not None:
        return found
    _sweep(folder)
    unfinished = folder / f"{_UNFINISHED}{secrets.token_hex(8)}.so"
    try:
        run_until(deadline, [compiler, *flags, *map(str, _sources()), "-o", str(unfinished)])
        unfinished.chmod(0o700)
        run_until(deadline, [sys.executable, "-I", "-S", "-c", _CHECK, str(unfinished), *SYMBOLS])
        sha256 = hashlib.sha256(unfinished.read_bytes()).hexdigest()
        # whoever else builds it may have other bytes, so these have a name of their own
        library = folder / f"native-{fingerprint}-{sha256[:16]}.so"
        os.replace(unfinished, library)
    finally:
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
    _write(manifest, {"library": library.name, "sha256": sha256})
    return library


def _described(manifest: Path) -> Path | None:
    """The library that a manifest speaks of; None when it, or what it speaks of, is not as it was written."""
    described = _read(manifest)
    name, sha256 = described.get("library"), described.get("sha256")
    if not isinstance(name, str) or Path(name).name != name:
        return None
    library = manifest.with_name(name)
    if not is_private_file(library) or hashlib.sha256(library.read_bytes()).hexdigest() != sha256:
        return None
    return library


def _check_not_failed(note: Path) -> None:
    failed = _read(note)
    then = failed.get("time")
    if isinstance(then, (int, float)) and 0 <= time.time() - then < RETRY_SECONDS:
        raise OSError(f"{failed.get('reason')}; it is asked again after a day, or when {note} is removed")


def _read(file: Path) -> dict[str, Any]:
    """What is in a small JSON file of ours; empty when there is none, or anything else in it."""
    if not is_private_file(file):
        return {}
    try:
        with open(file, "rb") as stream:
            found = json.loads(stream.read(1 << 16))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    """Complete or not at all."""
    partial = file.with_name(f"{_UNFINISHED}{secrets.token_hex(8)}.json")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            json.dump(content, stream)
        os.replace(partial, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed have left."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 2 * BUILD_SECONDS:
                path.unlink()


def _sources() -> list[Path]:
    return [Path(__file__).with_name(name) for name in SOURCES]


def _digest_of_sources(*more: object) -> Any:
    digest = hashlib.sha256(repr(more).encode())
    here = Path(__file__).parent
    for path in sorted((*here.glob("*.cpp"), *here.glob("*.h"))):
        digest.update(path.read_bytes())
    return digest


def _fingerprint(compiler: str, flags: tuple[str, ...], deadline: float) -> str:
    """Changes with the source, the compiler, and what the compiler knows of this processor."""
    digest = _digest_of_sources(compiler, flags, SYMBOLS)
    digest.update(run_until(deadline, [compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull], subprocess.DEVNULL))
    return digest.hexdigest()[:20]


def _failure_key(compiler: str, flags: tuple[str, ...]) -> str:
    """The same without asking the compiler anything."""
    file = os.stat(compiler)
    return _digest_of_sources(compiler, flags, file.st_size, file.st_mtime_ns).hexdigest()[:20]
