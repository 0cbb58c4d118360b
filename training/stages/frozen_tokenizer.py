"""The stage-1 model that a run of stage 2 takes its codes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import torch

from rqtransformer.targets import Stage2LossConfig
from rqvae import RQVAE, load_rqvae
from sampling.trained_models import resolve_checkpoint


@dataclass
class VQVAEConfig:
    """The `vqvae` section: which stage-1 checkpoint makes the codes, and whether its EMA weights do."""

    ckpt: Optional[str] = None
    ema: bool = False


def load_tokenizer(config: VQVAEConfig, loss: Stage2LossConfig) -> tuple[VQVAEConfig, RQVAE]:
    """The model, and the section with the very checkpoint it stands for: the newest snapshot of a run, not the run,
    which goes on.

    Raises:
        ValueError: no checkpoint is named, or its codes do not suit the loss.
    """
    if not config.ckpt:
        raise ValueError("no stage-1 checkpoint: give -v/--vqvae PATH or vqvae.ckpt")
    checkpoint = resolve_checkpoint(config.ckpt)
    tokenizer = load_rqvae(checkpoint, ema=config.ema)
    if loss.type == "soft_target_cross_entropy" and not tokenizer.quantizer.fixed_code_vectors:
        raise ValueError(
            f"loss.type {loss.type!r} needs code vectors that follow from their codes alone; bottleneck "
            f"{tokenizer.config.bottleneck_type!r} has others: choose cross_entropy"
        )
    return replace(config, ckpt=str(checkpoint)), tokenizer


def freeze(tokenizer: RQVAE, device: torch.device, channels_last: bool) -> RQVAE:
    """Puts it on the device, for good: evaluation mode, no gradients."""
    tokenizer = tokenizer.to(device).eval().requires_grad_(False)
    return tokenizer.to(memory_format=torch.channels_last) if channels_last else tokenizer
