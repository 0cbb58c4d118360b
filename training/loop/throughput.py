"""How well a step uses the device: FLOPs of a step, peak rate of the device, memory.

Model FLOPs utilisation (MFU) is the share of the device's peak rate that the multiply-adds of the step, 2 FLOPs each,
would need: FLOPs per step / (seconds per step x peak). Seconds include waiting for data. The step counts whole, with
the frozen tokenizer, LPIPS and the discriminator where there are such; what activation checkpointing computes a second
time does not count. Where the peak is measured, MFU cannot pass 1: a step that is faster than the peak becomes the
peak. Where it comes from a data sheet, it can only where the device saves multiplications that are counted here, as
cuDNN's Winograd and FFT convolutions do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from runtime.processes.system import peak_memory_bytes

# Dense TFLOP/s from the vendor's data sheets: (part of the device's name, bf16 and fp16, tf32, fp32). First match wins.
KNOWN_GPUS = (
    ("H200", 989.0, 494.0, 67.0),
    ("H100 PCIe", 756.0, 378.0, 51.0),
    ("H100", 989.0, 494.0, 67.0),
    ("A100", 312.0, 156.0, 19.5),
    ("L40S", 362.0, 183.0, 91.6),
    ("V100", 125.0, 15.7, 15.7),
)
_GEMM_SIDE = {"cuda": 4096, "cpu": 768}
_GEMM_REPEATS = {"cuda": 10, "cpu": 3}
_CUDA_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class StepFlops:
    """FLOPs of one optimizer step on this rank, counted while a step runs, once for every kind of step.

    Kinds are told apart by how many terms they report: a discriminator that starts later makes a new one, whose second
    step is counted. A counted step runs eagerly, and no faster than Python can follow its operations; all others are
    untouched. No number of the step changes.

    Args:
        enabled: False counts nothing.
        known: what `state_dict` gave; a resumed run does not count again.
    """

    def __init__(self, enabled: bool, known: Mapping[str, int] | None = None) -> None:
        self._by_kind = dict(known or {})
        self._enabled, self._kind = enabled, ""
        self._count_next = enabled and not self._by_kind

    @contextmanager
    def counting(self) -> Iterator[dict[str, Any]]:
        """Around a step, whose metrics the caller puts into the mapping that it is given."""
        metrics: dict[str, Any] = {}
        if not self._count_next:
            yield metrics
            self._note(metrics)
            return
        with FlopCounter() as counter:
            yield metrics
        self._count_next = False
        self._by_kind[_kind(metrics)] = counter.flops
        self._note(metrics)

    def _note(self, metrics: Collection[str]) -> None:
        self._kind = _kind(metrics)
        self._count_next = self._enabled and self._kind not in self._by_kind

    @property
    def last(self) -> int | None:
        """Those of the last step's kind; None before they were counted."""
        return self._by_kind.get(self._kind)

    def state_dict(self) -> dict[str, int]:
        """What was counted so far, by kind."""
        return dict(self._by_kind)


def _kind(metrics: Collection[str]) -> str:
    return str(len(metrics))


class FlopCounter(TorchDispatchMode):
    """Adds up PyTorch's own formulas for products, convolutions and attention, forward and backward, in `flops`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula = _formulas().get(func.overloadpacket if hasattr(func, "overloadpacket") else func)
        if formula is None and func in _composite():
            with self:  # without autograd, composite operations arrive whole
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if formula is not None and not _is_recomputing():
            self.flops += int(formula(*args, **kwargs, out_val=result))
        return result


@functools.cache
def _formulas() -> Mapping[Any, Callable[..., int]]:
    """PyTorch's, and for attention on a CPU, which some releases leave out, those of attention on a GPU."""
    aten = torch.ops.aten
    on_cpu = {
        aten._scaled_dot_product_flash_attention_for_cpu: aten._scaled_dot_product_flash_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: aten._scaled_dot_product_flash_attention_backward,
    }
    return {operator: flop_registry[like] for operator, like in on_cpu.items()} | flop_registry


