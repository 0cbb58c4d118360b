"""The fused search kernel in Triton's interpreter, which runs it without a GPU, and the switch that turns it on."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from rqstack.quantizers.arithmetic import nearest
from tests.commands import succeed

# vectors, codes, size, whole numbers: sizes that fill blocks, that do not, and more than one block of each
CASES = [(64, 64, 32, False), (70, 200, 40, False), (1, 3, 5, False), (100, 130, 3, True), (65, 129, 2, True)]


def test_the_kernel_agrees_with_the_tiled_search_and_ties_take_the_lowest_index():
    if importlib.util.find_spec("triton") is None:
        assert not nearest._fused_search_wanted()  # a CPU build of torch: the tiled search is all there is
        return
    script = Path(__file__).with_name("nearest_in_interpreter.py")
    done = succeed(script, json.dumps(CASES), timeout=200, TRITON_INTERPRET="1")
    results = json.loads(done.out.splitlines()[-1])
    assert len(results) == len(CASES)
    assert all(result["differ"] == 0 and result["dtype"] == "torch.int64" for result in results), results
    assert all(result["ties"] > 20 for result in results[3:]), results
    assert results[1]["distinct"] > 20


@pytest.mark.parametrize(("value", "wanted"), [("1", True), ("0", False), (None, False)])
def test_the_kernel_is_off_unless_asked_for(monkeypatch, value, wanted):
    monkeypatch.delenv(nearest.FUSED_SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(nearest.FUSED_SWITCH, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert nearest._fused_search_wanted() is wanted
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not nearest._fused_search_wanted()


def test_a_cpu_search_never_takes_the_kernel(monkeypatch):
    monkeypatch.setattr(nearest, "_fused_search_wanted", lambda: pytest.fail("asked on a CPU"))
    assert nearest.nearest_codes(torch.eye(3), torch.eye(3)).tolist() == [0, 1, 2]
