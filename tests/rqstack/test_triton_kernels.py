"""Where Triton kernels may run."""

import importlib.util
import shutil
import sysconfig

import pytest
import torch

from rqstack import triton_kernels

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def a_gpu_machine(monkeypatch, tmp_path):
    """Whatever this one has: Triton, a compiler and Python's headers; no GPU that could be asked."""
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv(triton_kernels.SWITCH, raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    forget()
    yield
    forget()


def forget() -> None:
    triton_kernels._verdicts.clear()
    triton_kernels._can_build.cache_clear()
    triton_kernels._is_known.cache_clear()


def test_a_gpu_has_them_unless_they_are_switched_off(monkeypatch):
    assert triton_kernels.use_triton(CUDA)
    monkeypatch.setenv(triton_kernels.SWITCH, "0")
    assert not triton_kernels.use_triton(CUDA)
    monkeypatch.setenv(triton_kernels.SWITCH, "1")
    assert triton_kernels.use_triton(CUDA)


def test_nothing_else_has_them():
    assert not any(triton_kernels.use_triton(torch.device(name)) for name in ("cpu", "meta", "mps"))


@pytest.mark.parametrize(("module", "name"), [(importlib.util, "find_spec"), (shutil, "which")])
def test_an_installation_that_lacks_something_has_none(monkeypatch, module, name):
    monkeypatch.setattr(module, name, lambda name: None)
    assert not triton_kernels.use_triton(CUDA)


def test_an_installation_without_headers_has_none(monkeypatch, tmp_path):
    (tmp_path / "Python.h").unlink()
    assert not triton_kernels.use_triton(CUDA)


@pytest.mark.parametrize(("capability", "served"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_old_gpus_have_none(monkeypatch, capability, served):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert triton_kernels.use_triton(CUDA) is served


def test_other_makers_gpus_have_none(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not triton_kernels.use_triton(CUDA)


def raising(device):
    raise RuntimeError("no such instruction\nand much more")


@pytest.mark.parametrize(("trial", "reason"), [(lambda device: False, "numbers differ"), (raising, "no such instruct")])
def test_a_kernel_that_does_not_stand_its_trial_is_left_out_with_one_warning(trial, reason):
    with pytest.warns(UserWarning, match=reason) as warned:
        assert not triton_kernels.use_kernel(trial, CUDA)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert not triton_kernels.use_kernel(trial, CUDA)  # and is not asked again: a second warning would be an error


def test_a_trial_runs_once_per_device_with_gradients_and_without_autocast():
    seen = []

    def trial(device):
        seen.append(
            (device, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cuda"))
        )
        return True

    torch.set_autocast_enabled("cuda", True)
    try:
        with torch.inference_mode():
            for index in (0, 1, 0):
                assert triton_kernels.use_kernel(trial, torch.device("cuda", index))
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert seen == [(torch.device("cuda", index), True, False, False) for index in (0, 1)]


def test_a_recording_waits_for_no_trial(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not triton_kernels.use_kernel(lambda device: True, CUDA)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert triton_kernels.use_kernel(lambda device: True, CUDA)


def test_nothing_is_tried_where_no_kernel_runs():
    assert not triton_kernels.use_kernel(raising, torch.device("cpu"))
