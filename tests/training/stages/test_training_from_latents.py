"""Training from cached latents: the losses of training from images, exact resume, what is refused, what still works."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from data import DatasetConfig, TrainLoader, build_dataset
from data.shards.shard_index import INDEX_SUFFIX
from rqstack.snapshots import weights_digest
from rqvae import load_rqvae
from runtime.distributed import DistEnv
from runtime.errors import UserError
from runtime.records.metrics_file import read_metrics
from sampling.code_extraction import ExtractionSettings, Extractor
from sampling.trained_models import resolve_checkpoint
from tests.commands import torchrun
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    metrics_without_time,
    only_run,
    session,
    stage1,
    stage2,
    train,
    train_until,
    write_config,
)

IMAGES, STEPS = 16, 10  # at batch 4: to the middle of the third epoch
SMALL = {"dataset.num_samples": IMAGES}
AUGMENTED = {**SMALL, "dataset.hflip": True, "dataset.random_shift": 1}
PLAN = {"experiment.max_steps": STEPS, "experiment.test_steps": STEPS // 2, "loss.stochastic_codes": True, **SMALL}
CPU = DistEnv(0, 1, 0, torch.device("cpu"), "none")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir


def described(changes=None) -> DatasetConfig:
    return DatasetConfig(**stage2({**SMALL, **(changes or {})})["dataset"])


def extract(tokenizer: Path, folder: Path, changes=None, splits=("train", "val"), env=CPU, **settings) -> Path:
    """What extract_codes.py does after parsing."""
    model = load_rqvae(resolve_checkpoint(tokenizer))
    settings = ExtractionSettings(**{"batch_size": 4, "samples_per_shard": 5, "num_workers": 0} | settings)
    config = described(changes)
    for split in splits:
        dataset = build_dataset(config, split, settings.seed)
        described_as = {"type": config.name, "resolution": 8, "num_samples": IMAGES}
        Extractor(model, weights_digest(model), dataset, described_as, settings, env).run(folder)
    return folder


@pytest.fixture(scope="module")
def exact(tokenizer, tmp_path_factory) -> Path:
    """fp32 latents of three epochs' crops."""
    return extract(tokenizer, tmp_path_factory.mktemp("exact"), AUGMENTED, crops=3, dtype="fp32")


def run(tmp_path: Path, name: str, tokenizer: Path, changes, *flags, **hooks):
    config = write_config(tmp_path / f"{name}.yaml", stage2({**PLAN, **changes}))
    return train("stage2", "-m", config, "-v", tokenizer, "-r", tmp_path / name, *flags, **hooks).run_dir


def from_latents(folder: Path, **more) -> dict:
    return {"dataset": {"type": "latents", "root": str(folder), **more}, "dataset.num_samples": IMAGES}


def values(run_dir: Path, *names: str) -> list[list[float]]:
    return [[line[name] for name in names] for line in read_metrics(run_dir / "metrics.jsonl") if names[0] in line]


CASES = {
    "class": {},
    "text": {"arch.block_size_cond": 8, "arch.vocab_size_cond": 40, "loss.txt_weight": 0.1},
    "hard": {"loss.type": "cross_entropy", "experiment.batch_size": 2, "experiment.total_batch_size": 4},
}


@pytest.mark.parametrize("case", CASES)
def test_cached_latents_give_the_losses_of_images(case, tokenizer, exact, tmp_path):
    images = run(tmp_path, "images", tokenizer, {**CASES[case], **AUGMENTED})
    latents = run(tmp_path, "latents", tokenizer, {**CASES[case], **from_latents(exact)})
    assert metrics_without_time(latents) == metrics_without_time(images)
    assert len(read_metrics(images / "metrics.jsonl")) > STEPS
    end = f"checkpoints/step_{STEPS:08d}"
    assert differing(checkpoint_tensors(latents / end), checkpoint_tensors(images / end)) == []


