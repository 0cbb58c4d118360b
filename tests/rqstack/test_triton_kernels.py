"""Where Triton kernels may run."""

import importlib.util

import pytest
import torch

from rqstack import triton_kernels

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh_answer(monkeypatch):
    monkeypatch.delenv(triton_kernels.SWITCH, raising=False)
    triton_kernels._is_installed.cache_clear()
    yield
    triton_kernels._is_installed.cache_clear()


def test_a_gpu_has_them_unless_they_are_switched_off(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert triton_kernels.use_triton(CUDA)
    monkeypatch.setenv(triton_kernels.SWITCH, "0")
    assert not triton_kernels.use_triton(CUDA)
    monkeypatch.setenv(triton_kernels.SWITCH, "1")
    assert triton_kernels.use_triton(CUDA)


def test_nothing_else_has_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert not any(triton_kernels.use_triton(torch.device(name)) for name in ("cpu", "meta", "mps"))


def test_an_installation_without_triton_has_none(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not triton_kernels.use_triton(CUDA)
