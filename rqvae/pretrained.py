"""A checkpoint on disk -> an RQVAE, and its tensors in the published layout.

What checkpoints look like is in `rqvae.checkpoint_files`; models from a hub, and saving, in `rqstack.hub`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rqvae.checkpoint_files import (
    CODEBOOK_PREFIX,
    Tensors,
    codebook_key,
    load_checkpoint,
    read_checkpoint,
    state_dict_from_published,
)
from rqvae.model import RQVAE

__all__ = ["load_rqvae", "read_checkpoint", "snapshot_tensors", "state_dict_from_published", "state_dict_to_published"]


def load_rqvae(path: str | Path, ema: bool = False, device: str | torch.device = "cpu") -> RQVAE:
    """Load a trained RQ-VAE, in eval mode.

    path: a snapshot directory, a published `.pt` file beside its `config.yaml`, or the directory with `model.pt`.
    ema: take the averaged weights. Raises FileNotFoundError or ValueError, in one line, for what is missing, unreadable
    or does not fit (the mismatching keys are named).
    """
    return load_checkpoint(RQVAE, path, ema, device)


def state_dict_to_published(model: RQVAE) -> Tensors:
    """Ours -> the published names and layout; the inverse of `state_dict_from_published`."""
    depths = range(len(model.quantizer.num_codes))
    published: Tensors = {}
    for key, tensor in model.state_dict().items():
        if not key.startswith(CODEBOOK_PREFIX):
            published[key] = tensor
            continue
        depth, name = codebook_key(key)
        if name == "num_updates":
            continue
        if name == "weight":
            tensor = torch.cat([tensor, torch.zeros_like(tensor[:1])])
        for copy in depths if model.config.shared_codebook else [depth]:
            published[f"{CODEBOOK_PREFIX}{copy}.{name}"] = tensor
    return published


def snapshot_tensors(model: RQVAE) -> Tensors:
    """The model's state as contiguous, non-aliased CPU tensors: what a snapshot's safetensors file holds."""
    return {
        key: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, tensor in model.state_dict().items()
    }
