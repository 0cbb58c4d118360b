"""`docs/your_own_images.md`, run from its own text: all its commands, on a few drawings with alpha."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import environment
from tests.evaluation.random_inception import write_random_weights
from tests.repository import ROOT

PAGE = (ROOT / "docs" / "your_own_images.md").read_text()
SETTINGS, *COMMANDS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(PROGRAM,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NAMES = re.findall(r"^(\w+)=", SETTINGS, re.MULTILINE)


def drawings(folder: Path, count: int) -> Path:
    """Squares of a colour on nothing, RGBA."""
    draw = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = np.zeros((80, 72, 4), np.uint8)
        top, left = draw.integers(0, 40, 2)
        pixels[top : top + 32, left : left + 32] = (*draw.integers(0, 256, 3), 255)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


def test_ten_commands_are_numbered_and_use_what_the_first_block_says():
    assert re.findall(r"^\*\*(\d+)\. ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 11)]
    assert len(COMMANDS) == 10 and all(len(re.findall(r"^python ", block, re.MULTILINE)) == 1 for block in COMMANDS)
    made = set(NAMES) | set(re.findall(r"^(?:export )?(\w+)=\"\$\(", "".join(COMMANDS), re.MULTILINE))
    assert set(re.findall(r"\$\(?\(?([A-Z]\w*)", "".join(COMMANDS))) == made


@pytest.mark.slow
@pytest.mark.timeout(3600)  # minutes of the processor, on a busy machine many more of a clock
def test_the_page_runs(tmp_path):
    runs, values = tmp_path / "runs", {"SIZE": 64, "STEPS1": 2, "STEPS2": 2, "BATCH": 2, "SCORED": 4, "NUMBER": 8}
    values |= {"IMAGES": drawings(tmp_path / "my images", 80), "FEATURES": "inception", "ROOT": runs}
    assert values.keys() == set(NAMES)
    set_up = "".join(f"{name}='{value}'\n" for name, value in values.items())
    script = f"set -euo pipefail\n{set_up}{''.join(COMMANDS)}python - <<'PROGRAM'\n{PROGRAM}PROGRAM\n"
    write_random_weights(tmp_path / "inception.pth")
    variables = environment(FID_INCEPTION_WEIGHTS=str(tmp_path / "inception.pth"))
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=3500
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    (stage1,), (stage2,) = (runs.glob(f"folder-64-{name}/*") for name in ("rqvae", "rqtransformer"))
    assert {path.name for path in (stage2 / "snapshots").iterdir()} >= {"step_00000002", "step_00000004"}
    assert len(list(stage1.rglob("rfid_val_inception.json"))) == 1
    assert len(list((runs / "reconstructed" / "images").iterdir())) == 80
    (samples,) = (runs / "samples").iterdir()
    scores = json.loads((samples / "metrics_inception.json").read_text())["metrics"]
    assert {name.split("_")[0] for name in scores} >= {"fid", "kid", "precision", "coverage"}
    assert (samples / "metrics.html").is_file()
    assert (runs / "report.html").is_file()
    assert len(list((runs / "inpainted").glob("*/fill-*.png"))) == 4
