"""What a checkpoint on disk holds, of either stage and in either format, without building a model.

published  `NAME.pt` beside `config.yaml`: a torch.save'd dictionary of parts
snapshot   a folder with `<part>.safetensors`, `config.yaml`, `metadata.json` and the mark `COMPLETE`

Others' files are read as published ones: a bare state dict in a `.pt`, `.pth`, `.bin`, `.ckpt` or `.safetensors` file,
and safetensors in several files with an index (`NAME.safetensors.index.json`). A config may be stated instead of lying
beside the weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rqstack.arguments import checked_path
from rqstack.config_limits import check_interpolations, check_yaml
from rqstack.printable import first_line
from rqstack.published_file import PUBLISHED_FILE, Parts, listed, read_published_file
from rqstack.published_layout import Tensors, ours_from_published, stage_of, without_wrappers
from rqstack.snapshots import COMPLETE, CONFIG_FILE, EMA_FILE, METADATA_FILE, MODEL_FILE
from rqstack.weight_files import ENDINGS, INDEX, SAFETENSORS, files_of_index, read_safetensors, read_sharded

WEIGHT_FILES = {"state_dict": MODEL_FILE, "state_dict_ema": EMA_FILE}
MODEL_SECTIONS = ("arch", "dataset", "sampling")
# What others call the part of the weights.
OTHER_NAMES = {"state_dict": ("model", "model_state_dict", "weights"), "state_dict_ema": ("ema", "model_ema")}
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
        config_file: where the config comes from, if it was stated.
    """

    path: Path
    is_snapshot: bool
    parts: Parts
    config: dict[str, Any] | None = None
    config_text: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    config_file: str = ""

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
        files = list(self.path.glob("*.safetensors")) if self.is_snapshot else [self.path]
        if self.path.name.endswith(INDEX):
            files = [self.path.with_name(name) for name in files_of_index(self.path)]
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
        file = self.config_file or self.folder / CONFIG_FILE
        if self.config is None:
            raise FileNotFoundError(
                f"no config beside the checkpoint: no {CONFIG_FILE} in {self.folder}; state one with config=FILE"
            )
        whole, sections = OmegaConf.create(self.config), {}
        try:
            check_interpolations(whole)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        for name in MODEL_SECTIONS:
            try:
                section = whole[name] if name in whole else None
                if OmegaConf.is_dict(section):
                    sections[name] = cast("dict[str, Any]", OmegaConf.to_container(section, resolve=True))
            except OmegaConfBaseException as error:
                raise ValueError(f"{file}, {name}: {first_line(error)}") from error
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
        held_as = next((name for name in (key, *OTHER_NAMES[key]) if name in self.parts), None)
        if held_as is not None:
            tensors = without_wrappers(self.parts[held_as])
            return tensors if self.is_snapshot else ours_from_published(tensors, sections)
        if self.is_snapshot and ema:
            raise ValueError(f"{self.path} has no averaged weights ({WEIGHT_FILES[key]})")
        if self.is_snapshot:
            raise FileNotFoundError(f"{self.path} has no {WEIGHT_FILES[key]}")
        held = listed(sorted([*self.parts, *self.left_out, *self.unread])) or "nothing"
        raise ValueError(f"{self.path} has no {'averaged' if ema else 'raw'} weights: no {key!r}; it has {held}")


def read_archive(
    path: str | Path, wanted: Collection[str] | None = None, config: str | Path | Mapping[str, Any] | None = None
) -> Archive:
    """Reads a snapshot folder, a run directory (its newest snapshot), a file of weights or an index, or the folder with
    `model.pt`, an index, or one file.

    Args:
        wanted: the parts to read; None for all there are. A published file has all of them, mapped from disk.
        config: a YAML file, or its content, in the place of the `config.yaml` beside the weights.

    Raises:
        FileNotFoundError: nothing there. ValueError: incomplete or damaged.
    """
    archive = _read_weights(checked_path("the checkpoint", path), wanted)
    if config is None:
        return archive
    if isinstance(config, Mapping):
        try:
            made = OmegaConf.create(dict(config))
            text, stated = OmegaConf.to_yaml(made), cast("dict[str, Any]", OmegaConf.to_container(made))
        except Exception as error:  # of yaml and OmegaConf, which share no base class
            raise ValueError(f"the stated config is none: {first_line(error)}") from error
    else:
        file = Path(config).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f"no config at {file}")
        read, text = _read_config(file)
        stated = read or {}
    return dataclasses.replace(archive, config=stated, config_text=text, config_file=str(config)[:100])


def _read_weights(path: Path, wanted: Collection[str] | None) -> Archive:
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    path = newest_snapshot(path) or path
    if path.is_dir() and (path / COMPLETE).exists():
        return _read_snapshot(path, wanted)
    if path.is_dir():
        if (path / MODEL_FILE).exists() and any((path / name).exists() for name in (METADATA_FILE, CONFIG_FILE)):
            raise ValueError(f"{path} is an incomplete snapshot: it has no {COMPLETE} mark")
        path = _file_in(path)
    left_out: list[str] = []
    if path.name.endswith(INDEX):
        parts = {"state_dict": read_sharded(path)}
    elif path.name.endswith(SAFETENSORS):
        parts = {"state_dict": read_safetensors(path)}
    else:
        parts, left_out = read_published_file(path)
    config, text = _read_config(path.with_name(CONFIG_FILE))
    return Archive(path, False, parts, config, text, left_out=left_out)


def newest_snapshot(path: str | Path) -> Path | None:
    """The complete snapshot of the most steps in a run directory or in its `snapshots`, or `path` if it is one.

    None where it is none of these, or has no snapshot that is complete.
    """
    path = Path(path)
    if (path / COMPLETE).is_file():
        return path
    folder = path / "snapshots" if (path / "snapshots").is_dir() else path
    marks = sorted(folder.glob(f"step_*/{COMPLETE}"), key=lambda mark: mark.parent.name)
    return marks[-1].parent if marks else None


def _file_in(folder: Path) -> Path:
    """The one file of weights of a folder."""
    for pattern in (PUBLISHED_FILE, "*.pt", f"*{INDEX}", *(f"*{ending}" for ending in ENDINGS)):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return files[0]
        if files:
            break
    raise FileNotFoundError(
        f"no checkpoint at {folder}: it must be a snapshot or hold exactly one file of weights ({', '.join(ENDINGS)}, "
        f"or the index of several); it holds {len(files)}"
    )


def _read_snapshot(path: Path, wanted: Collection[str] | None) -> Archive:
    names = {file: part for part, file in WEIGHT_FILES.items()}
    indices = sorted(path.glob(f"*{INDEX}"))
    shards = {name for index in indices for name in files_of_index(index)}
    whole = [file for file in sorted(path.glob("*.safetensors")) if file.name not in shards]
    files = {names.get(file.name, file.stem): file for file in whole}
    files |= {names.get(index.name.removesuffix(".index.json"), index.name.split(".")[0]): index for index in indices}
    parts: Parts = {}
    unread = [part for part in files if wanted is not None and part not in wanted]
    for part, file in files.items():
        if part in unread:
            continue
        parts[part] = read_sharded(file) if file.name.endswith(INDEX) else read_safetensors(file)
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
        check_yaml(text)
        config = OmegaConf.to_container(OmegaConf.create(text))
    except AssertionError:  # of OmegaConf, which takes mappings and lists
        config = None
    except Exception as error:  # yaml and OmegaConf errors share no base class
        raise ValueError(f"{file} is not a valid YAML file: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not a config: it holds no sections")
    return cast("dict[str, Any]", config), text
