"""Time and memory of vector quantizers as multiples of the floor: one GEMM x @ codebook.T plus argmin on its result.

For every case: the floor, an evaluation forward, a training forward, and a training step (forward, backward, codebook
update), as medians of one run in which the variants take turns; and the most memory a training step holds beyond what
was there before it. `--peer` measures vector-quantize-pytorch on the same inputs where it is installed. Residual cases
have one floor per level. A table, then one JSON line. `python -m benchmarks.quantizer_speed [--peer]`
"""

import argparse
import importlib
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from rqvae.quantizers import Quantizer, ResidualQuantizer, VectorQuantizer

PEER = "vector_quantize_pytorch"


@dataclass(frozen=True)
class Case:
    """One quantizer and input: N vectors of size `dim` (over all heads), K codes, `levels` searches per vector."""

    name: str
    num_vectors: int
    num_codes: int
    make: Callable[[], Quantizer]
    peer: dict[str, Any]
    dim: int = 256
    heads: int = 1
    levels: int = 1


def _vector(name: str, num_vectors: int, num_codes: int, **settings: Any) -> Case:
    heads = settings.get("heads", 1)
    peer: dict[str, Any] = {"class": "VectorQuantize", "codebook_size": num_codes, "rotation_trick": False}
    if settings.get("distance") == "cosine":
        peer["use_cosine_sim"] = True
    if heads > 1:
        peer |= {"heads": heads, "codebook_dim": 256 // heads, "separate_codebook_per_head": True}
    return Case(name, num_vectors, num_codes, lambda: VectorQuantizer(256, num_codes, **settings), peer, heads=heads)


def _residual(name: str, num_vectors: int, num_codes: int, levels: int) -> Case:
    peer = {"class": "ResidualVQ", "codebook_size": num_codes, "num_quantizers": levels, "shared_codebook": True,
            "rotation_trick": False}
    return Case(name, num_vectors, num_codes, lambda: ResidualQuantizer(256, (num_codes,) * levels, shared=True),
                peer, levels=levels)


CASES = [
    _vector("vq-16384-n2048", 2048, 16384),
    _vector("vq-16384-n8192", 8192, 16384),
    _vector("vq-1024-n8192", 8192, 1024),
    _vector("vq-1024-n8192-rotation", 8192, 1024, estimator="rotation"),
    _vector("cosine-16384-n2048", 2048, 16384, distance="cosine"),
    _vector("heads-8x8196-n1024", 1024, 8196, heads=8, separate_codebooks=True),
    _residual("residual-4x16384-n2048", 2048, 16384, 4),
    _residual("residual-8x1024-n2048", 2048, 1024, 8),
]


def floor_of(case: Case, device: torch.device) -> Callable[[], None]:
    """The searches alone, each on its whole N x K matrix."""
    shape = (case.num_vectors, case.dim // case.heads)
    searches = [(torch.randn(shape, device=device), torch.randn(case.num_codes, shape[1], device=device))
                for _ in range(case.heads)]

    def run() -> None:
        for _ in range(case.levels):
            for x, weight in searches:
                (x @ weight.T).argmin(1)

    return run


def variants_of(make: Callable[[], nn.Module], x: torch.Tensor) -> dict[str, Callable[[], None]]:
    """What is timed of one library. Its outputs begin with the quantized vectors and (codes,) the loss."""
    training, evaluation = make().to(x.device).train(), make().to(x.device).eval()
    update = getattr(training, "update_codebook", lambda: None)
    leaf = x.clone().requires_grad_()

    def step() -> None:
        quantized, _, loss, *_ = training(leaf)
        leaf.grad = None
        (quantized.sum() + loss.sum()).backward()
        update()

    def forward() -> None:
        training(leaf)
        update()

    @torch.no_grad()
    def evaluate() -> None:
        evaluation(x)

    return {"eval": evaluate, "forward": forward, "train": step}


def extra_memory(run: Callable[[], None], device: torch.device) -> float:
    """MB (10^6 bytes) that `run` holds at most beyond what was allocated before."""
    run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def medians(variants: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each variant; they take turns, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number > 0:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, rounds: int, device: torch.device, peer: Any) -> dict[str, Any]:
    """One row per case: milliseconds, multiples of the floor, extra memory in training."""
    torch.manual_seed(0)
    x = torch.randn(1, case.num_vectors, case.dim, device=device)
    libraries = {"ours": case.make}
    if peer is not None:
        settings = {name: value for name, value in case.peer.items() if name != "class"}
        libraries["peer"] = lambda: getattr(peer, case.peer["class"])(dim=case.dim, **settings)
    variants = {"floor": floor_of(case, device)}
    for library, make in libraries.items():
        variants |= {f"{library}_{name}": run for name, run in variants_of(make, x).items()}
    times = medians(variants, rounds, device)
    row: dict[str, Any] = {"case": case.name, "floor_ms": round(times.pop("floor"), 2)}
    row |= {name: round(value / row["floor_ms"], 3) for name, value in times.items()}
    row |= {f"{name}_mb": round(extra_memory(variants[f"{name}_train"], device), 1) for name in libraries}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", action="store_true", help=f"also measure {PEER}, where it is installed")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    peer = None
    if args.peer:
        try:
            peer = importlib.import_module(PEER)
        except ImportError as error:
            print(f"{PEER} cannot be imported ({error}): measuring ours alone")
    rows = []
    for case in CASES:
        if args.cases and case.name not in args.cases:
            continue
        rows.append(measure(case, args.rounds, torch.device(args.device), peer))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    line = json.dumps({"benchmark": "quantizer_speed", "unit": "multiples of the floor", "device": args.device,
                       "torch": torch.__version__, "machine": platform.machine(), "rounds": args.rounds,
                       "threads": torch.get_num_threads(), "rows": rows})
    if args.output is not None:
        args.output.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