@functools.cache
def _composite() -> frozenset[Any]:
    """Operations that contain products and reach the counter undivided in inference mode."""
    aten = torch.ops.aten
    return frozenset(
        {
            aten.linear.default,
            aten.matmul.default,
            aten.conv2d.default,
            aten.conv1d.default,
            aten.einsum.default,
            aten.scaled_dot_product_attention.default,
            aten._scaled_dot_product_attention_math.default,
        }
    )


def _is_recomputing() -> bool:
    """Whether a checkpointed part of the forward pass is being computed again, inside the backward pass."""
    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


@dataclass(frozen=True)
class Peak:
    """FLOP/s of one device at best, and where the number comes from; `measured`, or as its vendor says."""

    flops: float
    source: str
    measured: bool = False


_MEASURED: dict[tuple[torch.device, str, int], float] = {}  # the best rate so far


def device_peak(device: torch.device, precision: str, again: bool = False) -> Peak:
    """The peak rate of products in `precision` (fp32, bf16, fp16): of a known GPU from its data sheet, else measured.

    On CUDA, fp32 products run as TF32, as the training scripts set it.

    Args:
        again: measure once more, and keep the best: whatever else ran at the first time made it too low.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, half, tf32, fp32 in KNOWN_GPUS:
            if part in name:
                tensor_cores = torch.backends.cuda.matmul.fp32_precision == "tf32"
                rate = half if precision != "fp32" else tf32 if tensor_cores else fp32
                return Peak(rate * 1e12, f"data sheet of {part}")
    side = _GEMM_SIDE.get(device.type, 1024)
    key = (device, precision, torch.get_num_threads())
    if again or key not in _MEASURED:
        repeats = 1 if key in _MEASURED else _GEMM_REPEATS.get(device.type, 3)
        _MEASURED[key] = max(_MEASURED.get(key, 0.0), _measure(device, precision, side, repeats))
    return Peak(_MEASURED[key], f"a {side}x{side} product, the best so far", measured=True)


def _measure(device: torch.device, precision: str, side: int, repeats: int) -> float:
    # a CPU is measured by its fp32 rate: what it does in bf16 differs too much between processors to compare with
    dtype = _CUDA_PRECISIONS[precision] if device.type == "cuda" else torch.float32
    left, right = (torch.full((side, side), 0.5, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(1 + repeats):
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def peak_memory_gib(device: torch.device) -> float | None:
    """GiB this process held at most so far: tensors on the GPU, or resident memory of a process on the CPU; None: not
    known.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = peak_memory_bytes()
    return None if peak is None else peak / 2**30


class SpeedMeter:
    """How fast steps go, measured against what the device can do.

    Args:
        device, precision: what a step computes on and in.
        flops: counts those of a step.
    """

    def __init__(self, device: torch.device, precision: str, flops: StepFlops) -> None:
        self.device, self.precision, self.flops = device, precision, flops
        self._done, self._seconds, self._best = 0.0, 0.0, 0.0  # FLOPs of all intervals, their time, the highest peak

    def timing(self, num_steps: int, seconds: float) -> dict[str, float]:
        """Of an interval: model FLOPs utilisation and TFLOP/s of this process, where FLOPs were counted, and its peak
        memory.
        """
        peak_memory = peak_memory_gib(self.device)
        timing = {} if peak_memory is None else {"peak_memory_gib": peak_memory}
        if self.flops.last is None:
            return timing
        rate = self.flops.last * num_steps / seconds
        peak = device_peak(self.device, self.precision, again=True)
        # a device is at least as fast as it just was: what was measured is a lower bound
        best = max(peak.flops, rate) if peak.measured else peak.flops
        self._done, self._seconds = self._done + self.flops.last * num_steps, self._seconds + seconds
        self._best = max(self._best, best)
        return {"mfu": rate / best, "tflops": rate / 1e12, **timing}

    @property
    def mfu(self) -> float | None:
        """Of all intervals together, against the highest peak of any; None where no FLOPs were counted."""
        return self._done / self._seconds / self._best if self._seconds else None

    def describe(self) -> str:
        """One line on what MFU is measured against."""
        peak = device_peak(self.device, self.precision)
        return f"MFU is of {peak.flops / 1e12:.4g} TFLOP/s per process ({peak.source})"
