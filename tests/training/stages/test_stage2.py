"""Stage 2 as a whole: what a step does, what it reports, how it starts from other weights, how it stops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from rqstack.snapshots import snapshot_tensors, weights_digest
from rqtransformer import load_rqtransformer
from runtime.errors import UserError
from runtime.seeding import seed_everything_for_step
from sampling.trained_models import read_metadata
from tests.golden_files import GoldenSet
from tests.training.tiny_runs import (
    DATASET,
    EXPERIMENT,
    OPTIMIZER,
    differing,
    launch_in_process,
    metrics_without_time,
    only_run,
    pictured,
    session,
    stage1,
    stage2,
    train,
    validated,
    write_config,
)
from training.experiment import ExperimentConfig
from training.stages.code_counts import CodeCounts

UNCONDITIONAL = {"arch.vocab_size_cond": 1}
TEXT = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8, "loss.txt_weight": 0.1, "loss.img_weight": 0.9}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A trained stage-1 run with a different vocabulary at every depth and averaged weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    changes = {
        "arch.hparams.n_embed": [16, 12, 8],
        "arch.hparams.shared_codebook": False,
        "arch.ema": 0.5,
        "experiment.max_steps": 40,
        "experiment.log_steps": 40,
    }
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1(changes)), "-r", folder).run_dir


@pytest.fixture
def config(tmp_path):
    """`config({"key": value})` -> a config file."""
    return lambda changes=None, name="tiny.yaml": write_config(tmp_path / name, stage2(changes))


@pytest.fixture
def build(config, tokenizer, tmp_path):
    """`build({"key": value})` -> a session, not started."""
    sessions = []

    def make(changes=None, *flags):
        sessions.append(session("stage2", "-m", config(changes), "-v", tokenizer, "-r", tmp_path / "runs", *flags))
        return sessions[-1]

    yield make
    for made in sessions:
        made.close()


def batch_of(run, count: int = 4) -> dict[str, torch.Tensor]:
    """The first training images."""
    items = [run.train_set[index] for index in range(count)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def steps(run, count: int, batch: dict[str, torch.Tensor], first: int = 0) -> list[dict[str, float]]:
    """Metrics of `count` optimizer steps on the same batch."""
    rows = []
    for step in range(first, first + count):
        seed_everything_for_step(0, 0, step)
        rows.append({name: value.item() for name, value in run.stage.train_step([batch], step).items()})
    return rows


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss.type": "cross_entropy"},
        {"loss.temp": 1e-3},  # soft targets this sharp are the codes
        {**TEXT, "loss.type": "cross_entropy"},
    ],
)
def test_overfits_one_batch(changes, build):
    # the rate falls to zero within these steps: Adam with a steady 1e-2 leaps off the minimum now and then
    run = build(
        {"arch.ema": 0.9, "arch.embed_dim": 32, "optimizer.init_lr": 1e-2, "experiment.max_steps": 100, **changes}
    )
    batch = batch_of(run, 8)
    steps(run, 100, batch)
    metrics = run.stage.evaluate([batch])
    assert metrics["nll"] < 0.1 * metrics["uniform_nll"]
    assert min(metrics["accuracy_by_depth"]) > 0.9  # two images of one class may start with different codes
    with run.stage.averaged():
        assert run.stage.evaluate([batch])["nll"] < 0.1 * metrics["uniform_nll"]
    if "cond_nll" in metrics:
        assert metrics["cond_nll"] < 0.5 * math.log(27)


def test_terms_add_up(build):
    row = steps(build(TEXT), 1, batch_of(build(TEXT)))[0]
    assert row["loss"] == pytest.approx(0.9 * row["loss_img"] + 0.1 * row["loss_txt"], rel=1e-6)
    by_depth = [row[f"loss_depth_{depth}"] for depth in range(3)]
    assert row["loss_img"] == pytest.approx(sum(by_depth) / 3, rel=1e-6)
    hard = steps(build({"loss.type": "cross_entropy"}), 1, batch_of(build()))[0]
    assert all(hard[f"loss_depth_{d}"] == hard[f"nll_depth_{d}"] for d in range(3))


def test_the_tokenizer_stays_as_it_is(build):
    run = build({"loss.stochastic_codes": True, "arch.embd_pdrop": 0.1})
    before = state(run.stage.tokenizer)
    steps(run, 3, batch_of(run))
    assert differing(before, state(run.stage.tokenizer)) == []
    assert all(parameter.grad is None for parameter in run.stage.tokenizer.parameters())
    assert not run.stage.tokenizer.training


def test_stochastic_codes_vary_with_the_step_and_with_nothing_else(build):
    runs = [build({"loss.stochastic_codes": True, "loss.temp": 2.0}) for _ in range(2)]
    batch = batch_of(runs[0])
    first, second = (steps(run, 3, batch) for run in runs)
    assert first == second
    counts = []
    for step in (0, 1):
        run = build({"loss.stochastic_codes": True, "loss.temp": 2.0})
        steps(run, 1, batch, first=step)
        run.stage.window_metrics()
        counts.append(run.stage.code_counts.total_DK)
    assert not torch.equal(*counts)


def test_baselines_stand_beside_the_model(build):
    """The unigrams are those of the training codes so far; the uniform baseline is the mean over depths."""
    run = build()
    batch = batch_of(run)
    steps(run, 2, batch)
    run.stage.window_metrics()
    codes_BHWD = run.stage.tokenizer.get_codes(batch["image"])
    metrics = run.stage.evaluate([batch])
    assert metrics["uniform_nll"] == pytest.approx((math.log(16) + math.log(12) + math.log(8)) / 3)
    for depth, size in enumerate((16, 12, 8)):
        count_K = torch.bincount(codes_BHWD[..., depth].flatten(), minlength=size).double()
        frequency_K = (2 * count_K + 1) / (2 * count_K + 1).sum()  # two steps on the same images, one added
        expected = -(count_K * frequency_K.log()).sum() / count_K.sum()
        assert metrics["unigram_nll_by_depth"][depth] == pytest.approx(expected.item(), rel=1e-9)


def test_without_training_codes_the_first_split_gives_the_unigrams(build):
    run = build()
    batch = batch_of(run)
    first = run.stage.evaluate([batch])
    other = run.stage.evaluate([{key: value[:1] for key, value in batch.items()}])
    assert max(first["unigram_nll_by_depth"]) < math.log(16)
    counts = CodeCounts((16, 12, 8), torch.device("cpu"))
    counts.add(run.stage.tokenizer.get_codes(batch["image"]))
    counts.reduce()
    assert torch.equal(run.stage.code_counts.total_DK, counts.total_DK)
    assert other["unigram_nll"] != first["unigram_nll"]


def test_validation_uses_the_averaged_weights_and_puts_the_raw_ones_back(build):
    run = build({"arch.ema": 0.99})
    steps(run, 2, batch_of(run))
    raw = state(run.stage.model)
    plain = run.stage.evaluate(run.batches(run.val_set))["nll"]
    run.stage.ema.shadow["classifier.linear.bias"][:2] += torch.tensor([30.0, -30.0])
    assert validated(run)["nll"] > plain + 5
    assert differing(raw, state(run.stage.model)) == []


def test_the_tokenizer_may_use_its_averaged_weights(build):
    raw, averaged = (build({"vqvae.ema": ema}).stage.tokenizer for ema in (False, True))
    assert "encoder.conv_in.weight" in differing(state(raw), state(averaged))


def test_pictures_are_samples_in_a_square(build):
    for changes in ({}, TEXT, UNCONDITIONAL):
        run = build({"experiment.sample": {"num_images": 4, "top_k": [16, 5, 3], "top_p": 0.9}} | changes)
        ((name, picture),) = pictured(run).items()
        assert name == "samples"
        height, width = picture.shape[1:]
        assert width == 2 * (128 + 2) + 2
        assert (height > width) == (changes is not UNCONDITIONAL)  # classes and captions stand above


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_non_finite_loss(policy, build):
    run = build(
        {
            "arch.ema": 0.9,
            "experiment.non_finite": policy,
            "experiment.save_steps": 2,
            "experiment.log_steps": 50,
            "experiment.max_steps": 6,
        }
    )
    original_loss, original_step, current = run.stage._loss, run.stage.train_step, {}
    weights = {}

    def train_step(micro_batches, step, *args):
        current["step"] = step
        weights[step] = state(run.stage.model)
        return original_step(micro_batches, step, *args)

    def loss(batch):
        value, terms = original_loss(batch)
        factor = float("inf") if current["step"] == 3 else 1.0
        return value * factor, terms | {"loss": terms["loss"] * factor}

    run.stage._loss, run.stage.train_step = loss, train_step
    if policy == "stop":
        with pytest.raises(UserError, match=r"loss is inf at step 3 \(images 12 to 15 of the training order\)"):
            run.train()
        assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step_00000002"]
        return
    run.train()
    assert differing(weights[3], weights[4]) == []
    assert differing(weights[4], weights[5]) != []
    assert metrics_without_time(run.run_dir)[-2]["train/skipped_steps"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment.precision": "bf16", "experiment.gradient_checkpointing": True},
        {"arch.vocab_size_cond": 1},
        {
            "arch.input_emb_vqvae": False,
            "arch.head_emb_vqvae": False,
            "arch.shared_tok_emb": False,
            "arch.shared_cls_emb": False,
        },
        {"dataset.type": "digits"},
        TEXT | {"arch.cond_drop_prob": 0.3, "arch.ema": 0.9, "experiment.sample": {"num_images": 9, "top_k": 4}},
    ],
)
def test_variants_train_from_end_to_end(changes, config, tokenizer, tmp_path):
    changes = changes if changes.get("dataset.type") != "digits" else changes | {"arch.vocab_size_cond": 10}
    run = train("stage2", "-m", config(changes), "-v", tokenizer, "-r", tmp_path / "runs")
    last = metrics_without_time(run.run_dir)[-1]
    assert last["step"] == 4
    assert 0 < last["val/nll"] < 4
    assert ("val/cond_nll" in last) == ("loss.txt_weight" in changes)
    (snapshot,) = (run.run_dir / "snapshots").iterdir()
    assert differing(snapshot_tensors(load_rqtransformer(snapshot)), snapshot_tensors(run.stage.model)) == []
    assert read_metadata(snapshot)["tokenizer"] == weights_digest(run.stage.tokenizer)


def test_the_snapshot_knows_how_to_sample(config, tokenizer, tmp_path):
    changes = {"sampling": {"temp": 0.9, "top_k": 5, "top_p": 0.8}}
    run = train("stage2", "-m", config(changes), "-v", tokenizer, "-r", tmp_path / "runs")
    (snapshot,) = (run.run_dir / "snapshots").iterdir()
    defaults = load_rqtransformer(snapshot).sampling_defaults
    assert (defaults["temp"], defaults["top_k"], defaults["top_p"]) == (0.9, 5, 0.8)


def test_gradient_checkpointing_changes_memory_only(build):
    ends = []
    for choice in (False, True, "selective"):
        run = build({"experiment.gradient_checkpointing": choice, "arch.embd_pdrop": 0.1})
        assert run.stage.model.gradient_checkpointing == choice
        steps(run, 3, batch_of(run))
        ends.append(state(run.stage.model))
    assert differing(ends[0], ends[1]) == differing(ends[0], ends[2]) == []


def test_compilation_is_off_unless_asked_for(build):
    assert ExperimentConfig().compile is False
    assert build().stage.model._compiled_call_impl is None


@pytest.fixture
def published_config(tmp_path) -> Path:
    """A training config that fits the reference checkpoints of both stages."""
    golden = GoldenSet("rqtransformer-class")
    file = {
        "dataset": DATASET | {"resolution": 16},
        "arch": golden.config.arch,
        "loss": golden.config.loss,
        "optimizer": OPTIMIZER,
        "experiment": EXPERIMENT | {"batch_size": 2, "max_steps": 1, "test_images": 2},
    }
    file["arch"].ema = 0.9
    return write_config(tmp_path / "published.yaml", file)


def test_finetunes_from_published_checkpoints(published_config, tmp_path):
    stage1_file, file = GoldenSet("rqvae-shared").path / "model.pt", GoldenSet("rqtransformer-class").path / "model.pt"
    flags = ["-m", published_config, "-v", stage1_file, "-r", tmp_path / "runs", "-l", file]
    run = session("stage2", *flags)
    assert differing(snapshot_tensors(run.stage.model), snapshot_tensors(load_rqtransformer(file))) == []
    averaged = snapshot_tensors(load_rqtransformer(file, ema=True))
    assert differing(dict(run.stage.ema.state_dict()), averaged) == []
    with run:
        run.train()
    assert (run.stage.ema.mu, run.start.step) == (0.9, 0)
    assert len(metrics_without_time(run.run_dir)) == 2


def test_weights_that_do_not_fit_are_named_in_one_line(published_config, tmp_path):
    stage1_file, file = GoldenSet("rqvae-shared").path / "model.pt", GoldenSet("rqtransformer-class").path / "model.pt"
    flags = ["-m", published_config, "-v", stage1_file, "-r", tmp_path / "runs", "-l", file]
    with pytest.raises(UserError, match=r"does not fit the config: cond_emb.weight is \[10, 64\].*wants \[12, 64\]"):
        session("stage2", *flags, "arch.vocab_size_cond=12")
    with pytest.raises(UserError, match=r"missing body_transformer.* and \d+ more"):
        session("stage2", *flags, "arch.body.n_layer=4")
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def trained(config, tokenizer, tmp_path):
    """A config with averaged weights, and a run of it with snapshots after epochs 0.2 and 0.4."""
    file = config({"arch.ema": 0.9, "experiment.save_steps": 2, "experiment.test_steps": 2, "optimizer.init_lr": 0.01})
    return file, train("stage2", "-m", file, "-v", tokenizer, "-r", tmp_path / "trained").run_dir


def test_eval_prints_both_splits(trained, tokenizer, tmp_path, capsys):
    file, run_dir = trained
    lines = {line["step"]: line for line in metrics_without_time(run_dir) if "val/nll" in line}
    for epoch, step in ((0.2, 2), (-1, 4)):
        result_path = tmp_path / f"eval{step}"
        capsys.readouterr()
        launch_in_process(
            "stage2", "-m", file, "-v", tokenizer, "-r", result_path, "--eval", "-l", run_dir, "-e", epoch
        )
        printed = capsys.readouterr().err
        assert all(f" {split} {step}  nll " in printed for split in ("train", "val", "val_ema"))
        train_line, val_line, ema_line = metrics_without_time(only_run(result_path))
        assert train_line["train/nll"] != val_line["val/nll"]
        assert ema_line["val_ema/nll"] == lines[step]["val/nll"]
        assert train_line["train/unigram_nll"] < train_line["train/uniform_nll"]
        assert not (only_run(result_path) / "checkpoints").exists()


def test_without_averaged_weights_the_average_starts_from_the_raw_ones(config, tokenizer, tmp_path):
    run_dir = train("stage2", "-m", config(), "-v", tokenizer, "-r", tmp_path / "plain").run_dir
    flags = ["-m", config({"arch.ema": 0.9}), "-v", tokenizer, "-r", tmp_path / "runs", "-l", run_dir]
    run = session("stage2", *flags)
    run.close()
    assert differing(dict(run.stage.ema.state_dict()), snapshot_tensors(run.stage.model)) == []


def test_finetuning_from_a_run_takes_its_newest_snapshot_and_average(trained, tokenizer, tmp_path):
    file, run_dir = trained
    run = session("stage2", "-m", file, "-v", tokenizer, "-r", tmp_path / "runs", "-l", run_dir)
    run.close()
    newest = run_dir / "snapshots/step_00000004"
    assert differing(snapshot_tensors(run.stage.model), snapshot_tensors(load_rqtransformer(newest))) == []
    averaged = snapshot_tensors(load_rqtransformer(newest, ema=True))
    assert differing(dict(run.stage.ema.state_dict()), averaged) == []
    assert (run.start.step, json.loads((newest / "metadata.json").read_text())["step"]) == (0, 4)


def test_an_encoder_in_bf16_tells_once_which_share_of_the_codes_it_changes(build):
    run = build({"vqvae.precision": "bf16"})
    batch, seen = batch_of(run), []
    batch["image"] = torch.rand_like(batch["image"]) * 2 - 1
    run.stage.tokenizer.quant_conv.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    steps(run, 1, batch)
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16]  # two to compare, one to train with
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run.stage.tokenizer.get_codes(batch["image"])
    share = (rounded != run.stage.tokenizer.get_codes(batch["image"])).float().mean().item()
    assert run.stage.window_metrics()["codes_changed_by_bf16"] == pytest.approx(share)
    assert share < 0.5
    steps(run, 1, batch, first=1)
    assert "codes_changed_by_bf16" not in run.stage.window_metrics()
