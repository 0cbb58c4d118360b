"""Snapshots: a trained model to use, not to resume: weights, the resolved config and what is known about them.

`snapshots/step_00001000/` holds `model.safetensors`, `model_ema.safetensors` (where averaged weights are kept),
`config.yaml`, `metadata.json`, the tokenizer of captions where there is one, and the completion mark.
`rqvae.load_rqvae` and `rqtransformer.load_rqtransformer` read it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from rqstack.snapshots import CONFIG_FILE, EMA_FILE, METADATA_FILE, MODEL_FILE, plain_copy
from runtime.atomic import atomic_directory, sha256_of_file
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
        for name, tensors in weights.items():
            save_file({key: plain_copy(tensor) for key, tensor in tensors.items()}, partial / name)
        hashes = {name: sha256_of_file(partial / name) for name in weights}
        for name, text in (extra_files or {}).items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / CONFIG_FILE).write_text(config_to_yaml(config), encoding="utf-8")
        text = json.dumps({**metadata, "sha256": hashes}, indent=2)
        (partial / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
    if keep_last is not None:
        prune_steps(directory, keep_last)
    return directory