def test_half_precision_and_fewer_crops_change_little(tokenizer, tmp_path):
    images = run(tmp_path, "images", tokenizer, {"loss.stochastic_codes": False})
    halves = extract(tokenizer, tmp_path / "halves")  # one crop is enough: nothing is augmented
    latents = run(tmp_path, "latents", tokenizer, {"loss.stochastic_codes": False, **from_latents(halves)})
    ours, theirs = (np.array(values(found, "train/loss")) for found in (latents, images))
    assert ours.shape == theirs.shape == (STEPS, 1) and not np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, theirs, rtol=0.02)


def test_codes_alone_serve_hard_targets(tokenizer, tmp_path):
    hard = {"loss.type": "cross_entropy", "loss.stochastic_codes": False}
    folder = extract(tokenizer, tmp_path / "codes", keep="codes")
    latents = run(tmp_path, "codes-run", tokenizer, {**hard, **from_latents(folder)})
    assert metrics_without_time(latents) == metrics_without_time(run(tmp_path, "images", tokenizer, hard))
    with pytest.raises(ValueError, match="holds codes without latents: soft targets and stochastic codes need"):
        run(tmp_path, "soft", tokenizer, from_latents(folder))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_latents_resumes_bit_for_bit(workers, tokenizer, exact, tmp_path):
    changes = {**from_latents(exact), "experiment.save_steps": 6, "experiment.num_workers": workers}
    straight = run(tmp_path, "straight", tokenizer, changes)
    config = write_config(tmp_path / "tiny.yaml", stage2({**PLAN, **changes}))
    train_until(STEPS - 2, "stage2", "-m", config, "-v", tokenizer, "-r", tmp_path / "killed")
    killed = only_run(tmp_path / "killed")
    train("stage2", "--resume", "-l", killed, "experiment.num_workers=1")
    end = f"checkpoints/step_{STEPS:08d}"
    assert differing(checkpoint_tensors(straight / end), checkpoint_tensors(killed / end)) == []
    assert metrics_without_time(straight) == metrics_without_time(killed)


def test_crops_are_those_of_the_epochs(tokenizer, exact):
    latents = build_dataset(DatasetConfig(type="latents", root=str(exact)), "train")
    images = build_dataset(described(AUGMENTED), "train", 0)
    model = load_rqvae(resolve_checkpoint(tokenizer))
    ours, theirs = (iter(TrainLoader(dataset, 8, seed=5)) for dataset in (latents, images))
    for number in range(8):  # four epochs of three crops
        left, right = next(ours), next(theirs)
        assert torch.equal(left["index"], right["index"]) and torch.equal(left["label"], right["label"])
        same = torch.allclose(left["latent"], model.encode(right["image"]), atol=1e-5)
        assert same == (number < 6)
    assert "image" not in left and left["latent"].dtype == torch.float32


def test_ranks_batches_and_interruptions_write_the_same_bytes(tokenizer, exact, tmp_path):
    ranks = [DistEnv(rank, 3, 0, torch.device("cpu"), "none") for rank in range(3)]
    settings = dict(changes=AUGMENTED, crops=3, dtype="fp32", splits=("train",))
    for rank in ranks[:2]:  # the manifests that these leave are of their own shards: as if both had died before theirs
        extract(tokenizer, tmp_path, env=rank, **settings)
        manifest = tmp_path / "train.manifest.json"
        header = json.loads(manifest.read_text())
        (tmp_path / "train.plan.json").write_text(
            json.dumps({name: value for name, value in header.items() if name not in ("shards", "num_samples")})
        )
        manifest.unlink()
    assert len(list(tmp_path.glob("*.tar"))) == 3
    extract(tokenizer, tmp_path, **settings)
    for path in exact.glob("train*"):
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    with pytest.raises(UserError, match="already holds the train split"):
        extract(tokenizer, tmp_path, **settings)


