"""The switches of PyTorch that a process sets for its device; they can be looked at without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from runtime.device import ieee_fp32
from tests.repository import ROOT

ON_A_GPU = """
import json, torch
from runtime.device import ieee_fp32, use_device
from runtime.distributed import DistEnv
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
def switches():
    return [matmul.fp32_precision, cudnn.conv.fp32_precision]
def older():
    return [matmul.allow_tf32, cudnn.allow_tf32, torch.get_float32_matmul_precision()]
for deterministic in (False, True):
    use_device(DistEnv(0, 1, 0, torch.device("cuda"), "none"), deterministic=deterministic)
    seen = {"newer": switches(), "older": older()}
    with ieee_fp32(torch.device("cuda")):
        seen["inside"] = switches()
    seen |= {"newer after": switches(), "older after": older()}
    seen["benchmark"], seen["cudnn"] = cudnn.benchmark, cudnn.deterministic
    seen["algorithms"] = torch.are_deterministic_algorithms_enabled()
    print(json.dumps(seen))
"""


def test_a_gpu_is_set_up_so_that_older_and_newer_switches_can_be_read():
    """In a process of its own: the switches are the process's."""
    done = subprocess.run([sys.executable, "-c", ON_A_GPU], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for deterministic, line in zip((False, True), done.stdout.splitlines(), strict=True):
        assert json.loads(line) == {
            "newer": ["tf32", "tf32"],
            "older": [True, True, "high"],
            "inside": ["ieee", "ieee"],
            "newer after": ["tf32", "tf32"],
            "older after": [True, True, "high"],
            "benchmark": not deterministic,
            "cudnn": deterministic,
            "algorithms": deterministic,
        }


def test_the_precision_is_put_back_after_an_error():
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    with pytest.raises(RuntimeError), ieee_fp32(torch.device("cuda")):
        assert conv.fp32_precision == "ieee"
        raise RuntimeError
    assert conv.fp32_precision == before


def test_other_devices_are_left_alone():
    before = torch.backends.cudnn.conv.fp32_precision
    with ieee_fp32(torch.device("cpu")):
        assert torch.backends.cudnn.conv.fp32_precision == before
