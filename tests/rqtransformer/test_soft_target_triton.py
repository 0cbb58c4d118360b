"""The loss kernel in Triton's interpreter, and what it serves."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from rqtransformer import targets
from tests.commands import succeed

SCRIPT = Path(__file__).with_name("soft_target_in_interpreter.py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@pytest.mark.slow
def test_the_kernel_equals_the_plain_form():
    done = succeed(SCRIPT, timeout=280, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    found = json.loads(done.out.splitlines()[-1])
    for row in found["rows"]:
        rounding = 2**-7 if "bfloat16" in row["case"][2] else 2e-6
        assert row["outside"] == row["without gradient"] == 0.0, row
        assert row["sums"] < 2e-6 and row["gradient"] < rounding and row["scaled"] < 3 * rounding, row
    assert found["broken"] == [False] * 4
    assert found["whole"] < 1e-5


def test_it_serves_what_it_knows_and_nothing_else(monkeypatch):
    logits, codes = torch.randn(6, 2, 8), torch.zeros(6, 2, dtype=torch.int64)
    soft = targets.SoftTargets(torch.randn(1, 2, 3, 2, 4), [torch.randn(8, 4)] * 2, 1.0)
    assert not targets._kernel_serves(logits, codes, soft)  # on a CPU
    monkeypatch.setattr(targets, "use_kernel", lambda trial, device: True)
    assert targets._kernel_serves(logits, codes, soft) and targets._kernel_serves(logits.half(), codes, None)

    class Other(targets.SoftTargets):
        pass

    assert not targets._kernel_serves(logits, codes, Other(torch.randn(1, 2, 3, 2, 4), [torch.randn(8, 4)] * 2, 1.0))
    assert not targets._kernel_serves(logits, codes, targets.DenseTargets(torch.rand(1, 2, 3, 2, 8)))
    assert not targets._kernel_serves(logits[..., :7], codes, None)
    assert not targets._kernel_serves(logits[..., :7].contiguous(), codes, soft)
    assert not targets._kernel_serves(logits.double(), codes, None)
    assert not targets._kernel_serves(torch.nn.Parameter(logits), codes, None)
    assert not targets._kernel_serves(logits, codes.int(), None)
    assert not targets._kernel_serves(logits, codes[:, :1], None)
