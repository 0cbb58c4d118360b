"""Exact resume on the device: a run of 8 steps against the same run cut off after 4 and resumed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.gpu.items.scripts import run_script
from benchmarks.gpu.report import Report
from runtime.step_directories import CHECKPOINTS, SNAPSHOTS, step_name

SCRIPT, CONFIG = "main_stage1.py", "configs/digits/stage1/digits-rqvae-4x4x4.yaml"


def compare(report: Report) -> None:
    """All tensors of the last snapshot, bit for bit."""
    half = 1 if report.tiny else 4
    words: list[str] = [
        "experiment.epochs=null",
        f"experiment.max_steps={2 * half}",
        f"experiment.save_steps={half}",
        "experiment.test_steps=1000",
        "experiment.deterministic=true",
        f"experiment.batch_size={4 if report.tiny else 64}",
        f"experiment.num_workers={0 if report.tiny else 2}",
        *(["experiment.test_images=8"] if report.tiny else []),
    ]
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = Path(folder) / "whole", Path(folder) / "cut"
        report.note("whole_s", round(run_script(SCRIPT, "-m", CONFIG, "-r", whole, *words, gpu=report.on_gpu), 1))
        shutil.copytree(whole, cut)
        for kind in (CHECKPOINTS, SNAPSHOTS):
            for last in cut.glob(f"*/*/{kind}/{step_name(2 * half)}"):
                shutil.rmtree(last)
        seconds = run_script(SCRIPT, "-m", CONFIG, "-r", cut, "--resume", *words, gpu=report.on_gpu)
        report.note("resumed_s", round(seconds, 1))
        first, second = (_weights(path, 2 * half) for path in (whole, cut))
    different = [name for name in first if not torch.equal(first[name], second[name])]
    report.check("bit for bit", not different, tensors=len(first), different=different[:8])


def _weights(results: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = results.glob(f"*/*/{SNAPSHOTS}/{step_name(step)}/model.safetensors")
    return load_file(file)
