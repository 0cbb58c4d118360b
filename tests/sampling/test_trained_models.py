"""Models by the path of a run, a snapshot or a published file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rqstack.archive import newest_snapshot
from rqvae import load_rqvae
from runtime.errors import UserError
from sampling.conditions import class_number
from sampling.trained_models import (
    check_stages_fit,
    directory_beside,
    load_models,
    read_metadata,
    resolve_checkpoint,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def snapshot(path: Path, **metadata: object) -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").touch()
    (path / "metadata.json").write_text(json.dumps(metadata))
    (path / "COMPLETE").touch()
    return path


def test_the_newest_complete_snapshot_is_found(tmp_path):
    assert newest_snapshot(tmp_path) is None
    snapshot(tmp_path / "snapshots" / "step_00000002")
    newest = snapshot(tmp_path / "snapshots" / "step_00000010")
    (tmp_path / "snapshots" / "step_00000099").mkdir()
    assert [newest_snapshot(place) for place in (tmp_path, tmp_path / "snapshots", newest)] == [newest] * 3
    assert resolve_checkpoint(tmp_path) == newest
    assert directory_beside(newest) == tmp_path


def test_published_files_are_what_they_are(tmp_path):
    file = GOLDEN / "rqvae-shared" / "model.pt"
    assert resolve_checkpoint(file) == file
    assert resolve_checkpoint(file.parent) == file.parent
    assert directory_beside(file) == directory_beside(file.parent) == file.parent
    with pytest.raises(UserError, match="no checkpoint at"):
        resolve_checkpoint(tmp_path / "nothing")
    with pytest.raises(UserError, match="neither a run with a snapshot, nor a snapshot, nor a folder with a .pt file"):
        resolve_checkpoint(tmp_path)


def test_metadata_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a complete snapshot"):
        read_metadata(tmp_path)
    path = snapshot(tmp_path / "a", step=1)
    assert read_metadata(path) == {"step": 1}
    (path / "metadata.json").write_text('{"step": ')
    with pytest.raises(UserError, match=r"metadata\.json"):
        read_metadata(path)


def test_stages_that_do_not_belong_together():
    _, stage2 = load_models(
        GOLDEN / "rqvae-shared" / "model.pt", GOLDEN / "rqtransformer-class" / "model.pt", torch.device("cpu")
    )
    other = load_rqvae(GOLDEN / "rqvae-chmult" / "model.pt")
    with pytest.raises(ValueError, match=r"arch\.block_size=.* does not fit the stage-1 checkpoint, whose codes are"):
        check_stages_fit(stage2.config, other)


def test_a_name_beyond_the_classes_of_the_model_is_no_class():
    names = ["cat", "dog", "forged"]
    assert class_number("dog", names, 2) == 1 and class_number("0", names, 2) == 0
    with pytest.raises(UserError, match="--class forged is none of the model's: cat, dog, or 0..1"):
        class_number("forged", names, 2)
