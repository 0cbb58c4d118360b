"""The models that items build: small ones for comparisons, the published ones for times. Random weights."""

from __future__ import annotations

import copy
import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.code_vectors import CodeVectors
from benchmarks.gpu.report import Report
from benchmarks.training_speed import build_stage1, build_stage2, write_random_vgg16
from rqtransformer import RQTransformer, RQTransformerConfig
from runtime.config import load_config
from runtime.device import use_device
from runtime.distributed import DistEnv
from training.stages.stage1 import Stage1, Stage1Config
from training.stages.stage2 import Stage2, Stage2Config

IMAGENET = Path("configs/imagenet256")
STAGE1 = IMAGENET / "stage1" / "in256-rqvae-8x8x4.yaml"
SMALL_CODES, SMALL_WIDTH, SMALL_RESOLUTION = 128, 32, 32
SMALL_GRID = (4, 4, 3)
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0}
# the same of a config: the draws of a GPU, and of compiled code, are others
WITHOUT_DROPOUT = ["arch.embd_pdrop=0.0"]
WITHOUT_DROPOUT += [
    f"arch.{stack}.block.{name}={value}" for stack in ("body", "head") for name, value in NO_DROPOUT.items()
]
# the published stage 1 with fewer and smaller layers: 8x8x4 codes of 32x32 images
SMALL_STAGE1 = [
    "arch.ddconfig.ch=32",
    "arch.ddconfig.ch_mult=[1,1,2]",
    f"arch.ddconfig.resolution={SMALL_RESOLUTION}",
    "arch.ddconfig.attn_resolutions=[8]",
    "arch.ddconfig.num_res_blocks=1",
    "arch.ddconfig.z_channels=16",
    "arch.hparams.n_embed=64",
    "arch.hparams.embed_dim=16",
    "arch.hparams.latent_shape=[8,8,16]",
    "arch.hparams.code_shape=[8,8,4]",
    "arch.checkpointing=false",
    "experiment.batch_size=4",
]
SMALL_STAGE2 = [
    "arch.block_size=[8,8,4]",
    "arch.embed_dim=64",
    "arch.input_embed_dim=16",
    "dataset.vocab_size=64",
    "arch.body.n_layer=1",
    "arch.head.n_layer=1",
    "arch.body.block.n_head=4",
    "arch.head.block.n_head=4",
    "experiment.batch_size=2",
]


def environment(device: torch.device) -> DistEnv:
    """One process on the device."""
    return DistEnv(rank=0, world_size=1, local_rank=0, device=device, backend="none")


def as_in_training(report: Report) -> DistEnv:
    """The switches that training sets, TF32 among them."""
    env = environment(report.device)
    use_device(env)
    return env


def small_transformer(device: torch.device, body: dict[str, Any] | None = None, **changes: Any) -> RQTransformer:
    """The same weights on every device. body: changes of its blocks."""
    config = {
        "block_size": list(SMALL_GRID),
        "embed_dim": 64,
        "input_embed_dim": SMALL_WIDTH,
        "vocab_size": SMALL_CODES,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 10,
        "block_size_cond": 1,
        "embd_pdrop": 0.0,
        "body": {"n_layer": 3, "block": {"n_head": 4, **NO_DROPOUT, **(body or {})}},
        "head": {"n_layer": 2, "block": {"n_head": 4, **NO_DROPOUT}},
        **changes,
    }
    torch.manual_seed(0)
    return RQTransformer(RQTransformerConfig.from_mapping(config)).eval().to(device)


def small_tokenizer(device: torch.device) -> CodeVectors:
    """The code vectors of `small_transformer`."""
    return CodeVectors(drawn((SMALL_CODES, SMALL_WIDTH), 5).to(device))


def small_codes(number: int) -> Tensor:
    """Code maps for `small_transformer`."""
    return torch.randint(0, SMALL_CODES, (number, *SMALL_GRID), generator=torch.Generator().manual_seed(1))


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    """Normal numbers, the same on every device: drawn on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(number: int, resolution: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of stage 1 or stage 2."""
    generator = torch.Generator().manual_seed(1)
    image_BCHW = torch.rand(number, 3, resolution, resolution, generator=generator) * 2 - 1
    return {"image": image_BCHW.to(device), "label": torch.arange(number, device=device) % 10}


@functools.cache
def _read(schema: type, path: Path, words: tuple[str, ...]) -> Any:
    """A typed config, which nobody may change: to read one takes longer than to build a small model of it."""
    return load_config(schema, path, list(words))


def imagenet_stage1(device: torch.device, overrides: list[str], small: bool) -> Stage1:
    """The published stage 1 with LPIPS (random VGG weights) and GAN, or a small one of the same parts."""
    config = copy.deepcopy(_read(Stage1Config, STAGE1, (*(SMALL_STAGE1 if small else []), *overrides)))
    if config.gan is None:
        return build_stage1(config, environment(device))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config.gan.loss.perceptual_backbone = str(write_random_vgg16(Path(folder) / "vgg16.safetensors"))
        return build_stage1(config, environment(device))


def imagenet_stage2(device: torch.device, size: str, overrides: list[str], small: bool) -> Stage2:
    """A published stage 2 on an untrained stage 1, or a small one of the same parts. size: 480M, 1400M."""
    tokenizer = imagenet_stage1(torch.device("cpu"), ["gan=null", "experiment.precision=fp32"], small)
    words = ("experiment.total_batch_size=null", *(SMALL_STAGE2 if small else []), *overrides)
    path = IMAGENET / "stage2" / f"in256-rqtransformer-8x8x4-{size}.yaml"
    return build_stage2(copy.deepcopy(_read(Stage2Config, path, words)), tokenizer, environment(device))


def run_steps(stage: Stage1 | Stage2, batch: dict[str, Tensor], number: int) -> list[dict[str, float]]:
    """What so many steps on the same batch report."""
    rows = [stage.train_step([batch], step + 1) for step in range(number)]
    return [{name: float(value) for name, value in row.items()} for row in rows]


def gradients_of(stage: Stage1 | Stage2, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """The gradients of one step as one vector, clipped as the step clips them, and what the step reports."""
    kept: list[Tensor] = []

    def keep(*_: Any) -> None:
        for parameter in stage.update.parameters:
            gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            kept.append(gradient.detach().float().flatten().cpu())

    handle = stage.update.optimizer.register_step_pre_hook(keep)
    torch.manual_seed(0)
    (row,) = run_steps(stage, batch, 1)
    handle.remove()
    return torch.cat(kept), row
