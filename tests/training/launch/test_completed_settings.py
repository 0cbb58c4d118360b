"""Settings that follow from others: of two that exclude each other the last word, of stage 2 what stage 1 knows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from rqtransformer import load_rqtransformer, sample
from rqtransformer.config import BlockConfig, StackConfig
from rqvae import load_rqvae
from runtime.config import load_config
from tests.training.tiny_runs import session, stage1, stage2, train, write_config
from training.launch import LaunchSettings
from training.launch.run_config import load_run_config
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config
from training.stages.stage2_arch import Stage2ArchConfig, condition_sizes, whole_arch


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
    ("dataset", "said", "sizes"),
    [
        # what the file leaves out: captions count, then classes, then nothing
        ({"type": "synthetic"}, (None, None), (27, 8)),
        ({"type": "synthetic", "context_length": 12}, (None, None), (27, 12)),
        ({"type": "synthetic"}, (None, 1), (8, 1)),
        ({"type": "digits"}, (None, None), (10, 1)),
        # what it says holds, as in published files
        ({"type": "synthetic"}, (9, None), (9, 1)),
        ({"type": "synthetic"}, (1, 1), (1, 1)),
        ({"type": "synthetic"}, (0, None), (0, 1)),
        ({"type": "synthetic"}, (30, 8), (30, 8)),
    ],
)
def test_a_condition_is_as_it_is_said_or_as_the_data_has_it(dataset, said, sizes):
    assert condition_sizes(build_dataset(DatasetConfig(**dataset, num_samples=4), "train"), *said) == sizes


def test_images_without_classes_and_captions_give_no_condition(tmp_path):
    for name in "abcdefghijkl":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    plain = DatasetConfig(type="folder", root=str(tmp_path), resolution=8)
    assert condition_sizes(build_dataset(plain, "train"), None, None) == (1, 1)


def test_captions_that_no_tokenizer_counts_need_a_number():
    captioned = build_dataset(DatasetConfig(type="synthetic", num_samples=4), "train")
    captioned.tokenizer = None
    captioned.fetch = lambda *indices: {"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "cond": torch.zeros(1, 8)}
    with pytest.raises(ValueError, match="arch.vocab_size_cond is missing: nothing says how many tokens the captions"):
        condition_sizes(captioned, None, None)


def test_a_run_whose_condition_came_from_the_data_is_resumed_and_sampled(tokenizer, tmp_path):
    given = copy.deepcopy(stage2({"experiment.max_steps": 2, "experiment.save_steps": 1}))
    for name in ("block_size", "input_embed_dim", "vocab_size_cond"):
        del given["arch"][name]
    given["dataset"] = {"type": "digits"}
    file = write_config(tmp_path / "tiny.yaml", given)
    run = train("stage2", "-m", file, "-v", tokenizer, "-r", tmp_path).run_dir
    written = load_config(Stage2Config, run / "config.yaml").arch
    assert (written.vocab_size_cond, written.block_size_cond) == (10, 1)
    assert (written.vocab_size, written.block_size) == ([16, 16, 16], [2, 2, 3])
    again = session("stage2", "--resume", "-l", run, "experiment.max_steps=3")
    assert again.stage.model.config.vocab_size_cond == 10
    again.close()
    assert load_rqtransformer(run).config.vocab_size_cond == 10


def test_stage_2_reads_images_in_the_channels_of_stage_1(tmp_path):
    grey = stage1({"dataset.channels": 1, "arch.ddconfig.in_channels": 1, "arch.ddconfig.out_ch": 1})
    grey["experiment"]["max_steps"] = 1
    made = train("stage1", "-m", write_config(tmp_path / "grey.yaml", grey), "-r", tmp_path).run_dir
    file = write_config(tmp_path / "two.yaml", stage2({"arch.input_embed_dim": None}))
    run = session("stage2", "-m", file, "-v", made, "-r", tmp_path)
    run.close()
    assert run.train_set.channels == 1
    with pytest.raises(ValueError, match=r"have 3 channels, the stage-1 checkpoint has 1"):
        session("stage2", "-m", file, "-v", made, "-r", tmp_path, "dataset.channels=3")


def test_no_condition_is_one_id_whichever_way_it_is_said():
    for said in (None, 0, 1):
        sizes = {"block_size": [2, 2, 3], "vocab_size": 16, "embed_dim": 16, "vocab_size_cond": said}
        arch = Stage2ArchConfig(
            **sizes, body=StackConfig(1, BlockConfig(n_head=2)), head=StackConfig(0, BlockConfig(n_head=2))
        )
        assert (whole_arch(arch).vocab_size_cond, whole_arch(arch).block_size_cond) == (1, 1)


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
