"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

# Before torch is imported: one thread per process, so that parallel test workers and spawned ranks do not fight over
# the cores and floating-point sums do not depend on the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from tests.commands import Ended, ended_here
from tests.golden_files import GoldenSet, published_keys
from tests.ranks import run_on_ranks

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


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory) -> Callable[..., list[Any]]:
    """`on_ranks(work, *args, number=2)`: what work(rank, *args) returns on each rank of a gloo group.

    With `join=False` the processes only find the variables of a launcher and join by themselves.
    """

    def start(work: Callable[..., Any], *args: object, **options: Any) -> list[Any]:
        return run_on_ranks(work, *args, folder=tmp_path_factory.mktemp("ranks"), **options)

    return start


@pytest.fixture
def command(capsys) -> Callable[..., Ended]:
    """`command("evaluation.networks", "where")`, `command("main_stage1.py", "-m", x)`: exit code, stdout, stderr."""
    return partial(ended_here, capsys)
