"""The trial of every kernel, in Triton's interpreter: it lets the kernel pass, and not one that is a little wrong."""

import importlib.util
import json
from pathlib import Path

import pytest

from tests.commands import succeed

SCRIPT = Path(__file__).with_name("trials_in_interpreter.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


@needs_triton
def test_a_trial_tells_a_right_kernel_from_a_wrong_one():
    done = succeed(SCRIPT, timeout=290, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    verdicts = json.loads(done.out.splitlines()[-1])
    assert len(verdicts) == 5
    assert set(map(tuple, verdicts.values())) == {(True, False)}, verdicts
