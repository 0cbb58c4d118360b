"""Every command of the published README, and ours beside it, as `docs/commands.md` lists them: run on tiny models."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.published_workspace import COUNT, ROOT, environment, make_workspace, transformer_checkpoint
from tests.ranks import free_port

DOCUMENT = (ROOT / "docs" / "commands.md").read_text()
LAUNCHERS = dict(re.findall(r'^(LAUNCH\w*)="(.*)"$', DOCUMENT, flags=re.MULTILINE))
SAME = "the same"
# What would take hours: the number of processes, of samples, and the size of the model whose speed is measured.
SHORTER = {
    "--nproc_per_node=4": "--nproc_per_node=2",
    "--nnodes=4": "--nnodes=2",
    "main_sampling_fid.py": "main_sampling_fid.py -n 10 --metrics fid,is -bs 3",
    "model=huge": "model=small n_loop=1 warmup=0",
    "c=16384": "c=64",
    **{f"batch_size={size}": "batch_size=1" for size in (100, 200, 500)},
}
PATIENCE = 900.0  # seconds, for one command on a busy machine


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    published: str
    ours: str


def table() -> list[Row]:
    section = DOCUMENT.split("| What | Published | Here |")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines()[2:]]
    return [
        Row(name, published.strip("`"), ours.split("`")[1] if "`" in ours else SAME) for name, published, ours in cells
    ]


ROWS = {row.name: row for row in table()}
PUBLISHED_README = {
    "$LAUNCH main_stage1.py -m=configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml -r=$SAVE_DIR",
    "$LAUNCH_NODE main_stage1.py -m=configs/imagenet256/stage1/in256-rqvae-8x8x4.yaml -r=$SAVE_DIR",
    "$LAUNCH main_stage1.py -m=configs/lsun-church/stage1/church256-rqvae-8x8x4.yaml -r=$SAVE_DIR -l=$RQVAE_CKPT",
    "python compute_rfid.py --split=val --vqvae=$RQVAE_CKPT",
    "$LAUNCH main_sampling_fid.py -v=$RQVAE_CKPT -a=$RQTRANSFORMER_CKPT --save-dir=$SAVE_IMG_DIR",
    '$LAUNCH main_sampling_txt2img.py -v=$RQVAE_CKPT -a=$RQTRANSFORMER_CKPT --dataset="cc3m" --save-dir=$SAVE_IMG_DIR',
    '$LAUNCH main_sampling_txt2img.py -v=$RQVAE_CKPT -a=$RQTRANSFORMER_CKPT --dataset="coco_2014val" '
    "--save-dir=$SAVE_IMG_DIR",
    "python compute_metrics.py fake_path=$DIR_SAVED_IMG ref_dataset=$DATASET_NAME",
    *(
        f"python -m measure_throughput f={f} d={d} c=16384 model=huge batch_size={size}"
        for f, d in ((16, 1), (32, 4))
        for size in (100, 200, 500)
    ),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("checkout"))


def shortened(command: str) -> str:
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    return command


def run(command: str, workspace: Path, out: Path, kind: str = "class") -> str:
    """Runs a command as a shell does, on every node that it speaks of; returns what the first one printed."""
    variables = {
        "SAVE_DIR": str(out),
        "SAVE_IMG_DIR": str(out),
        "RQTRANSFORMER_CKPT": transformer_checkpoint(workspace, kind),
    }
    port = free_port()
    for name in sorted(LAUNCHERS, reverse=True):  # LAUNCH_NODE before LAUNCH
        command = command.replace(f"${name}", LAUNCHERS[name])
    command = shortened(command)
    nodes = range(2 if "$RANK" in command else 1)
    running = [
        subprocess.Popen(
            ["bash", "-euc", command],
            cwd=workspace,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(workspace, port, RANK=str(node), **variables),
        )
        for node in nodes
    ]
    printed = []
    for process in running:
        try:
            printed.append(process.communicate(timeout=PATIENCE)[0])
        except subprocess.TimeoutExpired:
            for other in running:
                other.terminate()
            raise
    assert all(process.returncode == 0 for process in running), f"{command}\n{printed[0][-3000:]}"
    return printed[0]


def commands_of(name: str) -> list[str]:
    row = ROWS[name]
    return [row.published] if row.ours == SAME or "--sweep" in row.ours else [row.published, row.ours]


def result_of(out: Path) -> dict:
    (line,) = [json.loads(file.read_text()) for file in out.glob("samples/*/result.json")]
    return line


def test_the_table_has_every_command_of_the_published_readme():
    assert PUBLISHED_README <= {row.published for row in ROWS.values()}
    common = "python -m torch.distributed.launch --master_addr=$MASTER_ADDR --master_port=$PORT "
    assert LAUNCHERS == {
        "LAUNCH": common + "--nnodes=1 --nproc_per_node=4 --node_rank=0",
        "LAUNCH_NODE": common + "--nnodes=4 --nproc_per_node=1 --node_rank=$RANK",
    }
    for name, row in ROWS.items():
        assert name in TESTED, f"no test runs {row.published}"


def check_training(name: str, workspace: Path, tmp_path: Path) -> None:
    for number, command in enumerate(commands_of(name)):
        out = tmp_path / str(number)
        run(command, workspace, out)
        (metrics,) = out.glob("*/*/metrics.jsonl")
        assert len(metrics.read_text().splitlines()) >= 1
        snapshots = list(out.glob("*/*/snapshots/*/COMPLETE"))
        assert bool(snapshots) == ("--eval" not in command)


def check_rfid(name: str, workspace: Path, tmp_path: Path) -> None:
    lines = []
    for command in commands_of(name):
        run(command, workspace, tmp_path)
        lines.append(json.loads((workspace / "checkpoints" / "rqvae" / "rfid_val_inception.json").read_text()))
    assert lines[0]["num_images"] == 2 * COUNT
    assert list(lines[0]["metrics"])[0].endswith("vs_val")
    assert lines[1]["metrics"] == pytest.approx(lines[0]["metrics"], rel=1e-4)


def check_samples(name: str, workspace: Path, tmp_path: Path) -> None:
    lines = []
    for number, command in enumerate(commands_of(name)):
        run(command, workspace, tmp_path / str(number))
        lines.append(result_of(tmp_path / str(number)))
    assert lines[0]["num_images"] == 10
    assert [key.split("_")[0] for key in lines[0]["metrics"]] == ["fid", "is", "is-std"]
    assert lines[1]["metrics"] == pytest.approx(lines[0]["metrics"], rel=1e-4)


def check_text(name: str, workspace: Path, tmp_path: Path) -> None:
    lines = []
    for number, command in enumerate(commands_of(name)):
        lines.append(check_one_text_run(command, workspace, tmp_path / str(number)))
    assert lines[1]["metrics"] == pytest.approx(lines[0]["metrics"], rel=1e-4)


def check_one_text_run(command: str, workspace: Path, out: Path) -> dict:
    run(command, workspace, out, "text")
    line = result_of(out)
    assert line["num_images"] == COUNT
    assert [key.split("_")[0] for key in line["metrics"]] == ["fid", "clip-cosine", "clip-score100"]
    assert len(list(out.glob("samples/*/images/*.png"))) == COUNT
    return line


def check_metrics(name: str, workspace: Path, tmp_path: Path) -> None:
    lines = []
    for command in commands_of(name):
        run(command, workspace, tmp_path)
        lines.append(json.loads((workspace / "saved_metrics_inception.json").read_text()))
    assert lines[0]["num_images"] == 10
    assert lines[1]["metrics"] == pytest.approx(lines[0]["metrics"], rel=1e-4)


def check_speed(name: str, workspace: Path, tmp_path: Path) -> None:
    for command in commands_of(name):
        row = json.loads(run(command, workspace, tmp_path).splitlines()[-1])
        assert "ms" in json.dumps(row)


TESTED = {
    "Stage 1, one node": check_training,
    "Stage 1, several nodes": check_training,
    "Finetuning of stage 1": check_training,
    "Validation of stage 1": check_training,
    "rFID": check_rfid,
    "FID and IS of samples": check_samples,
    "CC-3M: FID and CLIP score": check_text,
    "MS-COCO: FID and CLIP score": check_text,
    "Scores of saved images": check_metrics,
    **{f"Speed, {shape}, batch {size}": check_speed for shape in ("16x16x1", "8x8x4") for size in (100, 200, 500)},
}


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("name", TESTED)
def test_published_and_ours(name, workspace, tmp_path):
    TESTED[name](name, workspace, tmp_path)


@pytest.mark.slow
def test_the_published_command_for_cc3m(workspace, tmp_path):
    line = check_one_text_run(ROWS["CC-3M: FID and CLIP score"].published, workspace, tmp_path)
    assert line["captions"]["source"] == "cc3m:val"
    assert line["reference"]["source"] == "cc3m:val"
