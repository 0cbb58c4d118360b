"""What `--resume` and `-l` find, and what a resumed run keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.step_directories import complete_steps
from tests.training.tiny_runs import parse, session, stage1, stage2, train, train_until, write_config
from training.checkpoints.checkpoint_directories import complete_checkpoints
from training.launch.starting_points import find_checkpoint, find_weights, run_to_resume

SAVE_OFTEN = {"experiment.save_steps": 1, "experiment.max_steps": 3, "experiment.keep_checkpoints": 5}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """A config and a finished run of it, with three checkpoints and three snapshots."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "tiny.yaml", stage1(SAVE_OFTEN))
    return config, train("stage1", "-m", config, "-r", folder / "runs", "optimizer.init_lr=0.002").run_dir


def resume_flags(config: Path, run_dir: Path) -> list[object]:
    return ["-m", config, "-r", run_dir.parent.parent, "--resume"]


def test_a_resumed_run_keeps_its_overrides(finished):
    run = session("stage1", *resume_flags(*finished))
    assert run.config.optimizer.init_lr == 0.002
    assert run.start.step == 3
    run.close()


def test_words_on_the_command_line_still_change_it(finished):
    run = session("stage1", *resume_flags(*finished), "experiment.max_steps=5")
    assert run.plan.total_steps == 5
    assert run.config.optimizer.init_lr == 0.002
    run.close()


def test_another_seed_is_refused(finished):
    with pytest.raises(UserError, match="seed=7: the resumed run has 0 and cannot change it"):
        session("stage1", *resume_flags(*finished), "--seed", 7)


def test_newer_runs_without_a_checkpoint_do_not_hide_it(finished):
    config, run_dir = finished
    (run_dir.parent / "2999-01-01_00-00-00").mkdir(exist_ok=True)
    checkpoint = find_checkpoint(run_to_resume(parse("stage1", *resume_flags(config, run_dir))))
    assert checkpoint.parent.parent == run_dir
    assert checkpoint.name == "step_00000003"


def test_an_evaluation_has_its_own_directory(finished):
    config, run_dir = finished
    run = session("stage1", "-m", config, "-r", run_dir.parent.parent, "--eval", "-l", run_dir)
    assert run.run_dir.parent.name == "tiny-eval"
    run.close()


def test_what_lies_after_the_resumed_step_is_gone(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(SAVE_OFTEN))
    run_dir = train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir
    run = session("stage1", "--resume", "-l", run_dir / "checkpoints" / "step_00000002")
    assert run.start.step == 2
    run.close()
    assert [path.name for path in complete_checkpoints(run_dir)] == ["step_00000002", "step_00000001"]
    assert [path.name for path in complete_steps(run_dir / "snapshots")] == ["step_00000002", "step_00000001"]
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["step"] for line in lines) == 2


def test_a_checkpoint_stands_for_the_snapshot_of_its_step(finished, tmp_path):
    _, run_dir = finished
    assert find_weights(run_dir / "checkpoints" / "step_00000002", -1) == run_dir / "snapshots" / "step_00000002"
    without_snapshot = tmp_path / "checkpoints" / "step_00000002"
    without_snapshot.mkdir(parents=True)
    with pytest.raises(UserError, match="can only be resumed"):
        find_weights(without_snapshot, -1)


def test_stage2_names_the_snapshot_and_refuses_other_codes(finished, tmp_path):
    _, tokenizer_run = finished
    config = write_config(tmp_path / "second.yaml", stage2({"experiment.save_steps": 1}))
    train_until(2, "stage2", "-m", config, "-v", tokenizer_run, "-r", tmp_path / "runs")
    (run_dir,) = (tmp_path / "runs" / "second").iterdir()
    snapshot = str(tokenizer_run / "snapshots" / "step_00000003")
    assert snapshot in (run_dir / "config.yaml").read_text()
    other = str(tokenizer_run / "snapshots" / "step_00000001")
    with pytest.raises(UserError, match="was trained with tokenizer"):
        session("stage2", "--resume", "-l", run_dir, f"vqvae.ckpt={other}")
