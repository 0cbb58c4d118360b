"""How the C library's allocator treats what was freed."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**30


def keep_freed_memory(num_bytes: int = KEPT_BYTES) -> bool:
    """Lets this process keep freed memory up to `num_bytes` at a time, instead of giving it back and asking again.

    A training step on a CPU frees and allocates the same activations over and over. By default glibc returns each of
    them to the system, which then clears every page anew: tens of thousands of page faults per step. Allocations above
    `num_bytes` stay as they are. Other C libraries are left alone.

    Returns:
        Whether the allocator knows these settings and took them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(setting, num_bytes) for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD)])
