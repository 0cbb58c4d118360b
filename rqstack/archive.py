"""What a checkpoint on disk holds, of either stage and in either format, without building a model.

published  `NAME.pt` beside `config.yaml`: a torch.save'd dictionary of parts
snapshot   a folder with `<part>.safetensors`, `config.yaml`, `metadata.json` and the mark `COMPLETE`
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file

from rqstack.published_file import PUBLISHED_FILE, Parts, read_published_file
from rqstack.published_layout import Tensors, ours_from_published, stage_of, without_wrapper
from rqstack.snapshots import COMPLETE, CONFIG_FILE, EMA_FILE, METADATA_FILE, MODEL_FILE

WEIGHT_FILES = {"state_dict": MODEL_FILE, "state_dict_ema": EMA_FILE}
MODEL_SECTIONS = ("arch", "dataset", "sampling")
TOKENIZER_PATTERNS = ("tokenizer.json", "tokenizer_settings.json", "*vocab.json", "*merges.txt")


@dataclass
class Archive:
    """One checkpoint.

    Attributes:
        path: the published file, or the snapshot's folder.
        parts: part -> named tensors, as they are stored.
        config, config_text: of `config.yaml`; None and "" without one.
        left_out: entries of a published file that are no named tensors.
        unread: parts of a snapshot that were not asked for.
    """

    path: Path
    is_snapshot: bool
    parts: Parts
    config: dict[str, Any] | None = None
    config_text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

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

    def sections(self, model_type: str) -> dict[str, dict[str, Any]]:
        """What the config says of a model of this `arch.type`: its sections `arch`, `dataset` and `sampling`, resolved.

        A config that does not say its type is taken as one of such a model.

        Raises:
            FileNotFoundError: there is none. ValueError: it is of another kind of model, or of none.
        """
        file = self.folder / CONFIG_FILE
        if self.config is None:
            raise FileNotFoundError(f"no config beside the checkpoint: no {CONFIG_FILE} in {self.folder}")
        whole, sections = OmegaConf.create(self.config), {}
        for name in MODEL_SECTIONS:
            try:
                section = whole[name] if name in whole else None
                if OmegaConf.is_dict(section):
                    sections[name] = cast("dict[str, Any]", OmegaConf.to_container(section, resolve=True))
            except OmegaConfBaseException as error:
                raise ValueError(f"{file}, {name}: {str(error).splitlines()[0]}") from error
        if "arch" not in sections:
            raise ValueError(f"{file} has no 'arch' section")
        kind = sections["arch"].setdefault("type", model_type)
        if kind != model_type:
            raise ValueError(f"{file}: arch.type is {kind!r}, not {model_type!r}")
        return sections

    def weights(self, ema: bool, sections: dict[str, dict[str, Any]]) -> Tensors:
        """The tensors of the model of these sections, named and laid out as ours are.

        Raises:
            FileNotFoundError: a snapshot without its weights. ValueError: a part that is not there, or codebooks that
                should be the same and are not.
        """
        key = "state_dict_ema" if ema else "state_dict"
        if key in self.parts:
            tensors = self.parts[key]
            return tensors if self.is_snapshot else ours_from_published(without_wrapper(tensors)[0], sections)
        if self.is_snapshot and ema:
            raise ValueError(f"{self.path} has no averaged weights ({WEIGHT_FILES[key]})")
        if self.is_snapshot:
            raise FileNotFoundError(f"{self.path} has no {WEIGHT_FILES[key]}")
        held = ", ".join(sorted([*self.parts, *self.left_out, *self.unread])) or "nothing"
        raise ValueError(f"{self.path} has no {'averaged' if ema else 'raw'} weights: no {key!r}; it has {held}")


def read_archive(path: str | Path, wanted: Collection[str] | None = None) -> Archive:
    """Reads a snapshot folder, a run directory (its newest snapshot), a published file, or the folder with `model.pt`
    or with exactly one `.pt`.

    Args:
        wanted: the parts to read; None for all there are. A published file has all of them, mapped from disk.

    Raises:
        FileNotFoundError: nothing there. ValueError: incomplete or damaged.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    path = newest_snapshot(path) or path
    if path.is_dir() and (path / COMPLETE).exists():
        return _read_snapshot(path, wanted)
    if path.is_dir():
        if (path / MODEL_FILE).exists():
            raise ValueError(f"{path} is an incomplete snapshot: it has no {COMPLETE} mark")
        files = sorted(path.glob(PUBLISHED_FILE)) or sorted(path.glob("*.pt"))
        if len(files) != 1:
            raise FileNotFoundError(
                f"no checkpoint at {path}: it must be a snapshot or hold exactly one .pt file; it holds {len(files)}"
            )
        path = files[0]
    parts, left_out = read_published_file(path)
    config, text = _read_config(path.with_name(CONFIG_FILE))
    return Archive(path, False, parts, config, text, left_out=left_out)


def newest_snapshot(run_dir: Path) -> Path | None:
    """The snapshot of the most steps in a run directory; None where `run_dir` is none, or has none that is complete."""
    marks = sorted(run_dir.glob(f"snapshots/step_*/{COMPLETE}"), key=lambda mark: mark.parent.name)
    return marks[-1].parent if marks else None


def _read_snapshot(path: Path, wanted: Collection[str] | None) -> Archive:
    names = {file: part for part, file in WEIGHT_FILES.items()}
    files = {names.get(file.name, file.stem): file for file in sorted(path.glob("*.safetensors"))}
    parts: Parts = {}
    unread = [part for part in files if wanted is not None and part not in wanted]
    for part, file in files.items():
        if part in unread:
            continue
        try:
            parts[part] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
    config, text = _read_config(path / CONFIG_FILE)
    return Archive(path, True, parts, config, text, _read_metadata(path / METADATA_FILE), unread=unread)


def _read_metadata(file: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{file} is damaged: it holds a {type(metadata).__name__}")
    return metadata


def _read_config(file: Path) -> tuple[dict[str, Any] | None, str]:
    if not file.is_file():
        return None, ""
    try:
        text = file.read_text(encoding="utf-8")
        config = OmegaConf.to_container(OmegaConf.create(text))
    except Exception as error:  # yaml and OmegaConf errors share no base class
        raise ValueError(f"{file} is not a valid YAML file: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a config: it holds no sections")
    return cast("dict[str, Any]", config), text
