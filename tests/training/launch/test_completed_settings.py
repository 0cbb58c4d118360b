"""Settings that follow from others: of two that exclude each other the last word, of stage 2 what stage 1 knows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rqtransformer import load_rqtransformer, sample
from rqvae import load_rqvae
from runtime.config import load_config
from tests.training.tiny_runs import session, stage1, stage2, train, write_config
from training.launch import LaunchSettings
from training.launch.run_config import load_run_config
from training.stages.stage1 import Stage1Config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir


def chosen(file: Path, *words: str) -> Stage1Config:
    return load_run_config(Stage1Config, LaunchSettings(model_config=str(file), overrides=words), None)


@pytest.mark.parametrize(
    ("in_file", "words", "expected"),
    [
        ({"epochs": 3.0}, ["experiment.max_steps=5"], {"max_steps": 5, "epochs": None}),
        ({"max_steps": 3}, ["experiment.epochs=5"], {"max_steps": None, "epochs": 5.0}),
        ({}, ["experiment.epochs=2", "experiment.max_steps=5"], {"max_steps": 5, "epochs": None}),
        ({}, ["experiment.max_steps=5", "experiment.epochs=2"], {"max_steps": None, "epochs": 2.0}),
        ({"epochs": 3.0}, ["experiment.epochs=null", "experiment.max_steps=5"], {"max_steps": 5, "epochs": None}),
        ({"save_steps": 7}, ["experiment.save_ckpt_freq=0.5"], {"save_steps": None, "save_ckpt_freq": 0.5}),
        ({"test_steps": 7}, ["experiment.test_freq=2"], {"test_steps": None, "test_freq": 2.0}),
        ({"total_batch_size": 8}, ["optimizer.grad_accm_steps=4"], {"total_batch_size": None}),
    ],
)
def test_of_two_that_exclude_each_other_the_last_word_holds(in_file, words, expected, tmp_path):
    given = stage1()
    given["experiment"] = {"batch_size": 4, **in_file}
    experiment = chosen(write_config(tmp_path / "tiny.yaml", given), *words).experiment
    assert {name: getattr(experiment, name) for name in expected} == expected


def test_a_batch_that_is_said_in_two_ways_must_agree(tmp_path):
    file = write_config(tmp_path / "tiny.yaml", stage1())
    config = chosen(file, "experiment.total_batch_size=8", "optimizer.grad_accm_steps=3")
    assert (config.experiment.total_batch_size, config.optimizer.grad_accm_steps) == (8, 3)


def test_stage_2_takes_from_stage_1_what_its_file_leaves_out(tokenizer, tmp_path):
    short = copy.deepcopy(stage2())
    for name in ("block_size", "input_embed_dim"):
        del short["arch"][name]
    short["dataset"] = {"type": "synthetic", "num_samples": 40}
    short["arch"]["input_emb_vqvae"] = True
    full = stage2({"arch.input_emb_vqvae": True})
    made = []
    for name, config in (("short", short), ("full", full)):
        run = session("stage2", "-m", write_config(tmp_path / f"{name}.yaml", config), "-v", tokenizer, "-r", tmp_path)
        run.close()
        made.append((run.stage.config.arch, run.train_set.resolution))
    known = load_rqvae(tokenizer)
    assert made[0][0].block_size == list(known.config.code_shape) == [2, 2, 3]
    assert made[0][0].input_embed_dim == known.codebook(0).shape[1]
    assert made[0][1] == made[1][1] == (8, 8)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        (
            "dataset.vocab_size=99",
            "dataset.vocab_size=99 does not fit the stage-1 checkpoint, whose codes are [16, 16, 16]",
        ),
        ("arch.vocab_size=99", "arch.vocab_size=[99, 99, 99] does not fit"),
        ("arch.block_size=[3,3,3]", "arch.block_size=[3, 3, 3] does not fit"),
        ("arch.input_embed_dim=3", "arch.input_embed_dim=3 does not fit"),
        ("dataset.resolution=16", "dataset.resolution: images of synthetic are 16 pixels wide"),
    ],
)
def test_what_does_not_fit_stage_1_is_named_by_the_key_at_fault(word, named, tokenizer, tmp_path):
    file = write_config(tmp_path / "tiny.yaml", stage2())
    with pytest.raises(ValueError) as told:
        session("stage2", "-m", file, "-v", tokenizer, "-r", tmp_path, word)
    assert str(told.value).startswith(named)


def test_an_evaluation_says_the_step_of_its_weights(tokenizer, tmp_path):
    file = write_config(tmp_path / "tiny.yaml", stage1())
    run = session("stage1", "-m", file, "-r", tmp_path, "--eval", "-l", tokenizer)
    with run:
        run.evaluate()
    log = (run.run_dir / "train.log").read_text()
    assert " val 4  recon " in log
    assert " val 0" not in log


def test_loaders_take_a_run_directory_as_commands_do(tokenizer, tmp_path):
    snapshot = sorted((tokenizer / "snapshots").iterdir())[-1]
    for left, right in zip(load_rqvae(tokenizer).parameters(), load_rqvae(snapshot).parameters(), strict=True):
        assert torch.equal(left, right)
    file = write_config(tmp_path / "tiny.yaml", stage2({"experiment.max_steps": 1}))
    run = train("stage2", "-m", file, "-v", tokenizer, "-r", tmp_path).run_dir
    model = load_rqtransformer(run)
    assert model.config.block_size == [2, 2, 3]
    with pytest.raises(ValueError, match=r"condition ids must lie in 0..7, not 8$"):
        sample(model, load_rqvae(tokenizer), torch.tensor([8]))
    (run / "snapshots").rename(run / "gone")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_rqtransformer(run)


def test_the_config_of_a_run_is_complete(tokenizer):
    assert load_config(Stage1Config, tokenizer / "config.yaml").experiment.save_minutes == 10
