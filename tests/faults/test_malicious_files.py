"""Malicious files through the entry script that would read them: none runs code, writes elsewhere or crashes it.

Every case must end in exit code 2 and one `error:` line; images must be passed over and counted.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.faults import evil_files
from tests.faults.evil_files import ARRAYS, PICKLES, SAFETENSORS, TARS, YAML_TEXTS
from tests.training.tiny_runs import GAN, only_run, stage1, stage2, train, write_config

LPIPS = {
    "gan": GAN,
    "gan.loss.perceptual_weight": 1.0,
    "dataset.resolution": 16,
    "arch.ddconfig.resolution": 16,
    "arch.ddconfig.ch_mult": [1, 1, 1],
}
NESTED = "[" * 100_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run of either stage."""
    folder = tmp_path_factory.mktemp("trained")
    first = train("stage1", "-m", write_config(folder / "one.yaml", stage1()), "-r", folder).run_dir
    second = train("stage2", "-m", write_config(folder / "two.yaml", stage2()), "-v", first, "-r", folder).run_dir
    return first, second


@pytest.fixture
def trap(tmp_path) -> Path:
    """The file that payloads would create."""
    return tmp_path / "trap"


@pytest.fixture
def run(monkeypatch, command, tmp_path, trap) -> Callable[..., tuple[int, list[str]]]:
    """`run(script, *flags)` -> exit code and stderr, after checking that nothing was executed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RQ_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)

    def start(script: str, *flags: Any) -> tuple[int, list[str]]:
        ended = command(script, *flags)
        lines = ended.said
        assert not trap.exists(), "it was executed"
        assert not Path("/trap").exists() and not list(tmp_path.parent.glob("trap*"))
        assert not any("Traceback" in line for line in lines)
        return ended.code, lines

    return start


@pytest.fixture
def refuse(run) -> Callable[..., str]:
    """`refuse(script, *flags)` -> the error line of a run that must end in one."""

    def start(script: str, *flags: Any) -> str:
        code, lines = run(script, *flags)
        errors = [line for line in lines if line.startswith("error: ")]
        assert code == 2, lines
        assert len(errors) == 1, lines
        assert len(errors[0]) < 1500
        return errors[0]

    return start


def published(folder: Path, maker: Callable, trap: Path) -> Path:
    """A file posing as a published checkpoint, beside its config."""
    write_config(folder / "config.yaml", stage1())
    file = folder / "model.pt"
    maker(file, trap)
    return file


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_posing_as_weights(kind, refuse, tmp_path, trap):
    file = published(tmp_path / "published", PICKLES[kind], trap)
    one = write_config(tmp_path / "1.yaml", stage1())
    assert "model.pt" in refuse("main_stage1.py", "-m", one, "-r", tmp_path / "runs", "-l", file)
    assert not (tmp_path / "runs").exists()


def test_the_most_plausible_pickle_at_every_place_for_weights(refuse, trained, tmp_path, trap):
    """As stage 1 of stage 2, as weights of stage 2, as models to sample from, for rFID, LPIPS and Inception."""
    file = published(tmp_path / "published", evil_files.zip_with_eval_among_weights, trap)
    two, results = write_config(tmp_path / "2.yaml", stage2()), ["-r", tmp_path / "runs"]
    lpips = write_config(tmp_path / "3.yaml", stage1(LPIPS | {"gan.loss.perceptual_backbone": str(file)}))
    for command in (
        ["main_stage2.py", "-m", two, *results, "-v", file],
        ["main_stage2.py", "-m", two, *results, "-v", trained[0], "-l", file],
        ["main_sampling_fid.py", "-v", file, "-a", trained[1], "--save-dir", tmp_path / "out"],
        ["compute_rfid.py", "--vqvae", file],
        ["compute_rfid.py", "--vqvae", trained[0], "--features-weights", file],
        ["main_stage1.py", "-m", lpips, *results],
    ):
        assert "model.pt" in refuse(*command)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_damaged_and_lying_safetensors(kind, refuse, trained, tmp_path, trap):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (snapshot,) = run_dir.glob("snapshots/step_*")
    SAFETENSORS[kind](snapshot / "model.safetensors", trap)
    two = write_config(tmp_path / "2.yaml", stage2())
    assert "model.safetensors" in refuse("main_stage2.py", "-m", two, "-r", tmp_path / "runs", "-v", run_dir)


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_checkpoints_whose_manifest_agrees_with_the_damage(kind, refuse, trained, tmp_path, trap):
    """Hashes protect from accidents; a forger writes the manifest as well."""
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (checkpoint,) = run_dir.glob("checkpoints/step_*")
    for file in checkpoint.glob("*.safetensors"):
        SAFETENSORS[kind](file, trap)
    resign(checkpoint)
    assert "safetensors" in refuse("main_stage1.py", "--resume", "-l", run_dir)


def resign(checkpoint: Path) -> None:
    """Makes the manifest fit the files as they are."""
    import hashlib

    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (checkpoint / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


MANIFESTS: dict[str, Callable[[dict], Any]] = {
    "wrong hash": lambda it: {
        **it,
        "files": {name: {**entry, "sha256": "0" * 64} for name, entry in it["files"].items()},
    },
    "path outside": lambda it: {**it, "files": {**it["files"], "../../../../etc/passwd": {"sha256": "", "bytes": 1}}},
    "absolute path": lambda it: {**it, "files": {**it["files"], "/etc/passwd": {"sha256": "", "bytes": 1}}},
    "no files": lambda it: {**it, "files": {}},
    "a list": lambda it: [1, 2],
    "another format": lambda it: {**it, "format": 99},
    "a text for a number": lambda it: {**it, "files": {name: {"sha256": 1, "bytes": "x"} for name in it["files"]}},
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_wrong_manifests(kind, refuse, trained, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (file,) = run_dir.glob("checkpoints/*/manifest.json")
    file.write_text(json.dumps(MANIFESTS[kind](json.loads(file.read_text()))))
    assert "every checkpoint in" in refuse("main_stage1.py", "--resume", "-l", run_dir)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", NESTED),
        ("index.json", NESTED),
        ("manifest.json", NESTED),
        ("manifest.json", "\udcff"),
        ("state.json", '{"step": 1e999}'),
        ("index.json", "{"),
        ("state.json", "[" + "0," * 3_000_000 + "0]"),
    ],
    ids=["nested", "nested index", "nested manifest", "bytes", "infinite", "cut", "huge"],
)
def test_json_of_checkpoints(name, text, refuse, trained, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (checkpoint,) = run_dir.glob("checkpoints/step_*")
    (checkpoint / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    if name != "manifest.json":
        resign(checkpoint)
    refuse("main_stage1.py", "--resume", "-l", run_dir)


@pytest.mark.parametrize("text", ["{", NESTED, "[1, 2]", "\udcff"], ids=["cut", "nested", "list", "bytes"])
def test_metadata_of_snapshots(text, refuse, trained, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (file,) = run_dir.glob("snapshots/*/metadata.json")
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    two = write_config(tmp_path / "2.yaml", stage2())
    assert "metadata.json" in refuse("main_stage2.py", "-m", two, "-r", tmp_path / "runs", "-v", file.parent)


@pytest.mark.parametrize("kind", YAML_TEXTS)
def test_yaml_that_builds_objects(kind, refuse, trained, tmp_path, trap):
    """As the experiment, as the config of a snapshot and of a resumed run, and beside published weights."""
    text = YAML_TEXTS[kind].replace("TRAP", str(trap))
    config = tmp_path / "evil.yaml"
    config.write_text(text)
    assert "evil.yaml" in refuse("main_stage1.py", "-m", config, "-r", tmp_path / "runs")
    if kind not in ("apply", "target", "nested"):  # three are enough for the other ways in
        return
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    (snapshot,) = run_dir.glob("snapshots/step_*")
    (run_dir / "config.yaml").write_text(text)
    (snapshot / "config.yaml").write_text(text)
    assert "config.yaml" in refuse("main_stage1.py", "--resume", "-l", run_dir)
    two = write_config(tmp_path / "2.yaml", stage2())
    assert "config.yaml" in refuse("main_stage2.py", "-m", two, "-r", tmp_path / "runs", "-v", snapshot)


def test_targets_on_the_command_line(refuse, tmp_path, trap):
    config = write_config(tmp_path / "tiny.yaml", stage1())
    assert "unknown key" in refuse(
        "main_stage1.py",
        "-m",
        config,
        "-r",
        tmp_path / "runs",
        "optimizer._target_=os.system",
        f"+optimizer.command='touch {trap}'",
    )


def image_folder(root: Path, train_images: int = 8) -> Path:
    for split, count in (("train", train_images), ("val", 4)):
        for index in range(count):
            path = root / split / "one" / f"{index:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    return root


def test_image_bombs_are_passed_over_and_counted(run, tmp_path, trap):
    root = image_folder(tmp_path / "images")
    evil_files.png_bomb(root / "train/one/00.png", trap)
    evil_files.png_with_a_text_bomb(root / "train/one/01.png", trap)
    (root / "train/one/02.png").write_bytes(b"MZ no image")
    (root / "train/one/03.png").unlink()
    (root / "train/one/03.png").symlink_to("/no/such/file")
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1({"dataset": {"type": "folder", "root": str(root), "resolution": 8}, "experiment.max_steps": 4}),
    )
    code, _ = run("main_stage1.py", "-m", config, "-r", tmp_path / "runs")
    assert code == 0
    log = (only_run(tmp_path / "runs") / "train.log").read_text()
    assert re.search(r"[34] unreadable train images were replaced", log)


def test_more_unreadable_images_than_allowed_stop_the_run(refuse, tmp_path, trap):
    root = image_folder(tmp_path / "images")
    for index in range(4):
        evil_files.png_bomb(root / f"train/one/{index:02d}.png", trap)
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1(
            {
                "dataset": {"type": "folder", "root": str(root), "resolution": 8, "max_corrupt": 2},
                "experiment.max_steps": 4,
                "experiment.num_workers": 1,
            }
        ),
    )
    line = refuse("main_stage1.py", "-m", config, "-r", tmp_path / "runs")
    assert "3 images of folder (train) cannot be read, dataset.max_corrupt is 2" in line


@pytest.mark.parametrize("kind", TARS)
def test_archives_that_lead_out(kind, refuse, tmp_path, trap):
    shards = tmp_path / "shards" / "train"
    shards.mkdir(parents=True)
    TARS[kind](shards / "000000.tar", trap)
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1({"dataset": {"type": "shards", "root": str(tmp_path / "shards"), "resolution": 8}}),
    )
    assert "is refused" in refuse("main_stage1.py", "-m", config, "-r", tmp_path / "runs")
    # as images to score: the same or passed over, never unpacked
    folder = tmp_path / "fake"
    shutil.copytree(shards, folder)
    refuse("compute_metrics.py", f"fake_path={folder}", "ref_dataset=digits", "metrics=fid", "--features", "classifier")
    assert not list(tmp_path.rglob("trap*"))


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_that_are_pickles_or_bombs(kind, refuse, tmp_path, trap):
    file = tmp_path / "evil.npz"
    ARRAYS[kind](file, trap)
    features = ["--features", "classifier"]
    assert "evil.npz" in refuse(
        "compute_metrics.py", f"fake_path={file}", "ref_dataset=digits", "metrics=fid", *features
    )
    images = image_folder(tmp_path / "images") / "train"
    assert "evil.npz" in refuse(
        "compute_metrics.py", f"fake_path={images}", f"ref_dataset={file}", "metrics=fid", *features
    )


def test_training_opens_no_connection(run, monkeypatch, tmp_path):
    """URLs are used where the user gave them; a run without any stays on its machine."""
    import socket

    def refuse_to_connect(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection to {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse_to_connect)
    monkeypatch.setattr(socket, "create_connection", refuse_to_connect)
    monkeypatch.setattr(socket, "getaddrinfo", refuse_to_connect)
    one, two = write_config(tmp_path / "1.yaml", stage1()), write_config(tmp_path / "2.yaml", stage2())
    assert run("main_stage1.py", "-m", one, "-r", tmp_path / "runs")[0] == 0
    first = only_run(tmp_path / "runs")
    assert run("main_stage2.py", "-m", two, "-v", first, "-r", tmp_path / "second")[0] == 0
    second = only_run(tmp_path / "second")
    assert run(
        "main_sampling_fid.py",
        "-v",
        first,
        "-a",
        second,
        "-n",
        4,
        "-bs",
        4,
        "--save-dir",
        tmp_path / "out",
        "--only-samples",
    )[0] in (0, 2)


def test_two_runs_in_one_second_do_not_meet(run, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1({"experiment.max_steps": 1}))
    for _ in range(3):
        assert run("main_stage1.py", "-m", config, "-r", tmp_path / "runs")[0] == 0
    runs = list(tmp_path.glob("runs/tiny/*"))
    assert len(runs) == 3
    assert all(len((entry / "metrics.jsonl").read_text().splitlines()) == 2 for entry in runs)
