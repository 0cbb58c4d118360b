"""Fixtures of the tests on fake CUDA tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch._subclasses.fake_tensor import FakeTensor

from rqtransformer.fast import cuda_graph, served
from runtime.distributed import DistEnv
from tests.gpu.fake_cuda import CUDA, fake_cuda


@pytest.fixture
def gpu(monkeypatch) -> Iterator[DistEnv]:
    """One process with one fake GPU; everything that the test makes is fake. Triton kernels step aside."""
    monkeypatch.setenv("RQTRANSFORMER_TRITON", "0")
    monkeypatch.setattr(served, "Tensor", FakeTensor)  # the ordinary tensors of this world
    cuda_graph._cuda_recorder.cache_clear()
    with fake_cuda():
        yield DistEnv(0, 1, 0, CUDA, "none")
    cuda_graph._cuda_recorder.cache_clear()  # a real GPU would be given the stand-in's streams
