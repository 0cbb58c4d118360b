"""Folders from which code may be loaded: nobody but this user (and root) can put anything there or in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make_private(folder: Path) -> None:
    """Makes a folder and its missing parents, of this user only; OSError where that is not possible."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


def why_not_private(folder: Path) -> str | None:
    """What lets somebody else write in a folder, or None; its owner and mode and those of every parent are looked at.

    This is the rule of OpenSSH for its keys, with two additions: a parent that others may write is allowed where they
    cannot rename what is ours (the sticky bit of /tmp), and a group in which nobody else is counts as its user.
    Access-control lists are not looked at.

    Raises:
        OSError: there is no such folder.
    """
    folder = folder.resolve(strict=True)
    if not folder.is_dir():
        return f"{folder} is no folder"
    if folder.stat().st_uid != os.getuid():
        return f"{folder} belongs to another user ({folder.stat().st_uid})"
    for path in (folder, *folder.parents):
        found = path.stat()
        if found.st_uid not in (0, os.getuid()):
            return f"{path} belongs to another user ({found.st_uid})"
        guarded = path != folder and found.st_mode & stat.S_ISVTX
        if others_may_write(found) and not guarded:
            return f"others may write {path} (mode {stat.S_IMODE(found.st_mode):o})"
    return None


def is_private_file(file: Path) -> bool:
    """Whether this is a file of this user's, no link, that nobody else may write."""
    try:
        found = file.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not others_may_write(found)


def others_may_write(found: os.stat_result) -> bool:
    """By mode bits; the user's own group is the one of the same name that has no other member."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(group_id: int) -> bool:
    import grp
    import pwd  # neither is there on Windows, where nothing is loaded

    try:
        user, group = pwd.getpwuid(os.getuid()), grp.getgrgid(group_id)
    except KeyError:
        return False
    return user.pw_gid == group_id and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
