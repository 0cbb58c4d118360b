"""Stage 1 as a whole: what a step does, what it reports, how it starts from other weights, how it stops."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from rqstack.snapshots import snapshot_tensors
from rqvae import load_rqvae
from rqvae.losses.image_terms import IMAGE_TERMS, ImageTerm
from runtime.errors import UserError
from runtime.seeding import seed_everything_for_step
from tests.training.tiny_runs import (
    GAN,
    checkpoint_tensors,
    differing,
    launch_in_process,
    metrics_without_time,
    pictured,
    session,
    stage1,
    train,
    validated,
    write_config,
)
from training.experiment import ExperimentConfig

DISC_WEIGHT = "main.0.weight"


@pytest.fixture
def config(tmp_path):
    """`config({"key": value})` -> a config file."""
    return lambda changes=None, name="tiny.yaml": write_config(tmp_path / name, stage1(changes))


@pytest.fixture
def build(config, tmp_path):
    """`build({"key": value})` -> a session, not started."""
    sessions = []

    def make(changes=None, *flags):
        sessions.append(session("stage1", "-m", config(changes), "-r", tmp_path / "runs", *flags))
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


def test_overfits_one_batch(build):
    """With deferred updates; tests/rqvae/test_model.py has both kinds."""
    run = build(
        {
            "arch.hparams.codebook_update": "deferred",
            "arch.hparams.n_embed": 32,
            "arch.ema": 0.9,
            "optimizer.init_lr": 3e-3,
            "experiment.max_steps": 1000,
        }
    )
    batch = batch_of(run, 8)
    rows = steps(run, 120, batch)
    assert rows[0]["loss_recon"] > 0.3
    assert run.stage.evaluate([batch])["recon_mse"] < 0.01
    with run.stage.averaged():
        assert run.stage.evaluate([batch])["recon_mse"] < 0.01


def test_terms_add_up_to_the_total(build):
    run = build({"gan": GAN})
    row = steps(run, 1, batch_of(run))[0]
    weighted = row["loss_recon"] + 0.25 * row["loss_latent"] + 0.75 * row["g_weight"] * row["loss_gen"]
    assert row["loss_total"] == pytest.approx(weighted, rel=1e-5)
    assert row["disc_gap"] == pytest.approx(row["logits_real"] - row["logits_fake"], abs=1e-6)
    assert row["g_weight"] > 0


def test_discriminator_and_generator_start_apart_and_ramp_up(build):
    run = build(
        {
            "gan": GAN,
            "gan.loss.disc_start_step": 2,
            "gan.loss.gen_start_step": 4,
            "gan.loss.gen_ramp_steps": 2,
            "experiment.max_steps": 8,
        }
    )
    batch, start = batch_of(run), state(run.stage.adversary.discriminator)
    before = steps(run, 2, batch)
    assert differing(start, state(run.stage.adversary.discriminator)) == []
    assert all("loss_disc" not in row and row["loss_gen"] == row["g_weight"] == 0.0 for row in before)
    alone = steps(run, 2, batch, first=2)
    assert DISC_WEIGHT in differing(start, state(run.stage.adversary.discriminator))
    assert all("loss_disc" in row and row["loss_gen"] == 0.0 for row in alone)
    for row, ramp in zip(steps(run, 3, batch, first=4), (0.5, 1.0, 1.0)):
        gan = row["loss_total"] - row["loss_recon"] - 0.25 * row["loss_latent"]
        assert gan == pytest.approx(ramp * 0.75 * row["g_weight"] * row["loss_gen"], abs=2e-5)
        assert row["loss_gen"] != 0.0


def test_late_discriminator_has_a_schedule_of_its_own(build):
    """It joins half-way: its warm-up of 2 steps and its cosine of 2 take place in the half that is left."""
    run = build(
        {
            "gan": GAN,
            "gan.loss.disc_start_step": 4,
            "experiment.max_steps": 8,
            "gan.disc.optimizer": {"type": "sgd", "init_lr": 1e-3, "warmup": {"epoch": 0.2}},
        }
    )
    assert run.stage.plan.steps_per_epoch == 10
    steps(run, 4, batch_of(run))
    rates = []
    for step in range(4, 8):
        steps(run, 1, batch_of(run), first=step)
        rates.append(run.stage.adversary.update.learning_rate)
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])


def test_a_discriminator_that_starts_within_a_log_window(config, tmp_path):
    """Means are over the steps that report a term."""
    changes = {"gan": GAN, "gan.loss.disc_start_step": 3, "gan.loss.gen_start_step": 3, "experiment.log_steps": 4}
    run_dir = train("stage1", "-m", config(changes), "-r", tmp_path / "runs").run_dir
    window = metrics_without_time(run_dir)[0]
    changes["experiment.log_steps"] = 1
    single = metrics_without_time(train("stage1", "-m", config(changes), "-r", tmp_path / "single").run_dir)[:4]
    assert window["train/loss_disc"] == single[3]["train/loss_disc"]
    recon = sum(line["train/loss_recon"] for line in single) / 4
    assert window["train/loss_recon"] == pytest.approx(recon, rel=1e-12)


def test_the_discriminator_has_its_own_optimizer_section(build):
    run = build({"gan": GAN, "gan.disc.optimizer": {"type": "sgd", "init_lr": 0.0}})
    start = state(run.stage.adversary.discriminator)
    steps(run, 2, batch_of(run))
    moved = differing(start, state(run.stage.adversary.discriminator))
    assert all("running" in name or "tracked" in name for name in moved)
    assert isinstance(run.stage.adversary.update.optimizer, torch.optim.SGD)


def test_perceptual_loss_is_trained_with_and_validated(config, tmp_path):
    weights = tmp_path / "random_vgg16.pth"
    torch.save(make_layers(cfgs["D"]).state_dict(prefix="features."), weights)
    changes = {
        "gan": GAN,
        "gan.loss.perceptual_weight": 1.0,
        "gan.loss.perceptual_backbone": str(weights),
        "dataset.resolution": 16,
        "arch.ddconfig.resolution": 16,
        "arch.ddconfig.ch_mult": [1, 1, 1],
        "experiment.max_steps": 1,
    }
    first, last = metrics_without_time(train("stage1", "-m", config(changes), "-r", tmp_path / "runs").run_dir)
    total = first["train/loss_recon"] + first["train/loss_perceptual"] + 0.25 * first["train/loss_latent"]
    total += 0.75 * first["train/g_weight"] * first["train/loss_gen"]
    assert first["train/loss_total"] == pytest.approx(total, rel=1e-5)
    assert last["val/loss_perceptual"] > 0 and last["val/loss_recon"] == last["val/recon_mse"]


def test_validation_uses_the_averaged_weights_and_puts_the_raw_ones_back(build):
    run = build({"arch.ema": 0.99})
    steps(run, 3, batch_of(run))
    raw = state(run.stage.model)
    run.stage.ema.shadow["decoder.conv_out.bias"].fill_(10.0)  # pictures far out of range
    assert validated(run)["recon_mse"] > 20
    assert differing(raw, state(run.stage.model)) == []
    assert run.stage.evaluate(run.batches(run.val_set))["recon_mse"] < 5


def test_a_window_reports_its_own_usage(build):
    run = build()
    batch = batch_of(run)
    steps(run, 2, batch)
    first = run.stage.window_metrics()
    assert set(first) == {"lr", *(f"{name}_by_depth" for name in ("perplexity", "used_fraction", "dead", "restarts"))}
    assert first["restarts_by_depth"] == run.stage.model.quantizer.restart_counts().tolist() > [0, 0, 0]
    assert first["lr"] == run.stage.update.schedule.at(1) > 0
    for used, dead, perplexity in zip(
        first["used_fraction_by_depth"], first["dead_by_depth"], first["perplexity_by_depth"]
    ):
        assert used == pytest.approx(1 - dead / 16)
        assert 1 <= perplexity <= used * 16 + 1e-4
    codes_BHWD = run.stage.model.eval().get_codes(batch["image"][:1])
    steps(run, 1, {"image": batch["image"][:1]}, first=2)  # 4 positions: at most 4 codes per depth
    assert max(run.stage.window_metrics()["used_fraction_by_depth"]) <= codes_BHWD[..., 0].numel() / 16


def test_pictures_show_originals_and_all_depths(build):
    run = build({"experiment.grid_images": 3})
    pictures = pictured(run)
    assert set(pictures) == {"reconstruction_coarse_to_fine", "reconstruction_single_depths"}
    for picture in pictures.values():
        assert picture.dtype == torch.uint8
        height, width = picture.shape[1:]
        assert height == 4 * (128 + 2) + 2 and width > 3 * (128 + 2) + 2  # rows have labels


def poison(run, bad_steps: set[int]):
    """Makes the images of some steps non-finite."""
    original_image, original_step = run.stage._image, run.stage.train_step
    current = {}

    def train_step(micro_batches, step, *args):
        current["step"] = step
        return original_step(micro_batches, step, *args)

    run.stage.train_step = train_step
    run.stage._image = lambda batch: original_image(batch) * (float("nan") if current["step"] in bad_steps else 1.0)


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(build):
    run = build({"gan": GAN, "experiment.save_steps": 2, "experiment.log_steps": 50, "experiment.max_steps": 6})
    poison(run, {3})
    with pytest.raises(UserError, match=r"loss_recon is nan at step 3 \(images 12 to 15 of the training order\)"):
        run.train()
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step_00000002"]
    tensors = checkpoint_tensors(run.run_dir / "checkpoints/step_00000002")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_command_ends_in_one_line_when_the_loss_is_not_finite(config, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        launch_in_process(
            "stage1",
            "-m",
            config({"optimizer.init_lr": 1e30, "optimizer.max_gn": None, "optimizer.type": "sgd"}),
            "-r",
            tmp_path / "runs",
        )
    assert exit_info.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "at step" in errors[0]


@pytest.mark.parametrize("codebook_update", ["deferred", "per_depth"])
def test_a_skipped_step_changes_no_weight(codebook_update, build):
    run = build(
        {
            "gan": GAN,
            "arch.ema": 0.9,
            "experiment.non_finite": "skip",
            "experiment.max_steps": 8,
            "arch.hparams.codebook_update": codebook_update,
            "arch.hparams.restart_unused_codes": False,
        }
    )
    poison(run, {2})
    batch = batch_of(run)
    steps(run, 2, batch)
    modules = (run.stage.model, run.stage.adversary.discriminator)
    before = [state(module) for module in modules] + [dict(run.stage.ema.state_dict())]
    before[2] = {name: value.clone() for name, value in before[2].items()}
    row = steps(run, 1, batch, first=2)[0]
    after = [state(module) for module in modules] + [run.stage.ema.state_dict()]
    book = "quantizer.codebooks." if codebook_update == "per_depth" else "nothing"  # moves in the forward
    for old, new in zip(before, after, strict=True):
        moved = [name for name in differing(old, new) if not name.startswith(book)]
        assert [name for name in moved if "running_" not in name and "tracked" not in name] == []
        assert all(tensor.isfinite().all() for tensor in new.values())
    assert row["skipped_steps"] == 1
    row = steps(run, 1, batch, first=3)[0]
    assert row["skipped_steps"] == 1
    assert row["loss_recon"] > 0
    assert "encoder.conv_in.weight" in differing(before[0], state(run.stage.model))


def test_a_run_with_skipped_steps_ends_well_or_gives_up(build):
    run = build({"experiment.non_finite": "skip", "experiment.log_steps": 2})
    poison(run, {1})
    run.train()
    assert metrics_without_time(run.run_dir)[-2]["train/skipped_steps"] == 1
    run = build({"experiment.non_finite": "skip", "experiment.max_skipped_steps": 1})
    poison(run, {1, 2})
    with pytest.raises(UserError, match="2 steps had non-finite.*max_skipped_steps=1; the last one was step 2"):
        run.train()


@pytest.mark.parametrize(
    "changes",
    [
        {"experiment.precision": "bf16", "gan": GAN},
        {"experiment.channels_last": False},
        {"arch.hparams.bottleneck_type": "none"},
        {"arch.ddconfig.double_z": True, "arch.hparams.loss_type": "l1"},
        {"experiment.total_batch_size": 12, "experiment.max_steps": None, "experiment.epochs": 0.5},
    ],
)
def test_variants_train_from_end_to_end(changes, config, tmp_path):
    run = train("stage1", "-m", config(changes), "-r", tmp_path / "runs")
    last = metrics_without_time(run.run_dir)[-1]
    assert last["step"] == run.plan.total_steps
    assert last["val/recon_mse"] < 2
    (snapshot,) = (run.run_dir / "snapshots").iterdir()
    assert differing(snapshot_tensors(load_rqvae(snapshot)), snapshot_tensors(run.stage.model)) == []


def test_bf16_is_close_to_fp32(build):
    rows = []
    for precision in ("fp32", "bf16"):
        run = build({"experiment.precision": precision})
        assert run.stage.precision.name == precision
        rows.append(steps(run, 1, batch_of(run))[0])
    assert rows[1]["loss_recon"] == pytest.approx(rows[0]["loss_recon"], rel=0.05)
    assert rows[1]["loss_recon"] != rows[0]["loss_recon"]


def test_gradient_checkpointing_changes_memory_only(build):
    ends = []
    for enabled in (False, True):
        run = build({"experiment.gradient_checkpointing": enabled, "arch.ddconfig.dropout": 0.2})
        assert run.stage.model.encoder.checkpointing is enabled
        steps(run, 3, batch_of(run))
        ends.append(state(run.stage.model))
    assert differing(*ends) == []


def test_compilation_is_off_unless_asked_for(build):
    assert ExperimentConfig().compile is False
    assert build().stage.model._compiled_call_impl is None


def test_a_row_of_the_image_terms_is_trained_with_and_validated(build, monkeypatch):
    """Its weighted mean joins the loss under its name; over a split it has the same name."""

    class Brightness(torch.nn.Module):
        def forward(self, recon_BCHW, image_BCHW):
            return (recon_BCHW - image_BCHW).flatten(1).mean(1).abs()

    row = ImageTerm(weight=lambda config: 2.0, build=lambda config: Brightness())
    monkeypatch.setitem(IMAGE_TERMS, "brightness", row)
    run = build({"gan": {**GAN, "loss": {"perceptual_weight": 0.0, "disc_start": 100}}})
    (metrics,) = steps(run, 1, batch_of(run))
    latent = run.stage.model.config.latent_loss_weight * metrics["loss_latent"]
    total = metrics["loss_recon"] + 2.0 * metrics["loss_brightness"] + latent
    assert metrics["loss_brightness"] > 0
    assert metrics["loss_total"] == pytest.approx(total, rel=1e-6)
    assert validated(run)["loss_brightness"] > 0
