"""Text-conditional training from a folder of images with captions, to prompts that need nothing but the snapshot."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from data.tokenizers.bpe_training import train_bpe
from data.tokenizers.tokenizer_loading import load_tokenizer
from runtime.errors import UserError
from runtime.records.metrics_file import read_metrics
from tests.commands import run_here
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    only_run,
    session,
    stage1,
    stage2,
    train,
    train_until,
    write_config,
)
from training.launch.words import unread_captions

LENGTH, VOCABULARY, HALF = 10, 300, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images with two captions each, a tokenizer trained on these, and a stage-1 run on the images."""
    folder = tmp_path_factory.mktemp("text")
    shapes = build_dataset(DatasetConfig(type="synthetic", resolution=8, num_samples=40), "train")
    images, captions = shapes.fetch(np.arange(40), None)["image"], shapes.captions(range(40))
    (folder / "images").mkdir()
    for number, caption in enumerate(captions):
        Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(folder / "images" / f"{number:02d}.png")
        (folder / "images" / f"{number:02d}.txt").write_text(f"{caption}\n{caption.split(' on ')[0]}\n")
    train_bpe(captions, VOCABULARY, LENGTH).save(folder / "tokenizer")
    config = write_config(folder / "stage1.yaml", stage1({"dataset": _dataset(folder)}))
    train("stage1", "-m", config, "-r", folder / "stage1")
    return folder


def _dataset(folder, **more):
    return {"type": "caption-folder", "root": str(folder / "images"), "resolution": 8, **more}


def _stage2(folder, tokenizer="tokenizer", **changes):
    text = {"tokenizer": str(folder / tokenizer), "context_length": LENGTH, "bpe_dropout": 0.3}
    return write_config(
        folder / f"stage2-{len(changes)}.yaml",
        stage2(
            {
                "dataset": _dataset(folder, **text),
                "arch.vocab_size_cond": VOCABULARY,
                "arch.block_size_cond": LENGTH,
                "arch.cond_drop_prob": 0.2,
                "loss.txt_weight": 0.1,
                "loss.img_weight": 0.9,
                "experiment.max_steps": 2 * HALF,
                "experiment.save_steps": HALF,
                **changes,
            }
        ),
    )


def _flags(folder, config, out):
    return ["-m", config, "-r", out, "-v", only_run(folder / "stage1")]


def test_training_from_a_caption_folder_and_prompts_from_its_snapshot_alone(folder, tmp_path):
    shutil.copytree(folder / "tokenizer", folder / "own-tokenizer")
    run = train("stage2", *_flags(folder, _stage2(folder, "own-tokenizer"), tmp_path))
    losses = [line for line in read_metrics(run.run_dir / "metrics.jsonl") if "train/loss_txt" in line]
    assert losses and all(np.isfinite([line["train/loss_txt"], line["train/loss_img"]]).all() for line in losses)
    snapshot = run.run_dir / "snapshots" / f"step_{2 * HALF:08d}"
    kept = load_tokenizer(snapshot)
    assert kept.files() == load_tokenizer(folder / "own-tokenizer", bpe_dropout=0.3).files()
    shutil.rmtree(folder / "own-tokenizer")  # as on another machine
    models = ["-v", only_run(folder / "stage1"), "-a", snapshot]
    texts = ["a RED circle ☺"] * 2
    assert _sampled_texts(tmp_path / "one", *models, "--prompt", texts[0], "--num", 2) == texts
    # without prompts: the captions of the validation split
    whole = _sampled_texts(tmp_path / "two", *models, "--metrics", "none")
    assert whole == run.val_set.captions(range(len(run.val_set)))


def _sampled_texts(out, *flags):
    """The captions of the images that main_sampling_txt2img.py wrote."""
    run_here("main_sampling_txt2img.py", *flags, "--save-dir", out)
    (made,) = (out / "samples").iterdir()
    texts = [json.loads(line)["text"] for line in (made / "captions.jsonl").read_text().splitlines()]
    assert len(list((made / "images").iterdir())) == len(texts)
    return texts


def test_dropped_merges_and_chosen_captions_survive_a_kill(folder, tmp_path):
    config = _stage2(folder)
    whole = train("stage2", *_flags(folder, config, tmp_path / "whole")).run_dir
    train_until(HALF + 1, "stage2", *_flags(folder, config, tmp_path / "resumed"))
    resumed = train("stage2", *_flags(folder, config, tmp_path / "resumed"), "--resume").run_dir
    last = f"snapshots/step_{2 * HALF:08d}"
    assert differing(checkpoint_tensors(whole / last), checkpoint_tensors(resumed / last)) == []


def test_the_condition_reaches_the_loss(folder, tmp_path):
    """The text part of the loss is the next-token likelihood of the captions: it falls when they are learned."""
    run = session("stage2", *_flags(folder, _stage2(folder, **{"optimizer.init_lr": 0.02}), tmp_path))
    batches = list(run.batches(run.train_set))
    assert all(batch["cond"].shape == (len(batch["image"]), LENGTH) for batch in batches)
    torch.manual_seed(0)
    terms = [run.stage.train_step([batches[0]], step)["loss_txt"].item() for step in range(30)]
    assert terms[-1] < 0.6 * terms[0]


def test_captions_that_a_model_without_text_leaves_unread_are_said(folder, tmp_path):
    open_condition = {"dataset.tokenizer": None, "arch.vocab_size_cond": None, "arch.block_size_cond": None}
    config = _stage2(folder, **open_condition, **{"arch.cond_drop_prob": 0.0})
    run = session("stage2", *_flags(folder, config, tmp_path))
    run.close()
    assert unread_captions(run.config, run.train_set) == ", captions not read: dataset.tokenizer names no tokenizer"
    read = session("stage2", *_flags(folder, _stage2(folder), tmp_path))
    read.close()
    assert unread_captions(read.config, read.train_set) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch.vocab_size_cond": 200}, "arch.vocab_size_cond=200 is less than the 300 tokens that caption-folder has"),
        ({"arch.block_size_cond": 8}, "arch.block_size_cond=8 does not fit the captions of caption-folder"),
        ({"dataset.tokenizer": None}, "has no captions, or no tokenizer for them"),
        ({"dataset.tokenizer": "/nowhere"}, "no tokenizer at /nowhere; expected a folder with tokenizer.json"),
        ({"dataset.bpe_dropout": 2.0}, r"dataset.bpe_dropout must lie in \[0, 1\], not 2.0"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_written(folder, tmp_path, changes, message):
    with pytest.raises((ValueError, UserError), match=message) as error:
        session("stage2", *_flags(folder, _stage2(folder, **changes), tmp_path))
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
