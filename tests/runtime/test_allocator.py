"""Freed memory that stays with the process: no page faults for the same tensors again."""

from __future__ import annotations

import platform
import resource

import pytest

from tests.commands import succeed

PROGRAM = """
import resource, torch
from runtime.allocator import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.ones(10_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def later():
    return [faults() for _ in range(4)][-1]
by_default = later()
assert keep_freed_memory()
print(by_default, later())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="these are settings of glibc's allocator")
def test_memory_is_used_again():
    pages = 5 * 3 * 40_000_000 // resource.getpagesize()
    by_default, kept = map(int, succeed("-c", PROGRAM).out.split())
    assert kept < pages / 50
    assert by_default > 10 * kept
