"""What is said before there is a log and after the last step."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.launch.words import announce, closing_lines, next_commands


class Snapshots:
    """Those of a run with a best one, or without."""

    directory = Path("/runs/my run/snapshots")

    def __init__(self, reason: dict) -> None:
        self.best_reason = lambda: reason


def config(
    text_length: int = 1, root: str | None = None, ema: float | None = None, features: str = "auto"
) -> SimpleNamespace:
    return SimpleNamespace(
        arch=SimpleNamespace(block_size_cond=text_length, ema=ema),
        experiment=SimpleNamespace(score=SimpleNamespace(features=features)),
        vqvae=SimpleNamespace(ckpt="/runs/one"),
        dataset=SimpleNamespace(root=root),
    )


def test_the_first_process_says_what_is_loaded(capsys, monkeypatch):
    announce("reading x\x1b.yaml")
    assert re.fullmatch(r"\d\d:\d\d:\d\d I reading x\\x1b\.yaml\n", capsys.readouterr().err)
    monkeypatch.setenv("RANK", "1")
    announce("again")
    assert capsys.readouterr().err == ""


def test_the_end_says_time_score_model_and_commands():
    best = {"metric": "rfid_x_val", "value": 1.23456, "num_images": 64}
    lines = closing_lines("stage1", config(), Snapshots(best), total_steps=200, seconds=65.0, mfu=0.432)
    assert lines[:3] == [
        "done: step 200 after 1m05s, MFU 43.2%",
        "best rfid_x_val 1.235 of 64 images: /runs/my run/snapshots/best",
        "model: /runs/my run/snapshots/step_00000200",
    ]
    assert (
        len(closing_lines("stage1", config(), Snapshots({}), total_steps=200, seconds=65.0, mfu=None)) == len(lines) - 1
    )


@pytest.mark.parametrize(
    ("stage", "length", "scripts"),
    [
        ("stage1", 1, ["compute_rfid.py", "main_stage2.py", "-m", "main_stage1.py"]),
        ("stage2", 1, ["main_sampling_fid.py", "main_sampling_fid.py", "-m", "main_stage2.py"]),
        ("stage2", 8, ["main_sampling_txt2img.py", "main_sampling_txt2img.py", "-m", "main_stage2.py"]),
    ],
)
def test_commands_have_the_paths_of_the_run(stage, length, scripts):
    commands = next_commands(stage, config(length), Path("/runs/my run"), 200, "configs/demo/stage1/digits.yaml")
    words = [shlex.split(command) for _, command in commands]
    assert [command[1] for command in words] == scripts
    assert all("/runs/my run" in command for command in words)
    assert words[-1][-1] == "experiment.max_steps=400"
    if stage == "stage1":
        assert words[1][3] == "configs/demo/stage2/digits.yaml"
        assert len(next_commands(stage, config(), Path("/r"), 200, "mine.yaml")) == 3, "no stage 2 is known to it"
        mine = config(root="my images")
        named = next_commands(stage, mine, Path("/r"), 200, "configs/folder/stage1/folder-64-rqvae.yaml")
        second = shlex.split(dict(named)["stage 2"])
        assert second[2:] == [
            "-m",
            "configs/folder/stage2/folder-64-rqtransformer.yaml",
            "-v",
            "/r",
            "dataset.root=my images",
        ]


@pytest.mark.parametrize(("stage", "length"), [("stage1", 1), ("stage2", 1), ("stage2", 8)])
def test_commands_take_the_averaged_weights_and_the_features_of_the_run(stage, length):
    averaged = dict(next_commands(stage, config(length, ema=0.999, features="classifier"), Path("/r"), 200))
    assert " --ema" in averaged["evaluate"] and averaged["evaluate"].endswith(" --features classifier")
    assert stage == "stage1" or (" --ema" in averaged["sample"] and "--features" not in averaged["sample"])
    plain = dict(next_commands(stage, config(length, features="inception"), Path("/r"), 200))
    assert not any(flag in command for command in plain.values() for flag in ("--ema", "--features"))
