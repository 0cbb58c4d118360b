"""What is run on a GPU, in the order of its value: the one table of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtime.errors import UserError


class Item(NamedTuple):
    """One part of the acceptance, run in a process of its own.

    Attributes:
        name: as `--only` takes it and the result lines carry it.
        target: "module:function" of `benchmarks.gpu.items`; called with a `report.Report`.
        seconds: estimated on an H100, start of the process and building of models included.
        what: one line for the table.
        own_run: part of a run only where it is named, or what it needs is given.
    """

    name: str
    target: str
    seconds: int
    what: str
    own_run: bool = False


PLAN = (
    Item("environment", "environment:measure", 8, "GPU, driver, versions, large product and copy"),
    Item("golden", "golden:compare", 8, "golden folders, 10 x their tolerance"),
    Item("cpu_and_gpu", "correctness:cpu_and_gpu", 15, "codes, logits, losses, gradients, steps: CPU = GPU"),
    Item("sampler_graphs", "sampler_correctness:variants", 20, "codes with graphs = without, all variants"),
    Item("graph_reuse", "sampler_correctness:reuse", 8, "one recording for calls, smaller batches, two streams"),
    Item("kernels", "kernels:compare", 20, "every Triton kernel = its plain twin"),
    Item("compiled_stage1", "compiled:stage1", 45, "compiled = eager, with and without GAN and LPIPS"),
    Item("compiled_stage2", "compiled:stage2", 25, "compiled = eager"),
    Item("half_precision", "correctness:half_precision", 12, "bf16 and fp16 steps of both stages are finite"),
    Item("attention", "correctness:attention", 4, "scaled dot product: backend, error, time by shape"),
    Item("capture", "sampler_correctness:capture_beside_loader", 12, "recordings beside a thread that pins memory"),
    Item("resume", "resume:compare", 30, "8 steps = 4 + 4 steps of `main_stage1.py`, bit for bit"),
    Item("sampler_8x8x4", "sampler:deep", 40, "1.4B, 8x8x4, batch 1, 100, 200, 500"),
    Item("sampler_16x16x1", "sampler:flat", 20, "1.4B, 16x16x1, batch 200"),
    Item("sampler_int8", "sampler:int8", 12, "1.4B, 8x8x4, int8 weights, batch 1"),
    Item("stage2_480m", "training:stage2_480m", 18, "480M step from images and latents"),
    Item("stage2_1400m", "training:stage2_1400m", 30, "1.4B step from images and latents"),
    Item("stage1_256", "training:stage1", 60, "256 px step with LPIPS and GAN: fp32, bf16, compiled"),
    Item("quantizers", "features:quantizers", 12, "quantizers beside their products"),
    Item("inception", "features:inception", 12, "Inception images/s"),
    Item("profiles", "profiles:slowest", 40, "kernels and gaps of the three furthest from the device's limit"),
    Item("fashion_mnist", "fashion_mnist:train_and_score", 120, "both stages to FID at full size", own_run=True),
)
TINY_SECONDS, TINY_LIMIT = 3, 120  # of every item with tiny sizes on a CPU: estimate, and where it is ended


def chosen(names: Sequence[str] | None, own_runs: bool) -> list[Item]:
    """The items of these names, in the plan's order; without names all, those of a run of their own with `own_runs`.

    Raises:
        UserError: a name that is not there.
    """
    known = [item.name for item in PLAN]
    for name in names or ():
        if name not in known:
            raise UserError(f"--only {name}: no such item; there are {', '.join(known)}")
    return [item for item in PLAN if (item.name in names if names else own_runs or not item.own_run)]


def print_plan() -> None:
    """Items with their estimated seconds, and the sum of a default run."""
    for item in PLAN:
        print(f"{item.name:<16} {item.seconds:>4} s  {item.what}{' (a run of its own)' if item.own_run else ''}")
    print(f"{'sum':<16} {sum(item.seconds for item in PLAN if not item.own_run):>4} s, estimated for an H100")
    for item in PLAN:
        if item.own_run:
            print(f"then, in a second run: {item.name}, {item.seconds} s")
