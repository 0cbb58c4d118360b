"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

# Before torch is imported: one thread per process, so that parallel test workers and spawned ranks do not fight over
# the cores and floating-point sums do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.golden_files import GoldenSet, published_keys

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture
def golden() -> Callable[[str], GoldenSet]:
    """`golden("rqvae-shared")`: the reference numbers of that set, with `.io`, `.config`, `.checkpoint`, `.path`."""
    return GoldenSet


@pytest.fixture(scope="session")
def golden_keys() -> dict:
    """`tests/golden/keys.json`: parameter counts and key patterns of the published configurations."""
    return published_keys()


@pytest.fixture(autouse=True)
def _fixed_torch_seed() -> None:
    """A test's random inputs do not depend on which tests ran before it in the same process."""
    torch.manual_seed(0)
