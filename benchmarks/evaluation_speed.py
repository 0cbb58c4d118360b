"""What evaluation costs: statistics of 50,000 features, the Frechet distance, feature extraction.

Three cases, each against something of the same run:
- statistics: mean and covariance of 50,000 x 2048 features that arrive in batches, and how much memory that takes: the
  growth of a fresh process's resident size (highest ever minus before, so never too little; Linux).
- frechet: the distance at 2048 dimensions against `scipy.linalg.sqrtm` of the product of the same covariances.
- extraction: uint8 images to features and logits against the bare network on pixels made ready, both in the same
  process; with `--device cuda` on the GPU.
The variants of a case take turns; times are medians. A table, then one JSON line.
`python -m benchmarks.evaluation_speed [--device cuda] [--threads T] [--output FILE]`
"""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import scipy.linalg
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.outputs.result_line import end_with_line
from evaluation.metrics.frechet import frechet_distance
from evaluation.networks.inception import INPUT_SIZE, InceptionFeatures, fid_inception_network
from evaluation.statistics import statistics_of
from runtime.cli import ArgumentParser
from runtime.processes.system import peak_memory_bytes

NUM_FEATURES, DIM, FEATURE_BATCH = 50_000, 2048, 250
IMAGE_SIZE, IMAGE_BATCH = 256, {"cpu": 8, "cuda": 128}


def medians(variants: dict[str, Callable[[], object]], rounds: int, warm_up: bool) -> dict[str, float]:
    """Median seconds of each variant; they take turns, so that a busy moment meets all of them."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + warm_up):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def feature_stream(num: int, dim: int) -> Iterator[Tensor]:
    """Correlated, rectified features in batches; every batch is made when it is asked for."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, num, FEATURE_BATCH):
        noise_NF = torch.randn(min(FEATURE_BATCH, num - start), dim, generator=generator)
        yield noise_NF.add_(noise_NF[:, :1]).relu_()


def resident_mb() -> float:
    """Resident size now, in 10^6 bytes; of Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def _statistics_in_fresh_process(num: int, dim: int, threads: int, results: Any) -> None:
    torch.set_num_threads(threads)
    small = torch.ones(64, 64, dtype=torch.float64)
    small.addmm_(small, small)  # the library's own buffers are there before
    before, start = resident_mb(), time.perf_counter()
    total = statistics_of(feature_stream(num, dim), dim).all_reduce(lambda tensor: None).gaussian()
    seconds = time.perf_counter() - start
    peak = (peak_memory_bytes() or 0) / 1e6
    results.put({"seconds": round(seconds, 2), "peak_extra_mb": round(peak - before, 1), "images": total.num})


def measure_statistics(num: int = NUM_FEATURES, dim: int = DIM) -> dict[str, Any]:
    """Time and peak extra memory of the moments of `num` features, over a single process's ranks and batches."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_statistics_in_fresh_process, args=(num, dim, torch.get_num_threads(), results))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process that measures memory ended with {process.exitcode}")
    held = {"features_mb": round(4e-6 * num * dim, 1), "covariance_mb": round(8e-6 * dim * dim, 1)}
    return {"case": "statistics", "dim": dim, **results.get(), **held}


def measure_frechet(rounds: int, dim: int = DIM) -> dict[str, Any]:
    """Our whole distance against the root of the product alone, which is most of the usual one."""
    first, second = (statistics_of([batch @ mixing], dim).gaussian() for batch, mixing in _mixed(dim))
    covariances = first.covariance_FF.numpy(), second.covariance_FF.numpy()
    moments = (first.mean_F, first.covariance_FF, second.mean_F, second.covariance_FF)
    roots: list[float] = []
    times = medians({
        "ours": lambda: frechet_distance(*moments),
        "sqrtm": lambda: roots.append(float(scipy.linalg.sqrtm(covariances[0] @ covariances[1]).trace().real)),
    }, rounds, warm_up=False)  # fmt: skip
    expected = float(
        (first.mean_F - second.mean_F).square().sum()
        + first.covariance_FF.trace()
        + second.covariance_FF.trace()
        - 2 * roots[-1]
    )
    return {
        "case": "frechet",
        "dim": dim,
        **{f"{name}_seconds": round(s, 3) for name, s in times.items()},
        "times_faster": round(times["sqrtm"] / times["ours"], 2),
        "relative_difference": abs(frechet_distance(*moments) / expected - 1),
    }


def _mixed(dim: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Two sets of 4 x dim samples, each with an own full-rank mixing."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        samples = torch.randn(4 * dim, dim, generator=generator, dtype=torch.float64)
        yield samples, torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5


def measure_extraction(rounds: int, device: str) -> dict[str, Any]:
    """Images per second of `InceptionFeatures`, and of its network alone on ready float32 pixels."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "random.safetensors"
        network = fid_inception_network()
        save_file(network.state_dict(), path)
        extractor = InceptionFeatures(path, device)
    network = network.eval().requires_grad_(False).to(device)
    batch = IMAGE_BATCH[torch.device(device).type]
    image_BCHW = torch.randint(256, (batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    ready_BCHW = torch.rand(batch, 3, INPUT_SIZE, INPUT_SIZE, device=device)

    @torch.no_grad()
    def bare() -> Tensor:
        return network(ready_BCHW)

    times = medians({"ours": lambda: extractor(image_BCHW), "bare": bare}, rounds, warm_up=True)
    return {
        "case": "extraction",
        "batch": batch,
        **{f"{n}_images_per_second": round(batch / s, 2) for n, s in times.items()},
        "share_of_bare_speed": round(times["bare"] / times["ours"], 3),
    }


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.evaluation_speed",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.evaluation_speed --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--rounds", type=int, default=7, help="of extraction (default: 7); frechet takes 3 at most")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of extraction")
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    cases = (
        measure_statistics,
        lambda: measure_frechet(min(args.rounds, 3)),
        lambda: measure_extraction(args.rounds, args.device),
    )
    rows = []
    for measure in cases:
        rows.append(measure())
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    line = {
        "benchmark": "evaluation_speed",
        "device": device,
        "torch": torch.__version__,
        "scipy": scipy.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "rows": rows,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
