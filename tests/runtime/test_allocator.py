"""Freed memory that stays with the process: no page faults for the same tensors again."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
from runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit(3)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(10_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults(), faults()
print(faults())
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True)
    if done.returncode == 3:
        pytest.skip("another C library's allocator")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_is_used_again():
    pages = 5 * 3 * 40_000_000 // resource.getpagesize()
    by_default, kept = page_faults("default"), page_faults("keep")
    assert kept < pages / 50
    assert kept < by_default
