"""The fused search kernel in Triton's interpreter, which runs it without a GPU, and the switch that turns it on."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from rqstack.quantizers import VectorQuantizer
from rqstack.quantizers.arithmetic import nearest
from tests.commands import succeed

# vectors, codes, size, whole numbers, processors, precision: sizes that fill blocks, that do not, more than one block
# of each, and codes that are split among programs
CASES = [
    (64, 64, 32, False, 1, "ieee"),
    (70, 200, 40, False, 1, "ieee"),
    (1, 3, 5, False, 132, "tf32x3"),
    (100, 130, 3, True, 1, "ieee"),
    (65, 129, 2, True, 132, "ieee"),
    (10, 700, 3, True, 3, "tf32x3"),
]


def test_the_kernel_agrees_with_the_tiled_search_and_ties_take_the_lowest_index():
    if importlib.util.find_spec("triton") is None:
        return  # a CPU build of torch: the tiled search is all there is
    script = Path(__file__).with_name("nearest_in_interpreter.py")
    done = succeed(script, json.dumps(CASES), timeout=200, TRITON_INTERPRET="1")
    results = json.loads(done.out.splitlines()[-1])
    assert len(results) == len(CASES)
    assert all(result["differ"] == 0 and result["dtype"] == "torch.int64" for result in results), results
    assert all(result["ties"] > 5 for result in results[3:]), results
    assert results[1]["distinct"] > 20
    assert [result["programs"] for result in results] == [1, 1, 1, 1, 3, 6]


@pytest.mark.parametrize(
    ("value", "precision"),
    [("1", "ieee"), ("ieee", "ieee"), ("tf32x3", "tf32x3"), ("", None), ("0", None), (None, None)],
)
def test_the_kernel_is_off_unless_asked_for(monkeypatch, value, precision):
    monkeypatch.delenv(nearest.FUSED_SWITCH, raising=False)
    if value is not None:
        monkeypatch.setenv(nearest.FUSED_SWITCH, value)
    monkeypatch.setattr(nearest, "use_kernel", lambda trial, device: device.type == "cuda")
    assert nearest._fused_precision(torch.device("cuda")) == precision
    assert nearest._fused_precision(torch.device("cpu")) is None


def test_a_kernel_that_does_not_stand_its_trial_is_not_used(monkeypatch):
    monkeypatch.setenv(nearest.FUSED_SWITCH, "1")
    asked = []
    monkeypatch.setattr(nearest, "use_kernel", lambda trial, device: asked.append(trial))
    assert nearest._fused_precision(torch.device("cuda")) is None
    assert asked == [nearest.nearest_trial]


@pytest.mark.parametrize("value", ["tf32", "true", "IEEE"])
def test_a_value_that_is_none_is_refused_on_every_device_and_before_training(monkeypatch, value):
    monkeypatch.setenv(nearest.FUSED_SWITCH, value)
    message = f"{nearest.FUSED_SWITCH}='{value}' .* must be one of 0, 1, ieee, tf32x3"
    with pytest.raises(ValueError, match=message):
        nearest.nearest_codes(torch.zeros(2, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(4, 8)


def test_codes_are_split_until_a_gpu_is_filled():
    if importlib.util.find_spec("triton") is None:
        return
    from rqstack.quantizers.arithmetic.nearest_triton import split

    assert split(2048, 16384, 132) == (32, 1856)  # 9 programs a block of rows
    assert split(100_000, 16384, 132) == (1563, 16384)
    assert split(64, 100, 132) == (1, 64)
