"""Stage 1 on fake CUDA tensors: training steps with every bottleneck, both codebook updates, GAN and LPIPS.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.config import load_config
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.random_vgg16 import write_random_vgg16
from tests.training.tiny_runs import GAN, stage1, write_config
from training.experiment import plan_batches
from training.stages.stage1 import Stage1, Stage1Config


@pytest.fixture(scope="session")
def vgg16(tmp_path_factory) -> Path:
    return write_random_vgg16(tmp_path_factory.mktemp("vgg16") / "vgg16.pth")


def built(gpu, tmp_path: Path, changes: dict[str, Any]) -> Stage1:
    config = load_config(Stage1Config, write_config(tmp_path / "config.yaml", stage1(changes)))
    plan = plan_batches(
        config.experiment, num_images=40, world_size=1, grad_accm_steps=config.optimizer.grad_accm_steps
    )
    return Stage1(config, plan, gpu)


def image_batch(size: int = 8) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(4, 3, size, size, device=CUDA), "label": torch.zeros(4, dtype=torch.long, device=CUDA)}


PER_DEPTH = {"arch.hparams.codebook_update": "per_depth", "gan.disc.arch.use_actnorm": True, "optimizer.type": "sgd"}
CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bf16, recomputed, perceptual": (
        {"experiment.precision": "bf16", "experiment.gradient_checkpointing": True, "gan.loss.perceptual_weight": 1.0},
        {},
    ),
    "published update": (
        {"experiment.precision": "fp32", **PER_DEPTH},
        {"rqvae/losses/normalization.py:forward": "whether ActNorm has started is read once, as it may be loaded"},
    ),
    "left out when not finite": (
        {"experiment.precision": "fp32", "experiment.non_finite": "skip"},
        {"training/optimization/update.py:_finite": "the config asks for a decision in every step"},
    ),
    "fp16": (
        {"experiment.precision": "fp16"},
        {},
    ),
}


QUICK = ("bf16, recomputed, perceptual", "published update")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_step_with_gan(gpu, tmp_path, vgg16, case):
    changes, legal = CASES[case]
    size = {"arch.ddconfig.resolution": 16, "arch.ddconfig.ch_mult": [1, 1, 1], "arch.ema": 0.9}
    stage = built(gpu, tmp_path, {**size, "gan": GAN, "gan.loss.perceptual_backbone": str(vgg16), **changes})
    with no_host_sync(legal):
        metrics = stage.train_step([image_batch(16)], 0)
    assert {"loss_gen", "loss_disc", "g_weight"} <= metrics.keys()
    assert all(value.is_cuda for value in metrics.values())


@pytest.mark.slow
def test_steps_over_micro_batches_and_what_follows(gpu, tmp_path):
    """Two steps (the state of the optimizer is there in the second), the averaged weights, codes and usage."""
    stage = built(
        gpu,
        tmp_path,
        {
            "arch.ema": 0.9,
            "optimizer.grad_accm_steps": 2,
            "arch.hparams.shared_codebook": False,
            "arch.hparams.n_embed": [16, 12, 8],
        },
    )
    with no_host_sync():
        for step in range(2):
            stage.train_step([image_batch(), image_batch()], step)
        with stage.averaged():
            stage.model.eval()
            codes = stage.model.get_codes(image_batch()["image"])
            assert stage.model.decode_code(codes).is_cuda
            stage.model.get_soft_codes(image_batch()["image"], stochastic=True)
