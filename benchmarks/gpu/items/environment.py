"""The machine: device, driver, versions; its rate of products and of copies."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import sys

import torch

from benchmarks.gpu.items.timing import median_ms
from benchmarks.gpu.report import Report
from benchmarks.gpu.settings import Absent
from measure_throughput.roofline import measure_roofline
from rqstack.triton_kernels import use_triton

TINY_SIZE = 256


def describe(report: Report) -> None:
    """Device, driver and versions; for every result line."""
    if report.on_gpu and not torch.cuda.is_available():
        raise Absent("there is no GPU that this torch can use; --tiny --device cpu rehearses the run on a CPU")
    report.note("device", torch.cuda.get_device_name() if report.on_gpu else f"CPU {platform.machine()}")
    report.note("driver", _driver() if report.on_gpu else None)
    triton = importlib.metadata.version("triton") if report.on_gpu else None
    report.note(
        "versions",
        {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda if report.on_gpu else None,
            "cudnn": torch.backends.cudnn.version() if report.on_gpu else None,
            "triton": triton,
        },
    )


def _driver() -> str | None:
    """As nvidia-smi says; torch does not know it."""
    if (command := shutil.which("nvidia-smi")) is None:
        return None
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=60)
    return ended.stdout.split("\n")[0].strip() or None


def measure(report: Report) -> None:
    """Processors and memory of the device; bf16 products (TFLOP/s) and copies (TB/s), the roofline of sampling."""
    if report.on_gpu:
        known = torch.cuda.get_device_properties(report.device)
        report.note("processors", known.multi_processor_count)
        report.note("memory_gib", round(known.total_memory / 2**30, 1))
        report.note("capability", [known.major, known.minor])
        report.note("triton_kernels", use_triton(report.device))  # false without a C compiler or Python's headers
    if report.tiny:
        left, right = (torch.randn(TINY_SIZE, TINY_SIZE, device=report.device).bfloat16() for _ in range(2))
        report.note("product_ms", round(median_ms(lambda: left @ right, report.device), 4))
        return
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        roofline = measure_roofline(report.device, dtype)
        report.note(f"{name}_tflops", round(roofline.flops / 1e12, 1))
        report.note("copy_tbs", round(roofline.bytes / 1e12, 3))
