"""Image sampling and a training step as shares of what this machine can do, measured in the same run.

Model: body 8, head 4 layers, width 256, 8 heads, 2048 codes, maps of 8x8x4, class-conditional, batch 16, fp32. The
roofline of sampling is the larger of two times: model FLOPs over the rate of a large matrix product, and bytes of
weights and caches (each read once per step) over the bandwidth of a large copy. The training step (soft targets,
forward, loss, backward, AdamW) is compared with three times the forward FLOPs at that rate. `--peer` times `generate`
of the RQ-Transformer package, where it is installed, beside our class of the same signature. The variants of a case
take turns; times are medians. Other weight formats are given with what they change. A table, then one JSON line.
`python -m benchmarks.sampling_speed [--peer] [--cpu-time]`
"""

import importlib
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.code_vectors import CodeVectors
from benchmarks.outputs.result_line import end_with_line
from rqtransformer import RQTransformer, RQTransformerConfig, native, sample
from rqtransformer.decoding import Decoder
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss
from runtime.cli import ArgumentParser

BATCH, WIDTH, CODES, GRID = 16, 256, 2048, (8, 8, 4)
BODY, HEAD, HEADS, CLASSES = 8, 4, 8, 10
GEMM_SIZE, COPY_MB = 2048, 256
SAMPLING: dict[str, Any] = {"top_k": 256, "top_p": 0.95}
PEER = "rq_transformer"
TWO_LEVEL = {
    "num_tokens": 1024,
    "dim": 512,
    "max_spatial_seq_len": 64,
    "depth_seq_len": 4,
    "spatial_layers": 8,
    "depth_layers": 4,
    "dim_head": 64,
    "heads": 8,
}
THREE_LEVEL = {
    "num_tokens": 1024,
    "dim": 512,
    "depth": (4, 4, 2),
    "max_seq_len": (16, 4, 5),
    "dim_head": 64,
    "heads": 8,
}
PEER_CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("RQTransformer, batch 8", "RQTransformer", TWO_LEVEL, 8),
    ("RQTransformer, batch 1", "RQTransformer", TWO_LEVEL, 1),
    ("HierarchicalCausalTransformer, batch 1", "HierarchicalCausalTransformer", THREE_LEVEL, 1),
]


def build_model() -> RQTransformer:
    config = RQTransformerConfig.from_mapping(
        {
            "block_size": list(GRID),
            "embed_dim": WIDTH,
            "input_embed_dim": WIDTH,
            "vocab_size": CODES,
            "shared_tok_emb": True,
            "shared_cls_emb": True,
            "input_emb_vqvae": True,
            "head_emb_vqvae": True,
            "cumsum_depth_ctx": True,
            "vocab_size_cond": CLASSES,
            "block_size_cond": 1,
            "body": {"n_layer": BODY, "block": {"n_head": HEADS}},
            "head": {"n_layer": HEAD, "block": {"n_head": HEADS}},
        }
    )
    torch.manual_seed(0)
    return RQTransformer(config)


def weights_of(module: nn.Module | None) -> int:
    """Elements of all weight matrices: the multiply-adds of one row. A layer that the model does not have has none."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def model_cost(model: RQTransformer, batch: int) -> tuple[float, float]:
    """(FLOPs, bytes of weights and caches) of drawing a batch code by code; a forward pass has the same FLOPs."""
    positions, depth = model.num_positions, model.depth
    per_position = weights_of(model.body_transformer) + weights_of(model.input_mlp)
    per_code = weights_of(model.head_transformer) + weights_of(model.classifier)
    weights = positions * (per_position + depth * per_code + (depth - 1) * weights_of(model.head_mlp))
    seen = BODY * positions * (positions + 1) / 2 + HEAD * positions * depth * (depth + 1) / 2
    flops = batch * (2 * weights + 4 * WIDTH * seen)
    return flops, 4 * (weights + 2 * batch * WIDTH * seen)


def medians(
    variants: dict[str, Callable[[], Any]],
    rounds: int,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Seconds per call: the variants take turns, so that all of them see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + warm_up):
        for name, run in variants.items():
            start = clock()
            run()
            if turn >= warm_up:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def machine_variants() -> dict[str, Callable[[], Any]]:
    """One large product and one large copy."""
    left, right = torch.randn(2, GEMM_SIZE, GEMM_SIZE).unbind(0)
    source = torch.randn(COPY_MB * 2**18)
    target = torch.empty_like(source)
    return {"gemm": lambda: torch.mm(left, right), "copy": lambda: target.copy_(source)}


def training_step(model: RQTransformer, tokenizer: CodeVectors) -> Callable[[], None]:
    codes_BHWD = torch.randint(CODES, (BATCH, *GRID))
    cond_B = torch.arange(BATCH) % CLASSES
    targets = SoftTargets(torch.randn(BATCH, *GRID, WIDTH), [tokenizer.book_KE] * GRID[2], temp=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    config = Stage2LossConfig()

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        stage2_loss(model(codes_BHWD, tokenizer, cond_B), codes_BHWD, targets, None, config)[0].backward()
        optimizer.step()
        model.eval()

    return step


def measure_images(rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """Sampling as a share of the roofline, training as a share of the product's rate."""
    model, tokenizer = build_model().eval(), CodeVectors(torch.randn(CODES, WIDTH))
    trained = build_model()
    cond_B = torch.arange(BATCH) % CLASSES
    flops, moved = model_cost(model, BATCH)
    times = medians(
        machine_variants()
        | {
            "sampling": lambda: sample(model, tokenizer, cond_B, **SAMPLING),
            "sampling_one": lambda: sample(model, tokenizer, cond_B[:1], **SAMPLING),
            "training": training_step(trained, tokenizer),
        },
        rounds,
        clock=clock,
    )
    rate, bandwidth = 2 * GEMM_SIZE**3 / times["gemm"], 2 * COPY_MB * 2**20 / times["copy"]
    terms = {"flops_s": flops / rate, "bytes_s": moved / bandwidth}
    machine = {"gemm_gflops": round(rate / 1e9, 1), "copy_gb_s": round(bandwidth / 1e9, 2)}
    sampling = {
        "case": f"sampling, batch {BATCH}",
        "seconds": round(times["sampling"], 4),
        **{name: round(value, 4) for name, value in terms.items()},
        "roofline_percent": round(100 * max(terms.values()) / times["sampling"], 1),
        "flops_percent": round(100 * terms["flops_s"] / times["sampling"], 1),
        "codes_per_s": round(BATCH * GRID[0] * GRID[1] * GRID[2] / times["sampling"]),
        "batch_1_seconds": round(times["sampling_one"], 4),
        **machine,
    }
    training = {
        "case": f"training step, batch {BATCH}",
        "seconds": round(times["training"], 4),
        "flops_s": round(3 * flops / rate, 4),
        "model_flops_percent": round(300 * flops / rate / times["training"], 1),
    }
    return [sampling, training]


