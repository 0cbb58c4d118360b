"""Training steps of both stages as shares of what this machine can do, measured in the same run.

The steps are those of the training scripts (`Stage1.train_step`, `Stage2.train_step`) on images that lie ready:
forward, loss, backward, optimizer, codebook. Their floating-point operations are counted by torch while one step runs,
look-ups and attention included, and divided by the time of a step and by the rate of one large matrix product; step
and products take turns of the same length. On a CPU, in fp32:

- stage 1: 64x64 images, ch 64, ch_mult 1 1 2 2, attention at 8, codes 8x8x4 of 2,048, batch 8, no GAN, no LPIPS;
- stage 2: body 8, head 4 layers, width 256, stochastic soft targets from 64x64 images, batch 16.

With `--device cuda`: the published ImageNet RQ-VAE with GAN and LPIPS (random VGG weights) in fp32, and in bf16 with
channels_last and torch.compile; and the 1.4B stage-2 step in bf16. The device is set up as for training, so that fp32
products on it are TF32. A table, then one JSON line.
`python -m benchmarks.training_speed [--threads N] [--rounds N] [--cpu-time] [--device cuda]`
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg16

from benchmarks.outputs.result_line import end_with_line
from measure_throughput.roofline import GEMM_SIZES, synchronize
from runtime.cli import ArgumentParser
from runtime.config import load_config
from runtime.device import use_device
from runtime.distributed import DistEnv
from training.checkpoints.snapshots import save_snapshot
from training.experiment import plan_batches
from training.loop.throughput import FlopCounter
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

IMAGENET_STAGE1 = Path("configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml")
IMAGENET_STAGE2 = Path("configs/imagenet256/stage2/in256-rqtransformer-8x8x4-1400M.yaml")
NUM_IMAGES = 10_000  # of the data set that the step counts are planned for; no image is read
STAGE1: dict[str, Any] = {
    "arch": {
        "hparams": {
            "embed_dim": 128,
            "n_embed": 2048,
            "latent_shape": [8, 8, 128],
            "code_shape": [8, 8, 4],
            "shared_codebook": True,
            "restart_unused_codes": True,
            "codebook_update": "deferred",
        },
        "ddconfig": {
            "z_channels": 128,
            "resolution": 64,
            "ch": 64,
            "ch_mult": [1, 1, 2, 2],
            "num_res_blocks": 2,
            "attn_resolutions": [8],
        },
    },
    "optimizer": {"type": "adam", "init_lr": 4e-5, "betas": [0.5, 0.9]},
    "experiment": {"batch_size": 8, "max_steps": 1000, "precision": "fp32"},
}
STAGE2: dict[str, Any] = {
    "arch": {
        "block_size": [8, 8, 4],
        "embed_dim": 256,
        "input_embed_dim": 128,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 10,
        "body": {"n_layer": 8, "block": {"n_head": 8}},
        "head": {"n_layer": 4, "block": {"n_head": 8}},
    },
    "loss": {"type": "soft_target_cross_entropy", "stochastic_codes": True, "temp": 0.5},
    "optimizer": {"type": "adamW", "init_lr": 5e-4, "betas": [0.9, 0.95], "max_gn": 1.0},
    "experiment": {"batch_size": 16, "max_steps": 1000, "precision": "fp32"},
}


class Case(NamedTuple):
    """One step to time: what it is called, the step, its operations, and the images it sees."""

    name: str
    step: Callable[[], Any]
    flops: int
    images: int


def typed(schema: type, values: Mapping[str, Any]) -> Any:
    """The config dataclass with these values, checked like a YAML file."""
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))


def write_random_vgg16(file: Path) -> Path:
    """Random weights under torchvision's names: the arithmetic of LPIPS does not depend on their values.

    Only those of the convolutions; drawing the classifier's, nine tenths of all, takes seconds.
    """
    with torch.device("meta"):
        features = vgg16(weights=None).features
    tensors = {}
    for name, tensor in features.to_empty(device="cpu").state_dict().items():
        if tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.zeros_(tensor)
        tensors[f"features.{name}"] = tensor
    save_file(tensors, file)
    return file


def build_stage1(config: Stage1Config, env: DistEnv) -> Stage1:
    torch.manual_seed(0)
    return Stage1(config, plan_batches(config.experiment, NUM_IMAGES, 1), env)


def build_stage2(config: Stage2Config, tokenizer: Stage1, env: DistEnv) -> Stage2:
    """Stage 2 on the codes of an untrained stage 1, whose snapshot is read back as in training."""
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot"
        save_snapshot(snapshot, tokenizer.snapshot()[0], tokenizer.config, {"step": 0, "epoch": 0.0})
        config.vqvae.ckpt = str(snapshot)
        torch.manual_seed(0)
        return Stage2(config, plan_batches(config.experiment, NUM_IMAGES, 1), env)


def prepare(name: str, stage: Stage1 | Stage2, resolution: int, env: DistEnv) -> Case:
    """Makes a batch, warms the step up and counts its operations."""
    batch_size = stage.config.experiment.batch_size
    batch = {
        "image": torch.rand(batch_size, 3, resolution, resolution, device=env.device) * 2 - 1,
        "label": torch.arange(batch_size, device=env.device) % 10,
    }

    def step() -> Any:
        return stage.train_step([batch], 1)

    step()
    with FlopCounter() as counter:
        step()
    step()
    return Case(name, step, counter.flops, batch_size)


def gemm(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], Any], int]:
    """One large product, and its operations."""
    size = GEMM_SIZES[device.type]
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product), 2 * size**3


def measure(case: Case, env: DistEnv, dtype: torch.dtype, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """The step beside the product: both take turns of about the same length, times are medians."""
    product, product_flops = gemm(env.device, dtype)

    def seconds_of(run: Callable[[], Any], repeats: int = 1) -> float:
        synchronize(env.device)
        start = clock()
        for _ in range(repeats):
            run()
        synchronize(env.device)
        return (clock() - start) / repeats

    seconds_of(product)
    # one product is short enough to fall into a quiet or a busy moment of a shared machine
    repeats = max(1, round(seconds_of(case.step) / seconds_of(product)))
    turns = [(seconds_of(product, repeats), seconds_of(case.step)) for _ in range(rounds)]
    gemm_seconds, seconds = map(statistics.median, zip(*turns))
    rate = product_flops / gemm_seconds
    return {
        "case": case.name,
        "seconds": round(seconds, 4),
        "images_per_s": round(case.images / seconds, 2),
        "gflop": round(case.flops / 1e9, 1),
        "gemm_gflops": round(rate / 1e9, 1),
        "model_flops_percent": round(100 * case.flops / rate / seconds, 1),
    }


def cpu_rows(env: DistEnv, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """The two small models in fp32."""
    stage1 = build_stage1(typed(Stage1Config, STAGE1), env)
    stage2 = build_stage2(typed(Stage2Config, STAGE2), stage1, env)
    resolution = stage1.config.arch.ddconfig.resolution
    return [
        measure(prepare(name, stage, resolution, env), env, torch.float32, rounds, clock)
        for name, stage in (("stage-1 step, fp32", stage1), ("stage-2 step, fp32", stage2))
    ]


def gpu_rows(env: DistEnv, rounds: int, batch_sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """The published ImageNet models: stage 1 in two number formats, the 1.4B stage 2 in bf16."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        vgg = write_random_vgg16(Path(folder) / "vgg16.safetensors")
        shared = [
            f"experiment.batch_size={batch_sizes[0]}",
            f"gan.loss.perceptual_backbone={vgg}",
            "arch.checkpointing=false",
        ]
        fast = ["experiment.channels_last=true", "experiment.compile=true"]
        for name, dtype, extra in (("fp32", torch.float32, []), ("bf16", torch.bfloat16, fast)):
            config1 = load_config(Stage1Config, IMAGENET_STAGE1, [*shared, f"experiment.precision={name}", *extra])
            stage1 = build_stage1(config1, env)
            case = prepare(f"ImageNet stage 1, {name}", stage1, config1.arch.ddconfig.resolution, env)
            rows.append(measure(case, env, dtype, rounds, time.perf_counter))
            del case
    # operations as the fp32 step counts them: compiled kernels are not all seen by the counter
    rows[1]["gflop"] = rows[0]["gflop"]
    rows[1]["model_flops_percent"] = round(100 * rows[0]["gflop"] / rows[1]["gemm_gflops"] / rows[1]["seconds"], 1)
    rows[1]["times_faster"] = round(rows[0]["seconds"] / rows[1]["seconds"], 2)
    config2 = load_config(
        Stage2Config, IMAGENET_STAGE2, [f"experiment.batch_size={batch_sizes[1]}", "experiment.precision=bf16"]
    )
    case = prepare("ImageNet stage 2, 1.4B, bf16", build_stage2(config2, stage1, env), 256, env)
    rows.append(measure(case, env, torch.bfloat16, rounds, time.perf_counter))
    return rows


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__.splitlines()[0],
        example="python -m benchmarks.training_speed --device cpu --rounds 3",
        takes_words=False,
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread: for a busy machine")
    parser.add_argument(
        "--batch-sizes", type=int, nargs=2, default=(32, 32), metavar=("STAGE1", "STAGE2"), help="of the two GPU models"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON line to this file")
    args = parser.parse_args()
    if args.cpu_time and (args.device != "cpu" or args.threads not in (None, 1)):
        parser.error("--cpu-time is the time of one CPU thread")
    if args.cpu_time or args.threads is not None:
        torch.set_num_threads(args.threads or 1)
    env = DistEnv(rank=0, world_size=1, local_rank=0, device=torch.device(args.device), backend="none")
    use_device(env)
    if args.device == "cpu":
        rows = cpu_rows(env, args.rounds, time.process_time if args.cpu_time else time.perf_counter)
    else:
        rows = gpu_rows(env, args.rounds, tuple(args.batch_sizes))
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    name = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    line = {
        "benchmark": "training_speed",
        "device": args.device,
        "machine": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "clock": "cpu" if args.cpu_time else "wall",
        "rows": rows,
    }
    end_with_line(line, args.output)


if __name__ == "__main__":
    main()
