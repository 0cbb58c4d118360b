"""Time and memory of vector quantizers as multiples of the floor: one GEMM x @ codebook.T plus argmin on its result.

For every case of `speed_cases`: the floor, an evaluation forward, a training forward, and a training step (forward,
backward, codebook update), as medians of one run in which the variants take turns; and the most memory a training step
(an evaluation, where a method is not trained) holds beyond what was there before it. `--peer` measures
vector-quantize-pytorch on the same inputs where it is installed. Residual cases have one floor per level. Methods that
search nothing have no floor: their times are in milliseconds only. A table, then one JSON line.
`python -m benchmarks.quantizer_speed [--peer]`
"""

import importlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.outputs.result_line import end_with_line
from benchmarks.speed_cases import CASES, Case, floor_of
from runtime.cli import ArgumentParser

PEER = "vector_quantize_pytorch"


def variants_of(
    make: Callable[[], nn.Module], x: torch.Tensor, passes: Sequence[str] = ("eval", "forward", "train")
) -> dict[str, Callable[[], None]]:
    """What is timed of one library. Its outputs begin with the quantized vectors; the floats after it are losses."""
    torch.manual_seed(0)
    training, evaluation = make().to(x.device).train(), make().to(x.device).eval()
    update = getattr(training, "update_codebook", lambda: None)
    leaf = x.clone().requires_grad_()

    def step() -> None:
        quantized, *rest = training(leaf)
        loss = quantized.sum()
        for value in rest:
            if torch.is_tensor(value) and value.is_floating_point():
                loss = loss + value.sum()
        leaf.grad = None
        loss.backward()
        update()

    def forward() -> None:
        training(leaf)
        update()

    @torch.no_grad()
    def evaluate() -> None:
        evaluation(x)

    return {name: run for name, run in {"eval": evaluate, "forward": forward, "train": step}.items() if name in passes}


def extra_memory(run: Callable[[], None], device: torch.device, warm_up: bool = True) -> float:
    """MB (10^6 bytes) that `run` holds at most beyond what was allocated before. warm_up: run it once before."""
    if warm_up:
        run()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 1e6


def medians(
    variants: dict[str, Callable[[], None]], rounds: int, device: torch.device, longest: float = 60.0
) -> dict[str, float]:
    """Median milliseconds of each variant; they take turns, so that a busy moment meets all of them.

    A variant that takes more than `longest` seconds is run once more and no further.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            if number > 1 and times[name][0] > 1e3 * longest:
                continue
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number > 0:  # the first round warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(case: Case, rounds: int, device: torch.device, peer: Any) -> dict[str, Any]:
    """One row per case: milliseconds, multiples of the floor and of the peer, extra memory."""
    torch.manual_seed(0)
    x = torch.randn(1, case.num_vectors, case.dim, device=device)
    libraries = {"ours": (case.make, x)}
    if peer is not None:
        settings = {name: value for name, value in case.peer.items() if name != "class"}
        libraries["peer"] = (lambda: getattr(peer, case.peer["class"])(**settings), case.peer_input(x))
    floor = floor_of(case, device)
    variants = {} if floor is None else {"floor": floor}
    for library, (make, given) in libraries.items():
        runs = variants_of(make, given, case.passes)
        variants |= {f"{library}_{name}": run for name, run in runs.items()}
    times = medians(variants, rounds, device)
    row: dict[str, Any] = {"case": case.name, "floor_ms": None if floor is None else round(times.pop("floor"), 2)}
    row |= {f"{name}_ms": round(value, 2) for name, value in times.items()}
    if floor is not None:
        row |= {name: round(value / row["floor_ms"], 3) for name, value in times.items()}
    if peer is not None:
        row |= {f"speedup_{name}": round(times[f"peer_{name}"] / times[f"ours_{name}"], 2) for name in case.passes}
    last = case.passes[-1]
    row |= {f"{name}_mb": round(extra_memory(variants[f"{name}_{last}"], device), 1) for name in libraries}
    return row


def load_peer() -> Any:
    """The peer library, or None with a line that says why."""
    try:
        return importlib.import_module(PEER)
    except ImportError as error:
        print(f"{PEER} cannot be imported ({error}): measuring ours alone")
        return None


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.quantizer_speed",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.quantizer_speed --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--peer", action="store_true", help=f"also measure {PEER}, where it is installed")
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=[case.name for case in CASES],
        metavar="CASE",
        help=f"default: all of {', '.join(case.name for case in CASES)}",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {args.rounds}")
    peer = load_peer() if args.peer else None
    rows = []
    for case in CASES:
        if args.cases and case.name not in args.cases:
            continue
        rows.append(measure(case, args.rounds, torch.device(args.device), peer))
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    line = {
        "benchmark": "quantizer_speed",
        "unit": "multiples of the floor; *_ms, *_mb absolute",
        "device": args.device,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "peer": getattr(peer, "__version__", "installed") if peer is not None else None,
        "rows": rows,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
