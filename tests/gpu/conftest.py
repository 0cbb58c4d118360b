"""Fixtures of the tests on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.distributed import DistEnv
from tests.gpu.fake_cuda import CUDA, fake_cuda


@pytest.fixture
def gpu() -> Iterator[DistEnv]:
    """One process with one fake GPU; everything that the test makes is fake."""
    with fake_cuda():
        yield DistEnv(0, 1, 0, CUDA, "none")
