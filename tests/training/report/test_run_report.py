"""The report of runs: what it reads, what it says in words, and a page that needs nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rqstack.snapshots import METADATA_FILE
from runtime.atomic import COMPLETION_MARK
from runtime.errors import UserError
from runtime.runlog import RunLog
from runtime.step_directories import step_name
from tests.commands import ended_here
from tests.training.tiny_runs import changed, stage1, stage2, train, write_config
from training.report.curves import QUALITY, marked, overlaid
from training.report.hints import hints
from training.report.page import write_report
from training.report.run_record import RunRecord


def run_of(folder: Path, lines: list[dict[str, Any]], changes: dict[str, Any] | None = None, stage=stage1) -> RunRecord:
    """A run directory with these metrics and this config."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.yaml", changed(stage(), {"experiment.max_steps": 100, **(changes or {})}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RunRecord.open(folder)


def line(step: int, timing: dict[str, float] | None = None, **metrics: Any) -> dict[str, Any]:
    named = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    return {"step": step, "epoch": step / 10, **named, "timing": {"images_per_second": 8.0} | (timing or {})}


def test_status_and_time_left(tmp_path):
    run = run_of(tmp_path / "a", [line(10, train_loss_total=1.0), line(40, train_loss_total=0.5)])
    assert (run.stage, run.status, run.step, run.total_steps) == ("stage1", "stopped", 40, 100)
    assert run.eta == "30s", "60 steps of 4 images at 8 images per second"
    done = run_of(tmp_path / "b", [line(100)])
    assert (done.status, done.eta) == ("done", "")
    epochs = run_of(tmp_path / "c", [line(5)], {"experiment.max_steps": None, "experiment.epochs": 2})
    assert epochs.total_steps == 20
    with RunLog(tmp_path / "a", loggers=()) as log:
        log.event("error", "out of luck", 40)
    assert RunRecord.open(tmp_path / "a").status == "ended with an error: out of luck"


def test_the_newest_snapshot_says_how_many_images_a_step_has(tmp_path):
    run = run_of(tmp_path, [line(40)])
    for step, images in ((10, 4), (40, 16)):
        snapshot = tmp_path / "snapshots" / step_name(step)
        snapshot.mkdir(parents=True)
        (snapshot / METADATA_FILE).write_text(json.dumps({"global_batch": images}))
        (snapshot / COMPLETION_MARK).touch()
    assert run.images_per_step == 16


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    with pytest.raises(UserError, match="is no run of a training script"):
        RunRecord.open(tmp_path)
    ended = ended_here(capsys, "training.report", tmp_path / "nothing")
    assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("lines", "changes", "says"),
    [
        ([line(9, train_used_fraction_by_depth=[0.9, 0.01])], {}, "codebook collapses: .* only 1.0% at depth 2"),
        ([line(9, train_disc_gap=0.01)] * 5, {}, "The discriminator is at chance"),
        ([line(9, {"data_wait_share": 0.5})], {"experiment.num_workers": 3}, "too slow: 50% .* \\(now 3\\)"),
        ([line(9)], {"optimizer.warmup": {"epoch": 12.0}}, "warm-up never ends: it takes 120 steps, the run has 100"),
        ([line(9, train_skipped_steps=2.0)], {}, "2 steps were skipped"),
        ([line(s, val_recon_mse=v) for s, v in ((1, 0.5), (2, 0.1), (3, 0.2))], {}, "recon_mse was 0.1 at step 2"),
        ([line(9, val_nll=5.0, val_unigram_nll=4.0)], {}, "5.000 nats per code against 4.000"),
    ],
)  # fmt: skip
def test_hints_say_what_is_wrong_in_words(lines, changes, says, tmp_path):
    (said,) = hints(run_of(tmp_path, lines, changes))
    assert re.search(says, said)


def test_a_sound_run_has_no_hints(tmp_path):
    sound = line(
        9, {"data_wait_share": 0.01}, train_used_fraction_by_depth=[0.9, 0.5], train_disc_gap=0.4, val_nll=3.0,
        val_unigram_nll=4.0, train_skipped_steps=0.0,
    )  # fmt: skip
    assert hints(run_of(tmp_path, [sound])) == []


def test_several_runs_share_a_plot_and_events_mark_a_single_one(tmp_path):
    runs = [run_of(tmp_path / n, [line(s, train_loss_total=1.0 / s) for s in (1, 2, 3)]) for n in ("one", "two")]
    together = overlaid(runs, QUALITY[:1])[0]
    assert all(run.name in together for run in runs)
    with RunLog(tmp_path / "one", loggers=()) as log:
        for kind in ("start", "resume", "spike", "spike", "done"):
            log.event(kind, "text", 2)
    run = RunRecord.open(tmp_path / "one")
    assert marked(run) == {"resumed": [2.0], "loss spike": [2.0, 2.0]}
    assert "loss spike" in overlaid([run], QUALITY[:1])[0]


def test_the_page_of_runs_is_complete_in_itself(tmp_path):
    lines = [line(s, train_loss_total=1.0 / s, train_used_fraction_by_depth=[1.0, 0.5]) for s in (1, 2)]
    one = run_of(tmp_path / "one", [*lines, {"step": 3, "val/lpips": 0.5}], {"dataset.root": "<b>\x1b[2J"})
    two = run_of(tmp_path / "two", [line(2, train_loss=1.0, train_loss_depth_0=2.0)], stage=stage2)
    with RunLog(one.run_dir, loggers=()) as log:
        log.log_images("samples", torch.zeros(3, 40, 2000, dtype=torch.uint8), 7)
        log.event("worker death", "<script>", 2)
    write_report([RunRecord.open(one.run_dir), two], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "://" not in page
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page and "&lt;b&gt;\\x1b[2J" in page
    assert 'alt="Samples after step 7"' in page and 'alt=""' not in page
    assert "<td>experiment.batch_size</td><td>-</td><td>4</td><td>4</td>" in page
    assert "arch.vocab_size_cond" in page and "prefers-color-scheme: dark" in page
    assert page.count("<svg") >= 4


def test_a_run_writes_its_report_with_every_snapshot(tmp_path):
    file = write_config(tmp_path / "tiny.yaml", stage1({"experiment.report": True, "experiment.max_steps": 2}))
    run = train("stage1", "-m", file, "-r", tmp_path / "runs")
    page = (run.run_dir / "report.html").read_text()
    assert "2 of 2" in page and "reconstruction" in page.lower() and "git commit" in page
    record = RunRecord.open(run.run_dir)
    assert [event["kind"] for event in record.events] == ["start", "done"]
    assert record.commands()[0].startswith("python ") and record.status == "done"
