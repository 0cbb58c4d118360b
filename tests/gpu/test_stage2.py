"""Stage 2 on fake CUDA tensors: training steps on the codes of a frozen stage-1 model.

Legend: B batch, C channels, H W image, L caption tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rqvae import RQVAE, RQVAEConfig
from runtime.config import load_config
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.training.tiny_runs import STAGE1, changed, stage2, write_config
from training.experiment import plan_batches
from training.stages import stage2 as stage2_module
from training.stages.stage2 import Stage2, Stage2Config

TEXT = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8, "loss.txt_weight": 0.1, "loss.img_weight": 0.9}
HARD = {"loss.type": "cross_entropy"}
STOCHASTIC = {"loss.stochastic_codes": True}
UNEVEN = {"n_embed": [16, 12, 8], "shared_codebook": False}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "hard targets": (HARD, {}, {}),
    "soft targets, bf16": ({"experiment.precision": "bf16", "arch.cond_drop_prob": 0.1}, {}, {}),
    "soft targets, stochastic codes, uneven vocabularies": (STOCHASTIC, UNEVEN, {}),
    "text, recomputed, own embeddings": (
        {**TEXT, "experiment.gradient_checkpointing": True, "arch.head_emb_vqvae": False, "arch.embd_pdrop": 0.1},
        {},
        {},
    ),
    "left out when not finite": (
        {**HARD, "experiment.non_finite": "skip"},
        {},
        {"training/optimization/update.py:_finite": "the config asks for a decision in every step"},
    ),
    "fp16": (
        {**HARD, "experiment.precision": "fp16"},
        {},
        {},
    ),
    "grouped queries, RMS norm, ALiBi, dropout": (
        {
            **HARD,
            **{
                f"arch.{stack}.block": {"n_head": 4, "n_kv_head": 2, "norm": "rms", "alibi": True, "attn_pdrop": 0.1}
                for stack in ("body", "head")
            },
        },
        {},
        {},
    ),
}


def built(gpu, tmp_path: Path, monkeypatch, changes: dict[str, Any], hparams: dict[str, Any]) -> Stage2:
    """A stage whose tokenizer is made here, not read from a file."""
    arch = changed(STAGE1, {f"arch.hparams.{key}": value for key, value in hparams.items()})["arch"]
    tokenizer = RQVAE(RQVAEConfig.from_mapping(arch))
    monkeypatch.setattr(stage2_module, "load_tokenizer", lambda vqvae, loss: (vqvae, tokenizer))
    monkeypatch.setattr(stage2_module, "weights_digest", lambda model: "")
    config = load_config(Stage2Config, write_config(tmp_path / "config.yaml", stage2({"arch.ema": 0.9, **changes})))
    return Stage2(config, plan_batches(config.experiment, num_images=40, world_size=1), gpu)


def batch(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.zeros(4, dtype=torch.long, device=CUDA)
    return {"label": labels, "cond": torch.zeros(4, 8, dtype=torch.long, device=CUDA), **more}


QUICK = ("soft targets, stochastic codes, uneven vocabularies", "grouped queries, RMS norm, ALiBi, dropout")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_step(gpu, tmp_path, monkeypatch, case):
    changes, hparams, legal = CASES[case]
    stage = built(gpu, tmp_path, monkeypatch, changes, hparams)
    with no_host_sync(legal):
        metrics = stage.train_step([batch(image=torch.rand(4, 3, 8, 8, device=CUDA))], 0)
    assert {"loss", "loss_img", "nll_depth_2"} <= metrics.keys()
    assert all(value.is_cuda for value in metrics.values())


@pytest.mark.slow
def test_steps_on_cached_latents_and_codes(gpu, tmp_path, monkeypatch):
    stage = built(gpu, tmp_path, monkeypatch, {"optimizer.type": "sgd"}, {})
    with no_host_sync():
        stage.train_step([batch(latent=torch.randn(4, 4, 4, 8, device=CUDA))], 0)
        with stage.averaged():
            pass
    hard = built(gpu, tmp_path, monkeypatch, HARD, {})
    with no_host_sync():
        hard.train_step([batch(codes=torch.zeros(4, 2, 2, 3, dtype=torch.long, device=CUDA))], 0)