def test_webdataset_reads_the_latents(exact):
    read = list(webdataset.WebDataset(str(exact / "train-{000000..000003}.tar"), shardshuffle=False).decode())
    ours = build_dataset(DatasetConfig(type="latents", root=str(exact)), "train")
    assert len(read) == IMAGES
    assert read[5]["latent.npy"].shape == (3, 4, 4, 8) and read[5]["codes.npy"].shape == (3, 2, 2, 3)
    for index in (0, 15):
        np.testing.assert_array_equal(read[index]["latent.npy"][2], ours[index, 2 * IMAGES + index]["latent"].numpy())


def test_a_damaged_latent_is_replaced_and_counted(exact, tmp_path):
    copy = shutil.copytree(exact, tmp_path / "copy")
    dataset = build_dataset(DatasetConfig(type="latents", root=str(copy)), "train")
    start = int(dataset.source.start_NF[3, 2])
    shard = copy / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    content[start + 128 : start + 132] = np.float32("nan").tobytes()
    shard.write_bytes(content)
    assert torch.equal(dataset[3]["latent"], dataset[4]["latent"]) and dataset[3]["index"] == 3
    assert dataset.corrupt_count() == 1
    assert torch.equal(dataset[3, 19]["latent"], dataset[4, 19]["latent"])


def test_other_tokenizers_and_stage_1_are_refused(tokenizer, exact, tmp_path):
    copy = shutil.copytree(exact, tmp_path / "copy")
    for split in ("train", "val"):
        manifest = copy / f"{split}.manifest.json"
        manifest.write_text(manifest.read_text().replace('"tokenizer": "', '"tokenizer": "0'))
    with pytest.raises(ValueError, match="these latents were made by a tokenizer with digest 0"):
        run(tmp_path, "other", tokenizer, from_latents(copy))
    with pytest.raises(ValueError, match="dataset.type latents has no images"):
        session("stage1", "-m", write_config(tmp_path / "one.yaml", stage1(from_latents(exact))), "-r", tmp_path)
    with pytest.raises(ValueError, match="holds latents; read it with dataset.type=latents"):
        build_dataset(DatasetConfig(type="shards", root=str(exact), resolution=8), "train")
    Path(f"{copy}/train.manifest.json").unlink()
    with pytest.raises(UserError, match="has no manifest of the train split"):
        run(tmp_path, "none", tokenizer, from_latents(copy))


@pytest.mark.slow
def test_scores_while_training_use_the_images(tokenizer, exact, tmp_path):
    score = {
        "experiment.score": {
            "every_steps": 5,
            "num_images": 16,
            "features": "classifier",
            "features_cache": str(tmp_path / "cache"),
        }
    }
    images = run(tmp_path, "images", tokenizer, {**score, **AUGMENTED})
    latents = run(tmp_path, "latents", tokenizer, {**score, **from_latents(exact)})
    lines = [
        [line for line in metrics_without_time(found) if any("fid" in name for name in line)]
        for found in (images, latents)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    copy = shutil.copytree(exact, tmp_path / "copy")
    manifest = copy / "train.manifest.json"
    manifest.write_text(manifest.read_text().replace('"type": "synthetic"', '"type": "folder", "root": "/nowhere"'))
    without = run(tmp_path, "without", tokenizer, {**score, **from_latents(copy)})
    assert "no fid while training: folder: no images found in /nowhere" in (without / "train.log").read_text()


@pytest.mark.slow
def test_the_command_on_two_ranks(tokenizer, exact, tmp_path):
    config = write_config(tmp_path / "two.yaml", stage2(AUGMENTED))
    command = [
        "extract_codes.py",
        "-v",
        tokenizer,
        "-m",
        config,
        "--crops",
        3,
        "--dtype",
        "fp32",
        "-bs",
        4,
        "--samples-per-shard",
        5,
        "--num-workers",
        0,
        tmp_path / "out",
    ]
    printed = torchrun(*command).out
    assert "train: 16 images in 4 shards" in printed and "val: 2 images in 1 shards" in printed
    for path in (*exact.glob("*.tar"), *exact.glob(f"*{INDEX_SUFFIX}")):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()
