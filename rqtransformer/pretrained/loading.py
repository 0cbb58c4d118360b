"""A checkpoint, ours or in the published layout, -> a model ready to sample from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rqtransformer.model import RQTransformer


def load_rqtransformer(
    path: str | Path,
    ema: bool = False,
    device: str | torch.device = "cpu",
    *,
    config: str | Path | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
) -> RQTransformer:
    """Builds the model that a checkpoint describes and loads its weights; eval mode.

    Args:
        path: a snapshot, a run directory, a published file or weights that others have saved: see
            `RQTransformer.from_checkpoint`, also for `config` and `dtype`.
        ema: take the averaged weights.
        device: where the model goes.
        config, dtype: see there.

    Returns:
        The model; `sampling_defaults` holds the `temp`, `top_k` and `top_p` of the config's `sampling` section.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for an incomplete or damaged checkpoint, averaged weights that are not there, an invalid config, or
            tensors that do not fit it (the first names and shapes are listed).
    """
    return RQTransformer.from_checkpoint(path, ema, device, config=config, dtype=dtype)


def sampling_settings(model: RQTransformer, **given: Any) -> dict[str, Any]:
    """Keyword arguments for `sample`: those given and not None, else the checkpoint's `sampling_defaults`."""
    defaults = model.sampling_defaults
    merged = {"temperature": defaults.get("temp"), "top_k": defaults.get("top_k"), "top_p": defaults.get("top_p")}
    merged.update({key: value for key, value in given.items() if value is not None})
    return {key: value for key, value in merged.items() if value is not None}
