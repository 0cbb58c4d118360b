"""Snapshots: a trained model to use, not to resume: weights, the resolved config and what is known about them.

`snapshots/step_00001000/` holds `model.safetensors`, `model_ema.safetensors` (where averaged weights are kept),
`config.yaml`, `metadata.json`, the tokenizer of captions where there is one, and the completion mark.
`rqvae.load_rqvae` and `rqtransformer.load_rqtransformer` read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rqstack.snapshots import EMA_FILE, MODEL_FILE, write_snapshot
from runtime.atomic import atomic_directory
from runtime.config import config_to_yaml
from runtime.step_directories import prune_steps


def save_snapshot(
    directory: str | Path,
    model_tensors: Mapping[str, Tensor],
    config: Any,
    metadata: Mapping[str, Any],
    ema_tensors: Mapping[str, Tensor] | None = None,
    *,
    keep_last: int | None = None,
    extra_files: Mapping[str, str] | None = None,
) -> Path:
    """Write a snapshot directory, for example `run_dir/snapshots/step_00001000`, and return it.

    Args:
        model_tensors: state-dict names -> tensors.
        config: the resolved experiment config: a dataclass instance, a DictConfig or a mapping.
        metadata: what JSON can hold (step, images seen, scores, ...); `sha256` of the weight files is added.
        ema_tensors: averaged weights under the same names.
        keep_last: complete snapshots that stay beside each other, this one (always) and the newest others; None keeps
            all.
        extra_files: file name -> text of what else belongs to the model: the tokenizer of its captions.

    Raises:
        UserError: the directory cannot be written.
    """
    directory = Path(directory)
    with atomic_directory(directory) as partial:
        weights = {MODEL_FILE: model_tensors} | ({} if ema_tensors is None else {EMA_FILE: ema_tensors})
        write_snapshot(partial, weights, config_to_yaml(config), metadata)
        for name, text in (extra_files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
    if keep_last is not None:
        prune_steps(directory, keep_last)
    return directory
