"""What a checkpoint on disk holds, of either stage and in either format, without building a model.

published  `NAME.pt` beside `config.yaml`: a torch.save'd dictionary of parts
snapshot   a folder with `<part>.safetensors`, `config.yaml`, `metadata.json` and the mark `COMPLETE`
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file

from rqstack.published_file import Parts, read_published_file
from rqstack.published_layout import stage_of

CONFIG_FILE, METADATA_FILE, COMPLETE = "config.yaml", "metadata.json", "COMPLETE"
WEIGHT_FILES = {"state_dict": "model.safetensors", "state_dict_ema": "model_ema.safetensors"}
TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer_settings.json", "*vocab.json", "*merges.txt")


@dataclass
class Archive:
    """One checkpoint.

    Attributes:
        path: the published file, or the snapshot's folder.
        parts: part -> named tensors, as they are stored.
        config, config_text: of `config.yaml`; None and "" without one.
        left_out: entries of a published file that are no named tensors.
    """

    path: Path
    is_snapshot: bool
    parts: Parts
    config: dict[str, Any] | None = None
    config_text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.path if self.is_snapshot else self.path.parent

    @property
    def stage(self) -> str:
        """`stage 1`, `stage 2` or `unknown` (no config, or one without a model)."""
        return stage_of(self.config)

    @property
    def num_bytes(self) -> int:
        """On disk, the weights alone."""
        files = self.path.glob("*.safetensors") if self.is_snapshot else [self.path]
        return sum(file.stat().st_size for file in files)

    def tokenizer_files(self) -> list[Path]:
        """Files beside the weights that make captions into token ids."""
        found = {file for pattern in TOKENIZER_PATTERNS for file in self.folder.glob(pattern)}
        return sorted(found) if self.stage == "stage 2" else []


def read_archive(path: str | Path) -> Archive:
    """Reads a snapshot folder, a published file, or the folder with exactly one.

    Raises:
        FileNotFoundError: nothing there. ValueError: incomplete or damaged.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.is_dir() and (path / COMPLETE).exists():
        return _read_snapshot(path)
    if path.is_dir():
        if (path / WEIGHT_FILES["state_dict"]).exists():
            raise ValueError(f"{path} is an incomplete snapshot: it has no {COMPLETE} mark")
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise FileNotFoundError(f"{path} must be a snapshot or hold exactly one .pt file; it holds {len(files)}")
        path = files[0]
    parts, left_out = read_published_file(path)
    config, text = _read_config(path.with_name(CONFIG_FILE))
    return Archive(path, False, parts, config, text, left_out=left_out)


def _read_snapshot(path: Path) -> Archive:
    names = {file: part for part, file in WEIGHT_FILES.items()}
    parts: Parts = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            parts[names.get(file.name, file.stem)] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    config, text = _read_config(path / CONFIG_FILE)
    metadata = path / METADATA_FILE
    try:
        known = json.loads(metadata.read_text(encoding="utf-8")) if metadata.exists() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{metadata} is damaged: {error}") from error
    return Archive(path, True, parts, config, text, known)


def _read_config(file: Path) -> tuple[dict[str, Any] | None, str]:
    if not file.is_file():
        return None, ""
    text = file.read_text(encoding="utf-8")
    try:
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # yaml and OmegaConf errors share no base class
        raise ValueError(f"{file} is not a valid YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a config: it holds no sections")
    return config, text
