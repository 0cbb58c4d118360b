"""Fashion-MNIST from nothing to a score, through the entry scripts: both stages, then samples and their FID.

FID with the features of a classifier trained on the data set itself: Inception's weights need not be here. A rehearsal
takes the bundled digits and a step each.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.gpu.items.scripts import run_script
from benchmarks.gpu.report import Report
from benchmarks.gpu.settings import Absent

STEPS = (600, 800)  # of 512 images: 5 and 7 passes over the data
BATCH, SAMPLES = 512, 2000


def train_and_score(report: Report) -> None:
    """Seconds of every script and the scores of the samples."""
    folder = report.settings.fashion_mnist
    if folder is None and not report.tiny:
        raise Absent("no files of Fashion-MNIST: --fashion-mnist DIR or RQ_FASHION_MNIST=DIR")
    name = "digits" if report.tiny else "fashion-mnist"
    root = [] if report.tiny else [f"dataset.root={folder}"]
    steps, batch, samples = ((1, 1), 8, 20) if report.tiny else (STEPS, BATCH, SAMPLES)
    words = [
        *root,
        f"experiment.batch_size={batch}",
        "experiment.epochs=null",
        "experiment.test_steps=100000",
        "experiment.save_steps=100000",
        *(["experiment.num_workers=0", "experiment.test_images=8"] if report.tiny else []),
    ]
    with tempfile.TemporaryDirectory() as place:
        runs = [Path(place) / "stage1", Path(place) / "stage2"]
        for stage, (run, number) in enumerate(zip(runs, steps), start=1):
            (config,) = Path(f"configs/{name}/stage{stage}").glob("*.yaml")
            first = ["-v", _newest(runs[0])] if stage == 2 else ["gan=null"] if not report.tiny else []
            flags = ["-m", config, "-r", run, *first, f"experiment.max_steps={number}", *words]
            seconds = run_script(f"main_stage{stage}.py", *flags, gpu=report.on_gpu)
            report.note(f"stage{stage}_s", round(seconds, 1))
        flags = ["-v", _newest(runs[0]), "-a", _newest(runs[1]), "-n", samples, "-bs", min(samples, 1000), *root]
        flags += ["--features", "classifier", "--features-cache", Path(place) / "classifier"]
        seconds = run_script("main_sampling_fid.py", *flags, "--save-dir", Path(place) / "samples", gpu=report.on_gpu)
        report.note("sampling_s", round(seconds, 1))
        report.note("scores", _scores(Path(place)))


def _newest(results: Path) -> Path:
    """The run below a folder of results."""
    (run,) = results.glob("*/*/")
    return run


def _scores(place: Path) -> dict[str, float]:
    """The numbers of the result file that the script wrote."""
    texts = (json.loads(file.read_text(encoding="utf-8")) for file in (place / "samples").rglob("*.json"))
    (metrics,) = [text["metrics"] for text in texts if "metrics" in text]
    return metrics
