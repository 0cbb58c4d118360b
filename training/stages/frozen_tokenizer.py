"""The stage-1 model that a run of stage 2 takes its codes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional

import torch

from rqtransformer.targets import Stage2LossConfig
from rqvae import RQVAE, load_rqvae
from runtime.precision import Precision
from sampling.trained_models import check_weights
from training.stage1_checkpoint import stage1_checkpoint


@dataclass
class VQVAEConfig:
    """The `vqvae` section: which stage-1 checkpoint makes the codes, and how.

    Attributes:
        ckpt: a run, a snapshot or a published checkpoint of stage 1; -v on the command line.
        ema: whether its averaged weights make the codes.
        precision: of the encoder while training: auto, fp32 or bf16; the search for codes is fp32 always. auto is bf16
            on a GPU when the run is in bf16, else fp32. The first log line says which share of the codes differs for
            it.
    """

    ckpt: Optional[str] = None
    ema: bool = False
    precision: str = "auto"


ENCODER_PRECISIONS = ("auto", "fp32", "bf16")


def encoder_dtype(config: VQVAEConfig, precision: Precision) -> torch.dtype | None:
    """What the frozen encoder is autocast to; None in fp32.

    Raises:
        ValueError: for an unknown `vqvae.precision`.
    """
    if config.precision not in ENCODER_PRECISIONS:
        raise ValueError(f"vqvae.precision={config.precision!r}: choose from {', '.join(ENCODER_PRECISIONS)}")
    automatic = precision.name == "bf16" and precision.device.type == "cuda"
    return torch.bfloat16 if config.precision == "bf16" or (config.precision == "auto" and automatic) else None


def load_tokenizer(config: VQVAEConfig, loss: Stage2LossConfig) -> tuple[VQVAEConfig, RQVAE]:
    """The model, and the section with the very checkpoint it stands for: the newest snapshot of a run, not the run,
    which goes on.

    Raises:
        ValueError: no checkpoint is named or there, or its codes do not suit the loss.
    """
    checkpoint = stage1_checkpoint(config.ckpt)
    tokenizer = load_rqvae(checkpoint, ema=config.ema)
    check_weights(tokenizer, checkpoint)
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
