"""Non-finite steps: stopped or skipped, kept for replay, and alarms on losses and codes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from runtime.seeding import seed_everything_for_step
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    launch_in_process,
    only_run,
    session,
    stage1,
    train,
    write_config,
)
from training.loop.faults import MAX_KEPT, CollapseAlarm, NonFiniteStep, SpikeAlarm, load_fault
from training.stages.stage1 import Stage1

STEPS = 6
PLAN = {
    "experiment.max_steps": STEPS,
    "experiment.save_steps": 2,
    "experiment.test_steps": STEPS,
    "experiment.log_steps": 2,
    "experiment.total_batch_size": 8,
    "dataset.random_shift": 1,
}
BAD = 3


def poison(monkeypatch, *steps: int) -> list[torch.Tensor]:
    """Makes the loss of these steps infinite; returns the images they saw, micro-batch by micro-batch."""
    whole, losses, seen = Stage1._autoencoder_pass, Stage1._image_losses, []
    current = {}

    def one_pass(self, image_BCHW, step, count):
        current["step"] = step
        return whole(self, image_BCHW, step, count)

    def infinite(self, recon_BCHW, image_BCHW):
        nll, terms = losses(self, recon_BCHW, image_BCHW)
        if current["step"] in steps:
            seen.append(image_BCHW)
            nll = nll * math.inf
        return nll, terms

    monkeypatch.setattr(Stage1, "_autoencoder_pass", one_pass)
    monkeypatch.setattr(Stage1, "_image_losses", infinite)
    return seen


def test_a_run_that_stops_keeps_the_batch(monkeypatch, capsys, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    seen = poison(monkeypatch, BAD)
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    assert ended.value.code == 2
    run_dir = only_run(tmp_path / "runs")
    folder = run_dir / "faults" / f"step_{BAD:08d}"
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert f"loss_total is inf at step {BAD}" in errors[0]
    assert f"its batch is kept in {folder}" in errors[0]
    fault = load_fault(folder)
    assert fault.about["step"] == BAD
    assert fault.about["terms"]["loss_total"] == "inf"
    assert (fault.about["first_position"], fault.about["last_position"]) == (8 * BAD, 8 * BAD + 7)
    assert [torch.equal(batch["image"], image_BCHW) for batch, image_BCHW in zip(fault.batches, seen)] == [True, True]
    assert sorted(path.name for path in (run_dir / "checkpoints").glob("step_*")) == ["step_00000002"]


def test_a_kept_step_can_be_taken_again(monkeypatch, tmp_path):
    """From the checkpoint before it, with the recorded batch and random state: the same numbers, bit for bit."""
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"arch.ddconfig.dropout": 0.2}))
    with monkeypatch.context() as patch:
        poison(patch, 4)
        with pytest.raises(NonFiniteStep):
            train("stage1", "-m", config, "-r", tmp_path / "runs")
    run_dir = only_run(tmp_path / "runs")
    fault = load_fault(run_dir / "faults" / "step_00000004")
    ends = []
    for source in ("recorded", "loader"):
        run = session("stage1", "--resume", "-l", run_dir)
        run.close()
        assert run.start.step == 4
        if source == "recorded":
            batches = fault.batches
            torch.set_rng_state(fault.rng_state)
        else:
            batches = run._feed()
            seed_everything_for_step(fault.about["seed"], 0, 4)
        metrics = run.stage.train_step([next(it) for it in [iter(batches)] * 2], 4)
        ends.append({name: value.detach() for name, value in metrics.items()})
    assert differing(*ends) == []


def test_skipped_steps_are_kept_counted_and_leave_no_trace(monkeypatch, tmp_path, capfd):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.non_finite": "skip"}))
    poison(monkeypatch, 1, BAD)
    run = train("stage1", "-m", config, "-r", tmp_path / "runs")
    assert sorted(path.name for path in (run.run_dir / "faults").iterdir()) == ["step_00000001", f"step_{BAD:08d}"]
    about = json.loads((run.run_dir / "faults" / f"step_{BAD:08d}" / "fault.json").read_text())
    assert about["policy"] == "skip"
    assert "loss_total" in about["terms"]
    log = (run.run_dir / "train.log").read_text()
    assert f"step {BAD} was skipped: loss_total inf" in log
    assert run.stage.update.skipped == 2
    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["train/skipped_steps"] for line in lines if "train/skipped_steps" in line] == [0.5, 1.5, 2.0]
    tensors = checkpoint_tensors(run.run_dir / f"checkpoints/step_{STEPS:08d}")
    assert all(value.isfinite().all() for value in tensors.values() if value.is_floating_point())


def test_too_many_skipped_steps_stop_the_run(monkeypatch, tmp_path, capsys):
    config = write_config(
        tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.non_finite": "skip", "experiment.max_skipped_steps": 1})
    )
    poison(monkeypatch, 2, 3)
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    assert ended.value.code == 2
    assert "more than experiment.max_skipped_steps=1; the last one was step 3" in capsys.readouterr().err
    assert (only_run(tmp_path / "runs") / "checkpoints/step_00000002").is_dir()


def test_not_every_fault_is_kept(monkeypatch, tmp_path):
    steps = MAX_KEPT + 2
    config = write_config(
        tmp_path / "tiny.yaml",
        stage1(PLAN | {"experiment.non_finite": "skip", "experiment.max_steps": steps, "experiment.save_steps": steps}),
    )
    poison(monkeypatch, *range(steps))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs")
    assert len(list((run.run_dir / "faults").iterdir())) == MAX_KEPT


def test_faults_that_cannot_be_written_do_not_hide_the_cause(monkeypatch, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    poison(monkeypatch, BAD)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.loop.faults.save_file", full)
    with pytest.raises(NonFiniteStep, match="loss_total is inf at step 3.*its batch is not kept"):
        train("stage1", "-m", config, "-r", tmp_path / "runs")
    log = (only_run(tmp_path / "runs") / "train.log").read_text()
    assert "the fault of step 3 is not kept: " in log and "rank0.safetensors: [Errno 28] No space left on device" in log


def test_loss_spikes_are_reported_once_per_window():
    lines = []
    alarm = SpikeAlarm(10.0, 40, lines.append)
    noisy = [(step, "loss", 1.0 + 0.05 * math.sin(step)) for step in range(60)]
    alarm.look_at(noisy)
    assert lines == [], "noise is no spike"
    alarm.look_at([(60, "loss", 9.0), (61, "loss", 30.0), (62, "loss", 1.0)])
    assert len(lines) == 1
    assert "loss is 30 at step 61" in lines[0]
    alarm.look_at([(63, "loss", 1.0), (63, "accuracy", 50.0)])
    assert len(lines) == 1, "a spike does not move the bound, and other terms are not watched"


def test_falling_losses_and_short_histories_are_no_spikes():
    lines = []
    SpikeAlarm(10.0, 40, lines.append).look_at([(0, "loss", 1.0), (1, "loss", 100.0)])
    SpikeAlarm(10.0, 40, lines.append).look_at([(step, "loss", 100.0 / (1 + step)) for step in range(200)])
    SpikeAlarm(None, 40, lines.append).look_at([(step, "loss", 10.0 ** (step % 30)) for step in range(200)])
    assert lines == []


def test_a_spike_in_a_run_is_in_its_log(monkeypatch, tmp_path):
    original = Stage1.train_step

    def train_step(self, micro_batches, step, *args):
        metrics = original(self, micro_batches, step, *args)
        return {**metrics, "loss_total": metrics["loss_total"] * (1e4 if step == 10 else 1)}

    monkeypatch.setattr(Stage1, "train_step", train_step)
    config = write_config(tmp_path / "tiny.yaml", stage1({"experiment.max_steps": 12, "experiment.spike_window": 20}))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs")
    assert (run.run_dir / "train.log").read_text().count("loss spike: loss_total is") == 1


def test_collapse_is_reported_until_it_ends():
    lines = []
    alarm = CollapseAlarm(0.1, lines.append)
    alarm.look_at(50, {"used_fraction_by_depth": [0.5, 0.05, 0.09]})
    assert lines == [
        "codebook collapse: of the codes only 5.00% at depth 1, 9.00% at depth 2 were used before step 50 "
        "(experiment.min_code_usage=0.1)"
    ]
    alarm.look_at(100, {"used_fraction_by_depth": [0.5, 0.05, 0.2]})
    assert len(lines) == 1
    alarm.look_at(150, {"used_fraction_by_depth": [0.05, 0.5, 0.05]})
    assert "depth 0, 5.00% at depth 2 were used before step 150" in lines[1]
    alarm.look_at(200, {"loss": 1.0})
    CollapseAlarm(0.0, lines.append).look_at(50, {"used_fraction_by_depth": [0.0]})
    assert len(lines) == 2


def test_a_collapsed_codebook_in_a_run_is_in_its_log(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1({"experiment.max_steps": 2}))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs", "experiment.min_code_usage=0.99")
    assert "codebook collapse: of the codes only" in (run.run_dir / "train.log").read_text()


def test_the_rng_state_is_the_one_the_step_begins_with(monkeypatch, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    poison(monkeypatch, BAD)
    with pytest.raises(NonFiniteStep):
        train("stage1", "-m", config, "-r", tmp_path / "runs", "--seed", 9)
    state = load_file(only_run(tmp_path / "runs") / f"faults/step_{BAD:08d}/rank0.safetensors")["rng_state"]
    seed_everything_for_step(9, 0, BAD)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_whose_weights_are_not_finite_saves_none_of_them(monkeypatch, capsys, tmp_path):
    """Every loss of it was finite, or its step was skipped."""
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"experiment.non_finite": "skip"}))
    original = Stage1.train_step

    def train_step(self, micro_batches, step, on_skip):
        terms = original(self, micro_batches, step, on_skip)
        if step == BAD:
            with torch.no_grad():
                self.model.decoder.conv_out.bias.fill_(math.nan)
        return terms

    monkeypatch.setattr(Stage1, "train_step", train_step)
    with pytest.raises(SystemExit) as ended:
        launch_in_process("stage1", "-m", config, "-r", tmp_path / "runs")
    assert ended.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "the weights after step 4 are not finite: decoder.conv_out.bias" in error and len(error) < 300
    run_dir = only_run(tmp_path / "runs")
    for kind in ("checkpoints", "snapshots"):
        assert [path.name for path in (run_dir / kind).glob("step_*")] == ["step_00000002"]
