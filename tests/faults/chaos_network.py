"""Network namespaces for the ranks of a chaos run: each has one of its own, joined by a bridge whose ports can be cut.

All of it lies in namespaces of the chaos process itself, which `enter` makes: nothing outside sees them, and they end
with the last process in them.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

INSIDE = "RQ_CHAOS_INSIDE"  # set for the process that has entered
UNSHARE = ("unshare", "--mount", "--net", "--map-root-user")
_CLONE_NEWNET = 0x40000000
_PREPARE = "mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up && ip netns add probe"


def can_enter() -> bool:
    """Whether this system lets a process have networks and mounts of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    script = f"{_PREPARE} && ip link add port type veth peer name eth0 netns probe && ip link add br0 type bridge"
    return subprocess.run([*UNSHARE, "sh", "-c", script], capture_output=True).returncode == 0


def enter(module: str, words: list[str]) -> None:
    """Starts `python -m module words` again in namespaces of its own, in the place of this process."""
    command = f'{_PREPARE} && ip netns del probe && exec "$0" "$@"'
    os.environ[INSIDE] = "1"
    os.execvp(UNSHARE[0], [*UNSHARE, "sh", "-c", command, sys.executable, "-m", module, *words])


def is_inside() -> bool:
    """Whether this process has entered."""
    return INSIDE in os.environ


def mount_small_disk(path: str, megabytes: int) -> None:
    """A disk of its own at a folder that exists."""
    _run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", path)


class Network:
    """`count` namespaces `rank0`, `rank1`, ... with one address each."""

    def __init__(self, count: int) -> None:
        self.count = count
        _run("ip", "link", "add", "br0", "type", "bridge")
        _run("ip", "link", "set", "br0", "up")
        for rank in range(count):
            _run("ip", "netns", "add", f"rank{rank}")
            _run("ip", "link", "add", f"port{rank}", "type", "veth", "peer", "name", "eth0", "netns", f"rank{rank}")
            _run("ip", "link", "set", f"port{rank}", "master", "br0", "up")
            inside = ("ip", "-n", f"rank{rank}")
            _run(*inside, "addr", "add", f"{address(rank)}/24", "dev", "eth0")
            _run(*inside, "link", "set", "eth0", "up")
            _run(*inside, "link", "set", "lo", "up")

    def cut(self, rank: int) -> None:
        """Nothing reaches this rank any more; connections stay open and wait."""
        _run("ip", "link", "set", f"port{rank}", "down")

    def heal(self, rank: int) -> None:
        """The opposite of `cut`."""
        _run("ip", "link", "set", f"port{rank}", "up")


def address(rank: int) -> str:
    """Of a rank in its namespace."""
    return f"10.77.0.{rank + 1}"


def join_network(rank: int) -> None:
    """Puts this thread, and all that it starts from now on, into a rank's namespace."""
    handle = os.open(f"/run/netns/rank{rank}", os.O_RDONLY)
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(handle, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(handle)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
