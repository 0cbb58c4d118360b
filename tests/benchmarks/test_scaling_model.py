"""The cost model: closed forms, what can be counted here, and the command."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import scaling_checks, scaling_model
from benchmarks.scaling_costs import BF16, FP32, Device, describe, memory_of, state_bytes, step_cost, volumes
from rqtransformer import attention

DEVICE = Device(peak_tflops=100.0, efficiency=0.5, per_node=8, intra_gb_s=100.0, inter_gb_s=10.0, latency_us=0.0)


@pytest.fixture(scope="module")
def largest():
    """Counts of the 3.8B model."""
    return describe(scaling_model.published("3800M")[0])


def test_rings():
    assert DEVICE.ring(8e9, 1) == 0.0
    assert DEVICE.ring(8e9, 8) == pytest.approx(7e9 / 100e9)
    assert DEVICE.ring(8e9, 8, passes=2) == pytest.approx(14e9 / 100e9)
    assert DEVICE.ring(16e9, 16) == pytest.approx(15e9 / 80e9), "eight links of 10 GB/s between nodes"
    slow = Device(latency_us=5.0)
    assert slow.ring(0.0, 1024) == pytest.approx(1023 * 5e-6)


def test_counts_of_the_largest_model(largest):
    assert largest.params == 3_822_488_064
    assert (largest.block_params, largest.num_blocks) == (78_676_480, 48)
    assert largest.logits == 64 * 4 * 16384
    assert largest.block_inputs == (42 * 64 + 6 * 256) * 2560 * FP32


def test_state_is_four_bytes_per_number(largest):
    whole = state_bytes(largest.params, 1, ema=True)
    assert sum(whole.values()) == 20 * largest.params
    shares = memory_of(largest, "fsdp", 64, 8, 1, recompute=True, ema=True)
    assert all(shares[name] == size / 64 for name, size in whole.items())
    assert "unaveraged gradients" in memory_of(largest, "fsdp", 64, 8, 2, recompute=True, ema=True)


def test_volumes(largest):
    assert volumes(largest, "ddp", 4) == {"all_reduce": 4 * largest.params}
    blocks = largest.num_blocks * largest.block_params
    fsdp = volumes(largest, "fsdp", 4)
    assert fsdp["all_gather"] == 2 * 4 * (BF16 * blocks + FP32 * (largest.params - blocks))
    assert fsdp["reduce_scatter"] == 4 * largest.params


def test_a_step(largest):
    one = step_cost(largest, DEVICE, "ddp", 1, 64, 8)
    assert (one.accumulation, one.communication) == (8, 0.0)
    assert one.seconds == pytest.approx(64 * (3 * largest.forward + largest.targets) / 50e12, rel=0.02)
    assert one.utilisation(DEVICE) == pytest.approx(0.5, rel=0.02)
    again = step_cost(largest, DEVICE, "ddp", 1, 64, 8, recompute=True)
    assert again.seconds > 1.25 * one.seconds
    assert again.total_memory < one.total_memory
    shared = step_cost(largest, DEVICE, "fsdp", 8, 64, 8)
    assert shared.total_memory < one.total_memory / 2
    assert shared.seconds >= max(shared.compute, shared.communication / 2)
    with pytest.raises(ValueError, match="a batch of 64 does not divide into micro-batches of 8 on 3 devices"):
        step_cost(largest, DEVICE, "fsdp", 3, 64, 8)


def test_flops_are_those_of_the_operators():
    assert scaling_checks.check_flops(scaling_model.published("480M")[0])["ratio"] == pytest.approx(1.0, abs=2e-3)


def test_a_small_step_has_the_predicted_costs(monkeypatch):
    # On a CPU the head keeps its few attention weights, and attention in bf16 the fp32 that it works on, which the
    # model of a GPU does not have.
    monkeypatch.setattr(attention, "FEW", 0)
    monkeypatch.setattr(attention, "WIDE_ROWS", 0)
    rows = scaling_checks.check_small_step()
    assert [row["ratio"] for row in rows] == pytest.approx([1.0] * 5, abs=2e-3)
    assert [scaling_checks.check_activations(precision)["ratio"] for precision in ("fp32", "bf16")] == [1.0, 1.0]


@pytest.mark.slow
def test_two_ranks_send_the_predicted_bytes():
    assert [row["ratio"] for row in scaling_checks.check_traffic()] == [1.0] * 5


def run(monkeypatch, *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["scaling_model", *flags])
    scaling_model.main()


def test_the_command_ends_with_a_json_line(monkeypatch, capsys, tmp_path):
    out = tmp_path / "line.json"
    run(monkeypatch, "--models", "480M", "--devices", "8", "--cached-latents", "--no-checks", "--output", str(out))
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == json.loads(out.read_text())
    rows = json.loads(last)["rows"]
    assert [(row["parallel"], row["recompute"]) for row in rows] == [
        ("ddp", False),
        ("ddp", True),
        ("fsdp", False),
        ("fsdp", True),
    ]
    assert all(row["micro_batch"] * row["accumulation"] * 8 == 2048 for row in rows)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--devices", "3", "--no-checks", "--cached-latents"], "a batch of 2048 does not divide"),
        (["--peak-tflops", "0"], "--peak-tflops 0.0 must be positive"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(flags, line, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--models", "480M", *flags)
    assert stop.value.code == 2
    assert line in capsys.readouterr().err
