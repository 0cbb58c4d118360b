"""Where stage 2's codes come from: images through the encoder, or what `extract_codes.py` kept of that.

Legend: B batch, H W code grid, D code depth, E latent channels, C size of the vectors that are searched with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data import ImageDataset
from data.shards.cached_latents import LatentDataset
from rqtransformer.targets import Stage2LossConfig
from rqvae import RQVAE


def check_tokenizer(dataset: ImageDataset, digest: str, loss: Stage2LossConfig, num_codes: Sequence[int]) -> None:
    """ValueError when a cached data set belongs to another tokenizer, or lacks what the loss needs. From then on it
    refuses codes that no codebook has.

    Args:
        dataset: any; there is nothing to check of images.
        digest: `weights_digest` of the stage-1 checkpoint of this run.
        num_codes: the size of the codebook of every depth.
    """
    if not isinstance(dataset, LatentDataset):
        return
    if dataset.tokenizer_digest != digest:
        raise ValueError(
            f"dataset.root: these latents were made by a tokenizer with digest {dataset.tokenizer_digest[:16]}, the "
            f"stage-1 checkpoint has {digest[:16]}; give the checkpoint (and vqvae.ema) that extract_codes.py was given"
        )
    if dataset.contents == "codes" and (loss.type != "cross_entropy" or loss.stochastic_codes):
        raise ValueError(
            "dataset.root holds codes without latents: soft targets and stochastic codes need latents; set "
            "loss.type=cross_entropy loss.stochastic_codes=false, or extract with --keep latents"
        )
    dataset.num_codes = tuple(num_codes)


@torch.no_grad()
def training_codes(
    tokenizer: RQVAE,
    batch: dict[str, Tensor],
    loss: Stage2LossConfig,
    device: torch.device,
    encoder_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, Tensor]:
    """The vector that every depth searches with (B, H, W, D, C), and the codes (B, H, W, D).

    Of cached latents both are worked out as of images, from the quantizer on; cached codes come without the vectors.
    `encoder_dtype` is what the encoder is autocast to; quantizers search in fp32 whatever surrounds them.
    """
    if "codes" in batch:
        return None, batch["codes"].to(device)
    if "latent" in batch:
        latent_BHWE = batch["latent"].to(device).float()
        return tokenizer.quantizer.targets(latent_BHWE, loss.temp, loss.stochastic_codes)
    image_BCHW = batch["image"].to(device)
    with torch.autocast(device.type, encoder_dtype, enabled=encoder_dtype is not None):
        return tokenizer.get_latent_targets(image_BCHW, loss.temp, loss.stochastic_codes)


@torch.no_grad()
def changed_codes(tokenizer: RQVAE, image_BCHW: Tensor, encoder_dtype: torch.dtype) -> Tensor:
    """Share of the nearest codes that are others with an encoder in `encoder_dtype` than in fp32; left on the device.

    A code that differs leaves another residual, so the depths behind it mostly differ too.
    """
    exact_BHWD = tokenizer.get_codes(image_BCHW)
    with torch.autocast(image_BCHW.device.type, encoder_dtype):
        return (tokenizer.get_codes(image_BCHW) != exact_BHWD).float().mean()


@torch.no_grad()
def nearest_codes(tokenizer: RQVAE, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """The codes (B, H, W, D) of a batch of images, latents or codes."""
    if "codes" in batch:
        return batch["codes"].to(device)
    if "latent" in batch:
        return tokenizer.quantizer.targets(batch["latent"].to(device).float())[1]
    return tokenizer.get_codes(batch["image"].to(device))