@torch.no_grad()
def format_costs(positions: int = 4) -> list[dict[str, Any]]:
    """What other weight formats change: nats per code (KL divergence from fp32), along fixed codes.

    The weights are untrained, so this measures the rounding, not the quality of images.
    """
    model, tokenizer = build_model().eval(), CodeVectors(torch.randn(CODES, WIDTH))
    codes_BTD = sample(model, tokenizer, num_samples=BATCH, **SAMPLING).flatten(1, 2)

    def log_probs(weights: str, dtype: torch.dtype) -> Tensor:
        steps = []
        with model.decoding_mode(dtype, weights):
            cond_BL = model.condition_ids(None, BATCH, codes_BTD.device)
            decoder = Decoder(model, tokenizer, cond_BL, codes_BTD[:, :0], dtype)
            for code_B in codes_BTD[:, :positions].flatten(1).unbind(1):
                steps.append(decoder.logits().float().log_softmax(dim=-1))
                decoder.push(code_B)
        return torch.stack(steps)

    exact = log_probs("dense", torch.float32)
    rows = []
    for weights, dtype in (("dense", torch.bfloat16), ("int8", torch.float32), ("int8", torch.bfloat16)):
        rounded = log_probs(weights, dtype)
        divergence = (exact.exp() * (exact - rounded)).sum(dim=-1).mean().item()
        rows.append(
            {
                "case": f"{weights} weights, {str(dtype).removeprefix('torch.')}",
                "kl_nats": f"{divergence:.1e}",
                "largest_change_nats": round((exact - rounded).abs().max().item(), 4),
            }
        )
    return rows


def measure_peer(
    name: str, class_name: str, arguments: dict[str, Any], batch: int, rounds: int, libraries: dict[str, Any]
) -> dict[str, Any]:
    """`generate` of the same model in each library."""
    variants = {}
    for library, module in libraries.items():
        torch.manual_seed(0)
        model = getattr(module, class_name)(**arguments).eval()
        variants[library] = lambda model=model: model.generate(default_batch_size=batch)
    row: dict[str, Any] = {"case": name}
    times: dict[str, float] = {}
    for library, run in variants.items():
        # a minute per call where every code runs the whole model: one warm call of its parts is enough
        times |= medians({library: run}, 1 if library == "peer" else rounds, warm_up=library != "peer")
        row[f"{library}_seconds"] = round(times[library], 4)
    if len(times) == 2:
        row["times_faster"] = round(times["peer"] / times["ours"], 1)
    return row


def peer_libraries() -> dict[str, Any]:
    """The libraries that can be imported, by role."""
    libraries = {}
    for role, module in (("ours", "rqtransformer.compat"), ("peer", PEER)):
        try:
            libraries[role] = importlib.import_module(module)
        except ImportError as error:
            print(f"{module} cannot be imported ({error}): left out")
    return libraries


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.sampling_speed",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.sampling_speed --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--peer", action="store_true", help=f"also measure {PEER}, where it is installed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="shares of the roofline from processor time, with one thread: for a busy machine",
    )
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.cpu_time:
        if args.threads not in (None, 1):
            parser.error(f"--cpu-time is the time of one thread, not of --threads {args.threads}")
        torch.set_num_threads(1)
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = measure_images(args.rounds, clock) + format_costs()
    if args.peer:
        libraries = peer_libraries()
        rows += [measure_peer(*case, args.rounds, libraries) for case in PEER_CASES] if libraries else []
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    line = {
        "benchmark": "sampling_speed",
        "device": "cpu",
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "compiled": native.serves(torch.empty(0)),
        "clock": "cpu" if args.cpu_time else "wall",
        "rows": rows,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
