"""A step with fused kernels, in Triton's interpreter, is the plain forward, to rounding."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.commands import succeed

SCRIPT = Path(__file__).with_name("fused_in_interpreter.py")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")
@pytest.mark.slow
@pytest.mark.parametrize("names", [("grouped", "bf16"), ("published", "text")])
def test_fused_steps_are_the_plain_forward(names):
    done = succeed(SCRIPT, *names, timeout=290, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    found = json.loads(done.out.splitlines()[-1])
    assert tuple(found) == names
    for name, case in found.items():
        assert case["distance"] < (0.05 if name == "bf16" else 1e-5), name
        assert case["equal"] > (0.5 if name == "bf16" else 0.99), name
        # three new positions twice, and of two samples each four codes, a second position and perhaps a condition
        assert case["steps"] == 6 + 2 * (4 + 1 + (name != "text")), name
