"""FLOPs of a step against PyTorch's counter and by hand, and what the log line makes of them."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.training.tiny_runs import GAN, stage1, train, write_config
from training.checkpoints.checkpoint_restoring import read_progress
from training.loop import throughput
from training.loop.throughput import SpeedMeter, StepFlops, device_peak, peak_memory_gib

CPU = torch.device("cpu")


class Block(nn.Module):
    """A convolution and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.attention = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)

    def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
        return self.attention(self.conv(image_BCHW).flatten(2).transpose(1, 2))


def counted(step, terms: int = 1) -> int | None:
    flops = StepFlops(True)
    with flops.counting() as metrics:
        step()
        metrics.update({str(number): 0 for number in range(terms)})
    return flops.last


def test_a_product_is_two_flops_per_multiply_add():
    left, right = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert counted(lambda: left @ right) == 2 * 3 * 5 * 7
    assert counted(lambda: (left @ right).sum().backward()) == 2 * 2 * 3 * 5 * 7
    with torch.inference_mode():
        assert counted(lambda: left @ right) == 2 * 3 * 5 * 7


def test_attention_counts_however_it_runs():
    query_BHLE, key_BHLE = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (5, 7))
    products = 2 * 2 * 2 * 3 * 5 * 7 * 8

    def attend() -> torch.Tensor:
        return F.scaled_dot_product_attention(query_BHLE, key_BHLE, key_BHLE)

    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            assert counted(attend) == products
            # fused attention computes the weights again, in the backward pass
            assert counted(lambda: attend().sum().backward()) in (3 * products, 3.5 * products)
            with torch.inference_mode():
                assert counted(attend) == products


def test_a_model_counts_as_in_pytorch():
    model, image_BCHW = Block(), torch.randn(2, 3, 8, 8)

    def step() -> None:
        model(image_BCHW).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):  # fused attention on a CPU is unknown to some releases
        with FlopCounterMode(display=False) as expected:
            step()
        assert counted(step) == expected.get_total_flops() > 0


def test_what_is_computed_again_does_not_count():
    model, image_BCHW = Block(), torch.randn(2, 3, 8, 8, requires_grad=True)
    plain = counted(lambda: model(image_BCHW).sum().backward())
    assert counted(lambda: checkpoint(model, image_BCHW, use_reentrant=False).sum().backward()) == plain


def test_every_kind_of_step_is_counted_once():
    flops = StepFlops(True)

    def step(products: int, terms: int) -> int | None:
        with flops.counting() as metrics:
            for _ in range(products):
                torch.ones(2, 2) @ torch.ones(2, 2)
            metrics.update({str(number): 0 for number in range(terms)})
        return flops.last

    assert [step(1, 3), step(1, 3), step(5, 3)] == [16, 16, 16], "the first of a kind is counted"
    assert [step(2, 4), step(2, 4), step(1, 3)] == [None, 32, 16], "a kind is known when its first step is over"
    resumed = StepFlops(True, flops.state_dict())
    with resumed.counting() as metrics:
        metrics.update({str(number): 0 for number in range(4)})
    assert resumed.last == 32
    off = StepFlops(False)
    with off.counting() as metrics:
        metrics["loss"] = torch.ones(2, 2) @ torch.ones(2, 2)
    assert off.last is None


def test_the_peak_of_a_known_gpu_is_that_of_its_data_sheet(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    gpu = torch.device("cuda", 0)
    assert device_peak(gpu, "bf16").flops == 312e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 PCIe")
    assert device_peak(gpu, "bf16").flops == 756e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something new")
    monkeypatch.setattr(throughput, "_measure", lambda *settings: 7e12)
    assert device_peak(gpu, "bf16").flops == 7e12


def test_an_unknown_device_is_measured():
    peak = device_peak(CPU, "fp32")
    assert peak.flops > 1e8
    assert "768x768" in peak.source
    assert device_peak(CPU, "fp32") == peak, "once"


def test_a_peak_that_was_measured_too_low_is_measured_again_and_never_below_a_step(monkeypatch):
    monkeypatch.setattr(throughput, "_MEASURED", {})
    rates = [1e9, 4e9, 2e9]  # something else ran at first
    monkeypatch.setattr(throughput, "_measure", lambda *settings: rates.pop(0))
    assert device_peak(CPU, "fp32").flops == 1e9
    flops = StepFlops(True, {"0": 2_000_000_000})
    with flops.counting():
        pass
    meter = SpeedMeter(CPU, "fp32", flops)
    assert meter.timing(1, 1.0)["mfu"] == pytest.approx(0.5), "2e9 of 4e9"
    assert meter.timing(2, 2.0)["mfu"] == pytest.approx(0.5), "the best so far"
    rates += [1e9, 1e9]
    fast = meter.timing(3, 1.0)
    assert fast["mfu"] == 1.0 and fast["tflops"] == pytest.approx(6e-3)
    meter.timing(1, 1.0)
    assert meter.mfu == pytest.approx(7 * 2 / 5 / 6), "7 steps of 2e9 in 5 s, against the 6e9 of the fastest"
    assert SpeedMeter(CPU, "fp32", flops).mfu is None


def test_memory_of_the_process():
    assert 0.01 < peak_memory_gib(CPU) < 1000


@pytest.mark.parametrize("count", [True, False])
def test_the_log_line_of_a_run(count, tmp_path):
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1({"experiment.max_steps": 4, "experiment.count_flops": count, "gan": GAN, "gan.loss.disc_start_step": 2}),
    )
    run = train("stage1", "-m", config, "-r", tmp_path / "runs")
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    timings = [line["timing"] for line in lines if "timing" in line]
    assert all({"images_per_second", "data_wait_share", "peak_memory_gib"} <= timing.keys() for timing in timings)
    assert [sorted({"mfu", "tflops"} & timing.keys()) for timing in timings] == (
        [["mfu", "tflops"], ["mfu", "tflops"], [], ["mfu", "tflops"]] if count else [[]] * 4
    ), "the second step with a discriminator is the one that is counted"
    if count:
        flops = read_progress(run.run_dir)["flops_per_step"]
        assert len(flops) == 2
        assert timings[-1]["tflops"] == pytest.approx(max(flops.values()) * timings[-1]["images_per_second"] / 4e12)
        peak = device_peak(CPU, "fp32").flops
        assert timings[-1]["mfu"] == pytest.approx(timings[-1]["tflops"] * 1e12 / peak)
