"""2N steps equal N steps, a kill, `--resume` and N steps, bit for bit: everything in a checkpoint, and the log."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.errors import UserError
from tests.commands import start, succeed
from tests.training.tiny_runs import (
    GAN,
    checkpoint_tensors,
    differing,
    metrics_without_time,
    only_run,
    session,
    stage1,
    stage2,
    state_json,
    train,
    train_until,
    write_config,
)

HALF = 3
PLAN = {
    "experiment.max_steps": 2 * HALF,
    "experiment.save_steps": HALF,
    "experiment.test_steps": 2,
    "experiment.log_steps": 2,
}
LAST = f"checkpoints/step_{2 * HALF:08d}"
STAGE1_CASES = {
    "deferred-gan-ema": {"gan": GAN, "arch.ema": 0.9},
    "per-depth-late-gan": {
        "gan": GAN,
        "gan.loss.disc_start_step": 2,
        "gan.loss.gen_ramp_steps": 3,
        "arch.hparams.codebook_update": "per_depth",
    },
    "separate-codebooks-augmented": {
        "arch.hparams.shared_codebook": False,
        "arch.hparams.n_embed": [16, 8, 4],
        "dataset.hflip": True,
        "dataset.random_shift": 1,
        "arch.ddconfig.dropout": 0.1,
        "experiment.total_batch_size": 8,
    },
    "bf16-own-disc-optimizer": {
        "gan": GAN,
        "experiment.precision": "bf16",
        "gan.disc.arch.use_actnorm": True,
        "gan.disc.optimizer": {"type": "sgd", "init_lr": 0.01, "momentum": 0.9},
    },
}
DROPOUT = {"n_head": 2, "attn_pdrop": 0.1, "resid_pdrop": 0.1}
STAGE2_CASES = {
    "stochastic-dropout-ema": {
        "loss.stochastic_codes": True,
        "arch.ema": 0.9,
        "arch.embd_pdrop": 0.1,
        "arch.body.block": DROPOUT,
        "arch.head.block": DROPOUT,
        "arch.cond_drop_prob": 0.2,
    },
    "hard-accumulated": {
        "loss.type": "cross_entropy",
        "loss.stochastic_codes": True,
        "arch.embd_pdrop": 0.1,
        "experiment.total_batch_size": 8,
        "experiment.gradient_checkpointing": True,
    },
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A trained stage-1 run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir


def assert_same_end(straight: Path, resumed: Path) -> None:
    for part in (LAST, f"snapshots/step_{2 * HALF:08d}"):
        assert differing(checkpoint_tensors(straight / part), checkpoint_tensors(resumed / part)) == []
    assert state_json(straight / LAST) == state_json(resumed / LAST)
    assert metrics_without_time(straight) == metrics_without_time(resumed)


def run_both_ways(stage: str, config: Path, tmp_path: Path, *flags: str | Path) -> tuple[Path, Path]:
    """The same run straight through, and killed two steps after its checkpoint and resumed."""
    straight = train(stage, "-m", config, "-r", tmp_path / "straight", *flags).run_dir
    train_until(2 * HALF - 1, stage, "-m", config, "-r", tmp_path / "killed", *flags)
    killed = only_run(tmp_path / "killed")
    assert not (killed / LAST).exists()
    assert metrics_without_time(killed)[-1]["step"] > HALF, "the kill must leave lines that resuming removes"
    assert train(stage, "--resume", "-l", killed).run_dir == killed
    return straight, killed


@pytest.mark.parametrize("case", STAGE1_CASES)
def test_stage1_resumes_bit_for_bit(case, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | STAGE1_CASES[case]))
    straight, resumed = run_both_ways("stage1", config, tmp_path)
    assert_same_end(straight, resumed)
    tensors = checkpoint_tensors(straight / LAST)
    early = checkpoint_tensors(straight / f"checkpoints/step_{HALF:08d}")
    moving = ["model/", "update/"]
    moving += ["discriminator/", "discriminator_update/"] if "gan" in STAGE1_CASES[case] else []
    moving += ["ema/"] if "arch.ema" in STAGE1_CASES[case] else []
    for prefix in moving:
        assert any(name.startswith(prefix) for name in differing(tensors, early)), f"nothing moved in {prefix}"
    assert "model/quantizer.codebooks.0.weight" in differing(tensors, early)


@pytest.mark.parametrize("case", STAGE2_CASES)
def test_stage2_resumes_bit_for_bit(case, tokenizer, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage2(PLAN | STAGE2_CASES[case]))
    straight, resumed = run_both_ways("stage2", config, tmp_path, "-v", tokenizer)
    assert_same_end(straight, resumed)


def test_another_seed_is_another_run(tmp_path):
    """What the comparisons above would miss if nothing depended on the noise."""
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    ends = [train("stage1", "-m", config, "-r", tmp_path / seed, "--seed", seed).run_dir / LAST for seed in "01"]
    assert "model/encoder.conv_in.weight" in differing(*map(checkpoint_tensors, ends))


def test_resume_finds_the_newest_run_of_the_config(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    train("stage1", "-m", config, "-r", tmp_path / "runs")
    train_until(HALF + 1, "stage1", "-m", config, "-r", tmp_path / "runs", "-p", "newer")
    resumed = session("stage1", "-m", config, "-r", tmp_path / "runs", "--resume")
    resumed.close()
    assert resumed.run_dir.name.endswith("_newer")
    assert (resumed.start.step, resumed.start.images_seen) == (HALF, HALF * 4)


def test_a_finished_run_resumes_to_nothing_and_can_be_made_longer(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    run_dir = train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir
    before = metrics_without_time(run_dir)
    train("stage1", "--resume", "-l", run_dir)
    assert metrics_without_time(run_dir) == before
    train("stage1", "--resume", "-l", run_dir, f"experiment.max_steps={2 * HALF + 1}")
    assert metrics_without_time(run_dir)[-1]["step"] == 2 * HALF + 1


def test_resuming_with_another_seed_or_architecture_is_refused(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    run_dir = train("stage1", "-m", config, "-r", tmp_path / "runs").run_dir
    with pytest.raises(UserError, match="seed=5: the resumed run has 0 and cannot"):
        session("stage1", "--resume", "-l", run_dir, "--seed", 5)
    with pytest.raises(UserError, match="arch.ddconfig.num_res_blocks=2: the resumed run has 1"):
        session("stage1", "--resume", "-l", run_dir, "arch.ddconfig.num_res_blocks=2")
    with pytest.raises(UserError, match="arch.ema=0.5: the resumed run has null"):
        session("stage1", "--resume", "-l", run_dir, "arch.ema=0.5")


def kill_after_first_checkpoint(command: list, result_path: Path) -> Path:
    """Starts an entry script and kills it (signal 9) once it has a checkpoint; returns its run directory."""
    process = start(*command)
    try:
        deadline = time.monotonic() + 120
        while not list(result_path.glob("*/*/checkpoints/step_*/COMPLETE")):
            assert process.poll() is None, process.stderr.read()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    return only_run(result_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_entry_scripts_resume_after_kill_9(stage, tokenizer, tmp_path):
    steps = 10 * HALF  # long enough to be killed in the middle
    plan = PLAN | {"experiment.max_steps": steps, "experiment.test_steps": steps // 2}
    changes = plan | (STAGE1_CASES["deferred-gan-ema"] if stage == "stage1" else STAGE2_CASES["stochastic-dropout-ema"])
    config = write_config(tmp_path / "tiny.yaml", (stage1 if stage == "stage1" else stage2)(changes))
    flags = ["-m", config, *(["-v", tokenizer] if stage == "stage2" else [])]
    killed = kill_after_first_checkpoint([f"main_{stage}.py", *flags, "-r", tmp_path / "killed"], tmp_path / "killed")
    end = f"checkpoints/step_{steps:08d}"
    assert not (killed / end).exists()
    succeed(f"main_{stage}.py", *flags, "-r", tmp_path / "killed", "--resume")
    straight = train(stage, *flags, "-r", tmp_path / "straight").run_dir
    assert differing(checkpoint_tensors(straight / end), checkpoint_tensors(killed / end)) == []
    assert metrics_without_time(straight) == metrics_without_time(killed)


def test_a_run_killed_before_its_first_checkpoint_has_nothing_to_resume(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    train_until(1, "stage1", "-m", config, "-r", tmp_path / "runs")
    with pytest.raises(UserError, match="nothing to resume"):
        session("stage1", "--resume", "-m", config, "-r", tmp_path / "runs")
