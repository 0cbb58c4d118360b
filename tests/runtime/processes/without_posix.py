"""Run as a program, with a folder: our modules see what Windows has, all others what this system has.

Every module of the product is imported, then a training run and a reconstruction are made in the folder. Prints one
JSON line: how many modules there were, those that another package was missing for, and what stands in place of what.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import runpy
import select
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
HIDDEN_MODULES = (
    *(
        "crypt",
        "fcntl",
        "grp",
        "nis",
        "posix",
        "pty",
        "pwd",
        "readline",
        "resource",
        "spwd",
        "syslog",
        "termios",
        "tty",
    ),
)
HIDDEN = {
    "os": (
        *("chown", "chroot", "ctermid", "fchdir", "fchmod", "fchown", "fork", "forkpty", "fpathconf", "fstatvfs"),
        *("getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getresuid"),
        *("getsid", "getuid", "killpg", "lchown", "lockf", "major", "minor", "mkfifo", "mknod", "nice", "openpty"),
        *("pathconf", "pipe2", "posix_fadvise", "posix_fallocate", "posix_spawn", "posix_spawnp", "pread", "preadv"),
        *("pwrite", "pwritev", "readv", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile"),
        *("setegid", "seteuid", "setgid", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sync", "sysconf"),
        *("tcgetpgrp", "ttyname", "uname", "wait", "wait3", "wait4", "waitid", "writev", "WNOHANG", "WIFEXITED"),
        *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
    ),
    "signal": (
        *("SIGALRM", "SIGBUS", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGIO", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP"),
        *("SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGUSR1", "SIGUSR2", "SIGWINCH", "alarm", "getitimer", "pause"),
        *("pthread_kill", "pthread_sigmask", "setitimer", "siginterrupt", "sigpending", "sigwait", "sigtimedwait"),
    ),
    "select": ("poll", "epoll", "kqueue", "devpoll"),
    "socket": ("AF_UNIX", "socketpair_unix", "sethostname", "if_nameindex_unix"),
    "faulthandler": ("register", "unregister"),
    "time": ("tzset", "clock_gettime", "clock_settime", "pthread_getcpuclockid"),
}
"""Names of the standard library that are there on POSIX systems alone, as its documentation says."""
INSTEAD = {("os", "name"): "nt", ("os", "supports_fd"): frozenset(), ("os", "O_BINARY"): 0}


class Windowed(ModuleType):
    """A module of the standard library without what Windows does not have."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["_module"]
        if (module.__name__, name) in INSTEAD:
            return INSTEAD[module.__name__, name]
        if name in HIDDEN[module.__name__]:
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} (hidden)")
        return getattr(module, name)


def hide(packages: tuple[str, ...]) -> None:
    """From now on, imports of these packages see a Windows."""
    given = builtins.__import__

    def imported(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        if level or importer.partition(".")[0] not in packages:
            return given(name, globals, locals, fromlist, level)
        if name in HIDDEN_MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)
        module = given(name, globals, locals, fromlist, level)
        return Windowed(module) if name in HIDDEN else module

    builtins.__import__ = imported


def main(folder: Path) -> dict[str, Any]:
    from tests.architecture import PRODUCT_FOLDERS

    hide((*PRODUCT_FOLDERS, "entry_script"))
    names = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PRODUCT_FOLDERS
        for file in sorted((ROOT / package).rglob("*.py"))
        if not file.name.endswith("_triton.py")  # for GPUs with Triton
    ]
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name in HIDDEN_MODULES or error.name.partition(".")[0] in PRODUCT_FOLDERS:
                raise
            missing.append(name)  # an extra that is not installed
    scripts = sorted(ROOT.glob("*.py"))
    for script in scripts:
        runpy.run_path(str(script), run_name="entry_script")
    from runtime.processes import system

    first_run(folder)
    return {
        "modules": len(names),
        "scripts": len(scripts),
        "missing": missing,
        "peak": system.peak_memory_bytes(),
        "limited": system.limit_this_process(1 << 30, 10),
        "signals": [number.name for number in system.STOP_SIGNALS],
        "alive": system.is_alive(os.getpid()),
        "pairs": [hasattr(os, "fork"), hasattr(select, "poll"), hasattr(signal, "SIGUSR1")],  # for all others
    }


def first_run(folder: Path) -> None:
    """Stage 1 for two steps, then images given back by its snapshot."""
    from tests.commands import run_here
    from tests.training.tiny_runs import stage1, write_config

    config = write_config(folder / "one.yaml", stage1({"experiment.max_steps": 2, "arch.ema": 0.9}))
    run_here("main_stage1.py", "-m", config, "-r", folder / "runs")
    run_here("main_stage1.py", "-m", config, "-r", folder / "runs", "--resume", "experiment.max_steps=3")
    (run,) = (folder / "runs" / "one").iterdir()
    (folder / "images").mkdir()
    from PIL import Image

    Image.new("RGB", (16, 16), (200, 30, 30)).save(folder / "images" / "red.png")
    run_here("sampling.reconstruct", folder / "images", folder / "given", "-v", run)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(main(Path(sys.argv[1]))))
