"""Models as folders to keep, share and fetch: `from_pretrained`, `save_pretrained`, `push_to_hub`, and a model card.

Only fetching by a repository's id and `push_to_hub` need the package huggingface_hub (the extra `hub`), and only then
it is imported.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from rqstack.archive import read_archive
from rqstack.arguments import checked_path, shown
from rqstack.published_layout import WEIGHT_PARTS
from rqstack.snapshots import COMPLETE, MODEL_FILE, appearing_folder, write_snapshot
from rqstack.weight_files import ENDINGS

SNAPSHOT_PATTERNS = [*(f"*{ending}" for ending in ENDINGS), "*.yaml", "*.json", "*.txt", COMPLETE]
DTYPES = ("float32", "bfloat16", "float16", "float64")
Model = TypeVar("Model", bound="PretrainedModel")


class PretrainedModel(nn.Module):
    """Reading and writing of a model as a folder.

    The class gives `arch_type`, `_build`, `_sections` and `_card`.

    Attributes:
        arch_type: the `arch.type` of its configs.
        metadata: what is known about the weights (steps, scores, data set); from a snapshot, or the user's own.
    """

    arch_type: ClassVar[str]
    metadata: Mapping[str, Any] = {}

    @classmethod
    def from_checkpoint(
        cls: type[Model],
        path: str | Path,
        ema: bool = False,
        device: str | torch.device = "cpu",
        *,
        config: str | Path | Mapping[str, Any] | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> Model:
        """The model of a local checkpoint, in eval mode.

        Args:
            path: a snapshot folder, a run directory (its newest snapshot), a file of weights beside its `config.yaml`
                (a published file, a bare state dict, or safetensors in one file or in several with an index), or the
                folder of such a file. What data parallelism, compilation and the usual trainers put before the names
                of the weights does not matter.
            ema: the averaged weights.
            device: where the model goes.
            config: a YAML file, or its content, in the place of the `config.yaml` beside the weights.
            dtype: of the floating-point weights, a torch.dtype or its name; None, as they are. Codebooks stay fp32.

        Raises:
            FileNotFoundError, ValueError: in one line, what is missing, incomplete, damaged or does not fit.
        """
        kind = _dtype_of(dtype)
        archive = read_archive(path, {WEIGHT_PARTS[bool(ema)]}, config)
        sections = archive.sections(cls.arch_type)
        try:
            tensors = archive.weights(ema, sections)
            model = cls._build(sections, tensors)
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(str(path)) else f"{path}: {message}") from None
        model.metadata = archive.metadata
        return model.to(device, kind).eval()

    @classmethod
    def _build(cls: type[Model], sections: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> Model:
        """The model of a config's sections with these tensors, on the CPU."""
        raise AssertionError(f"{cls.__name__} must give _build")

    def _sections(self) -> dict[str, Any]:
        """The content of `config.yaml`."""
        raise AssertionError(f"{type(self).__name__} must give _sections")

    def _card(self) -> tuple[str, list[str], dict[str, Any]]:
        """What the model is, in one line; tags; facts for the card's table."""
        raise AssertionError(f"{type(self).__name__} must give _card")

    @classmethod
    def from_pretrained(
        cls: type[Model],
        source: str | Path,
        *,
        ema: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str | None = None,
        config: str | Path | Mapping[str, Any] | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Model:
        """The model, in eval mode.

        Args:
            source: a local checkpoint, see `path` of `from_checkpoint`, or the id of a repository on the Hugging Face
                hub, such as `owner/name`, whose files are then fetched and kept.
            ema, device, dtype, config: see `from_checkpoint`.
            revision, token, cache_dir: of the hub: a branch, tag or commit; access; where files are kept.
            local_files_only: take what has been fetched before, without asking the hub.

        Raises:
            FileNotFoundError, ValueError: what is missing, damaged or does not fit, in one line; for an id also a
                missing package, or what the hub said.
        """
        if not isinstance(source, (str, Path)) or not str(source):
            raise ValueError(f"source must be a path or the id of a repository, got {shown(source)}")
        _dtype_of(dtype)
        if not Path(source).expanduser().exists():
            options = {
                "revision": revision,
                "token": token,
                "cache_dir": cache_dir,
                "local_files_only": local_files_only,
            }
            source = _fetch(cls.__name__, str(source), options)
        return cls.from_checkpoint(Path(source).expanduser(), ema, device, config=config, dtype=dtype)

    def save_pretrained(
        self, directory: str | Path, *, metadata: Mapping[str, Any] | None = None, files: Sequence[str | Path] = ()
    ) -> Path:
        """Writes a snapshot with a model card: `model.safetensors`, `config.yaml`, `metadata.json`, `README.md`.

        Args:
            directory: must not exist, or be empty; it appears complete or not at all.
            metadata: what JSON can hold; added to the model's `metadata`.
            files: copied into the folder, for example the tokenizer of a text-to-image model.

        Raises:
            ValueError: something is there already. OSError: it cannot be written.
        """
        directory = checked_path("directory", directory)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ValueError(f"{directory} exists and is not an empty folder: nothing is overwritten")
        try:
            json.dumps({**self.metadata, **(metadata or {})})
        except (TypeError, ValueError) as error:
            raise ValueError(f"metadata must be a dictionary of what JSON can hold: {_first_line(error)}") from None
        with appearing_folder(directory) as partial:
            self._write(partial, {**self.metadata, **(metadata or {})}, files)
        return directory

    def _write(self, directory: Path, metadata: Mapping[str, Any], files: Sequence[str | Path]) -> None:
        config_text = OmegaConf.to_yaml(OmegaConf.create(self._sections()))
        write_snapshot(directory, {MODEL_FILE: self.state_dict()}, config_text, metadata, hashes=False)
        (directory / "README.md").write_text(self.model_card(metadata), encoding="utf-8")
        for file in files:
            shutil.copy(Path(file).expanduser(), directory)
        (directory / COMPLETE).touch()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        files: Sequence[str | Path] = (),
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        message: str = "Upload model",
    ) -> str:
        """Uploads what `save_pretrained` writes; the repository is made if it is not there. Returns the commit's URL.

        Raises:
            ValueError: the package is missing, or what the hub said, in one line.
        """
        if not isinstance(repo_id, str) or not repo_id.strip("/") or repo_id.count("/") > 1:
            raise ValueError(f"repo_id must be the id of a repository, such as owner/name, got {str(repo_id)[:80]!r}")
        hub = _import_hub(f"{type(self).__name__}.push_to_hub")
        with tempfile.TemporaryDirectory() as folder:
            directory = self.save_pretrained(Path(folder) / "model", metadata=metadata, files=files)
            try:
                api = hub.HfApi(token=token)
                repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                done = api.upload_folder(
                    repo_id=repo_id, folder_path=directory, revision=revision, commit_message=message
                )
            except Exception as error:  # of the hub, of what it speaks HTTP with, of the system
                raise ValueError(f"{repo_id} cannot be uploaded: {_first_line(error)}") from error
        return str(getattr(done, "commit_url", done))

    def model_card(self, metadata: Mapping[str, Any] | None = None) -> str:
        """The text of `README.md`: what the model is, how it is loaded, and what the metadata says.

        A `license` in the metadata goes into the card's header; none is assumed.
        """
        metadata = dict(self.metadata if metadata is None else metadata)
        summary, tags, facts = self._card()
        header = {"library_name": "rqstack", "tags": tags}
        if "license" in metadata:
            header["license"] = metadata["license"]
        name, package = type(self).__name__, type(self).__module__.split(".")[0]
        rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
        known = {key: value for key, value in metadata.items() if key != "license"}
        about = f"\n## About these weights\n\n```json\n{json.dumps(known, indent=2)}\n```\n" if known else ""
        return (
            f"---\n{OmegaConf.to_yaml(OmegaConf.create(header))}---\n\n# {name}\n\n{summary}\n\n| | |\n|---|---|\n"
            f"{rows}\n\n```python\nfrom {package} import {name}\n\n"
            f'model = {name}.from_pretrained("PATH-OR-OWNER/NAME")\n```\n{about}'
        )


def _dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype in DTYPES else dtype
    if found is None or (isinstance(found, torch.dtype) and str(found).removeprefix("torch.") in DTYPES):
        return found
    raise ValueError(f"dtype {str(dtype)[:80]!r} is not one of {', '.join(DTYPES)}")


def _fetch(name: str, repo_id: str, options: Mapping[str, Any]) -> str:
    """The local folder of a repository's files."""
    if repo_id.count("/") != 1 or repo_id.startswith((".", "/", "~")) or repo_id.endswith("/"):
        raise FileNotFoundError(f"no checkpoint at {repo_id}, and it is no id of a repository, such as owner/name")
    hub = _import_hub(f"there is no folder {repo_id}; {name}.from_pretrained by a repository's id")
    try:
        return hub.snapshot_download(repo_id, allow_patterns=SNAPSHOT_PATTERNS, **options)
    except Exception as error:  # of the hub, of what it speaks HTTP with, of the system: they share no base class
        raise ValueError(
            f"{repo_id} is no local path and cannot be fetched from the hub: {_first_line(error)}"
        ) from error


def _import_hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{purpose} needs the package huggingface_hub: pip install rqstack[hub]") from error
    return huggingface_hub


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
