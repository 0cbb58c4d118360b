"""Stage 1 from trained weights: finetuning from published ones, evaluation, and what its own snapshots say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rqstack.snapshots import snapshot_tensors
from rqvae import load_rqvae
from runtime.errors import UserError
from tests.golden_files import GoldenSet
from tests.training.tiny_runs import (
    GAN,
    differing,
    launch_in_process,
    metrics_without_time,
    only_run,
    session,
    stage1,
    train,
    write_config,
)


@pytest.fixture
def config(tmp_path):
    """`config({"key": value})` -> a config file."""
    return lambda changes=None, name="tiny.yaml": write_config(tmp_path / name, stage1(changes))


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.fixture
def published_config(config) -> Path:
    """A training config that fits the reference checkpoint."""
    golden = GoldenSet("rqvae-shared")
    arch = {"hparams": dict(golden.config.arch.hparams), "ddconfig": dict(golden.config.arch.ddconfig), "ema": 0.99}
    for section in arch.values():
        if isinstance(section, dict):
            section.update({key: list(value) for key, value in section.items() if hasattr(value, "extend")})
    gan = GAN | {"disc": {"arch": {"num_layers": 2, "ndf": 8}}}
    return config({"arch": arch, "gan": gan, "dataset.resolution": 16}, "published.yaml")


def test_finetunes_from_a_published_checkpoint_and_its_discriminator(published_config, tmp_path):
    golden = GoldenSet("rqvae-shared")
    file = golden.path / "model.pt"
    run = session("stage1", "-m", published_config, "-r", tmp_path / "runs", "-l", file)
    stage = run.stage
    assert differing(snapshot_tensors(stage.model), snapshot_tensors(load_rqvae(file))) == []
    average = {name: value for name, value in stage.ema.state_dict().items()}
    assert differing(average, snapshot_tensors(load_rqvae(file, ema=True))) == []
    published = golden.checkpoint["discriminator"]
    assert differing(state(stage.adversary.discriminator), dict(published)) == []
    start = state(stage.model)
    with run:
        run.train()
    assert "encoder.conv_in.weight" in differing(start, state(stage.model))
    assert (run.start.step, len(metrics_without_time(run.run_dir))) == (0, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arch.ddconfig.num_res_blocks=2", r"does not fit the config: missing encoder\.down.* and \d+ more"),
        ("arch.hparams.n_embed=32", r"quantizer\.codebooks\.0\.weight is \[64, 16\], the config wants \[32, 16\]"),
        ("gan.disc.arch.ndf=16", r"\(discriminator\) does not fit the config: main\.0\.weight is \[8"),
    ],
)
def test_weights_that_do_not_fit_are_named_in_one_line(override, message, published_config, tmp_path):
    file = GoldenSet("rqvae-shared").path / "model.pt"
    with pytest.raises(UserError, match=message) as error:
        session("stage1", "-m", published_config, "-r", tmp_path / "runs", "-l", file, override)
    assert len(str(error.value)) < 600
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def trained(config, tmp_path):
    """A config with averaged weights, and a run of it with snapshots after epochs 0.2 and 0.4."""
    file = config({"arch.ema": 0.9, "experiment.save_steps": 2, "experiment.test_steps": 2, "optimizer.init_lr": 0.01})
    return file, train("stage1", "-m", file, "-r", tmp_path / "trained").run_dir


def evaluate(file: Path, result_path: Path, *flags) -> list[dict]:
    launch_in_process("stage1", "-m", file, "-r", result_path, "--eval", *flags)
    return metrics_without_time(only_run(result_path))


def test_eval_prints_both_splits(trained, tmp_path, capsys):
    file, run_dir = trained
    trained_end = metrics_without_time(run_dir)[-1]
    capsys.readouterr()
    train_line, val_line, ema_line = evaluate(file, tmp_path / "eval", "-l", run_dir)
    printed = capsys.readouterr().err
    assert printed.count("  recon ") == 3
    assert all(f" {split} 4  recon " in printed for split in ("train", "val", "val_ema"))
    assert train_line["train/recon_mse"] != val_line["val/recon_mse"]
    assert ema_line["val_ema/recon_mse"] == trained_end["val/recon_mse"]
    assert not (only_run(tmp_path / "eval") / "checkpoints").exists()


def test_eval_takes_the_snapshot_of_an_epoch(trained, tmp_path):
    file, run_dir = trained
    lines = {line["step"]: line["val/recon_mse"] for line in metrics_without_time(run_dir) if "val/recon_mse" in line}
    for epoch, step in ((0.2, 2), (0.4, 4)):
        ema_line = evaluate(file, tmp_path / f"eval{step}", "-l", run_dir, "-e", epoch)[-1]
        assert ema_line["val_ema/recon_mse"] == lines[step]
    with pytest.raises(UserError, match=r"-e 3: .* has no snapshot of that epoch; choose from 0.2, 0.4"):
        session("stage1", "-m", file, "-r", tmp_path / "none", "-l", run_dir, "-e", 3)


def test_the_test_batch_size_changes_no_result(trained, tmp_path):
    file, run_dir = trained
    results = [evaluate(file, tmp_path / f"eval{size}", "-l", run_dir, "-t", size)[1] for size in (1, 3)]
    for name, value in results[0].items():
        assert results[1][name] == pytest.approx(value, rel=1e-5), name


def test_a_snapshot_says_what_it_is(trained):
    file, run_dir = trained
    first, last = sorted((run_dir / "snapshots").iterdir())
    metadata = json.loads((last / "metadata.json").read_text())
    assert (metadata["step"], metadata["images_seen"], metadata["epoch"]) == (4, 16, 0.4)
    assert (metadata["stage"], metadata["seed"], metadata["dataset"]) == ("stage1", 0, "synthetic")
    assert metadata["metrics"]["recon_mse"] == metrics_without_time(run_dir)[-1]["val/recon_mse"]
    assert (first / "model_ema.safetensors").is_file()
