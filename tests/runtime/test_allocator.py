"""Freed memory that stays with the process: no page faults for the same tensors again."""

from __future__ import annotations

import platform
import resource

import pytest

from tests.commands import succeed

PROGRAM = """
import resource, sys, torch
from runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(10_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults(), faults()
print(faults())
"""


def page_faults(mode: str) -> int:
    return int(succeed("-c", PROGRAM, mode).out)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc's allocator")
def test_memory_is_used_again():
    pages = 5 * 3 * 40_000_000 // resource.getpagesize()
    by_default, kept = page_faults("default"), page_faults("keep")
    assert kept < pages / 50
    assert by_default > 10 * kept
