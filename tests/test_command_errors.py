"""What a user can get wrong ends in one `error:` line, exit code 2 and nothing on disk, for every entry script."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import run as run_process
from tests.training.tiny_runs import (
    GAN,
    changed,
    stage1,
    stage2,
    train,
    write_config,
)

TEXT = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8}
LPIPS = {
    "gan": GAN,
    "gan.loss.perceptual_weight": 1.0,
    "dataset.resolution": 16,
    "arch.ddconfig.resolution": 16,
    "arch.ddconfig.ch_mult": [1, 1, 1],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A run of either stage."""
    folder = tmp_path_factory.mktemp("trained")
    first = train("stage1", "-m", write_config(folder / "one.yaml", stage1()), "-r", folder).run_dir
    second = train("stage2", "-m", write_config(folder / "two.yaml", stage2()), "-v", first, "-r", folder).run_dir
    return first, second


@pytest.fixture(autouse=True)
def _machine(monkeypatch, tmp_path) -> None:
    """A CPU without any weight file or data set."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RQVAE_VGG16_WEIGHTS", "FID_INCEPTION_WEIGHTS", "RQ_DATA_ROOT", "RQ_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture
def refuse(command) -> Callable[..., str]:
    """`refuse(script, *flags)` -> the only line that it says, after checking the exit code."""

    def run(script: str, *flags: Any) -> str:
        ended = command(script, *flags)
        lines = ended.said
        assert ended.code == 2
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        assert len(lines[0]) < 700
        return lines[0]

    return run


STAGE1_ERRORS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    # changes of the file, flags, what the line says
    "unknown key in the file": (
        {"experiment.batchsize": 4},
        [],
        "tiny.yaml: unknown key 'experiment.batchsize'; did you mean 'experiment.batch_size'?",
    ),
    "unknown section": ({"optimzer": {"type": "adam"}}, [], "unknown key 'optimzer'; did you mean 'optimizer'?"),
    "unknown key on the command line": (
        {},
        ["arch.ddconfig.chmult=[1]"],
        "command line: unknown key 'arch.ddconfig.chmult'; did you mean 'arch.ddconfig.ch_mult'?",
    ),
    "wrong type in the file": ({"experiment.batch_size": "four"}, [], "tiny.yaml: 'experiment.batch_size'"),
    "wrong type on the command line": ({}, ["optimizer.init_lr=fast"], "command line: 'optimizer.init_lr'"),
    "a list for a number": ({}, ["experiment.batch_size=[1,2]"], "'experiment.batch_size'"),
    "several values": ({}, ["seed=1,2"], "seed=[...]"),
    "missing value": ({"experiment": {"max_steps": 1}}, [], "no value for 'experiment.batch_size'"),
    "stray word": ({}, ["batch_size"], "unexpected argument 'batch_size'; overrides are written key=value"),
    "unknown flag": ({}, ["--evel"], "unknown flag --evel; did you mean --eval?"),
    "flag without its value": ({}, ["-t"], "-t"),
    "flag of the wrong type": ({}, ["--seed", "x"], "--seed: invalid int value: 'x'"),
    "unknown dataset": ({"dataset.type": "digit"}, [], "(did you mean 'digits'?); choose one of digits, fashion-mnist"),
    "missing dataset": ({"dataset.type": "imagenet", "dataset.root": "/no/such/place"}, [], "/no/such/place"),
    "dataset that is nowhere": ({"dataset.type": "lsun-cat"}, [], "lsun-cat"),
    "batch not divisible": (
        {"experiment.total_batch_size": 6},
        [],
        "experiment.total_batch_size=6 is not a multiple of experiment.batch_size=4 x 1 processes",
    ),
    "contradicting accumulation": (
        {"experiment.total_batch_size": 8, "optimizer.grad_accm_steps": 4},
        [],
        "optimizer.grad_accm_steps=4 contradicts experiment.total_batch_size=8",
    ),
    "no accumulation": ({"optimizer.grad_accm_steps": 0}, [], "optimizer.grad_accm_steps must be at least 1, got 0"),
    "no length": ({"experiment.max_steps": None}, [], "exactly one of experiment.epochs and experiment.max_steps"),
    "two lengths": ({"experiment.epochs": 2}, [], "exactly one of experiment.epochs and experiment.max_steps"),
    "epochs without end": (
        {"experiment.max_steps": None, "experiment.epochs": float("inf")},
        [],
        "'experiment.epochs': inf is not a finite number",
    ),
    "tests that never come": ({"experiment.test_freq": float("inf")}, [], "inf is not a finite number"),
    "a limit that is no number": (
        {"experiment.hang_timeout": float("nan")},
        [],
        "'experiment.hang_timeout': nan is not a finite number",
    ),
    "no steps": ({"experiment.max_steps": 0}, [], "experiment.max_steps=0 must be positive"),
    "resolution not divisible": (
        {"arch.ddconfig.resolution": 9, "dataset.resolution": 9},
        [],
        "resolution 9 is not divisible by 2",
    ),
    "images of another size": (
        {"dataset.resolution": 16},
        [],
        "dataset.resolution: images of synthetic are 16 pixels wide, arch.ddconfig.resolution is 8",
    ),
    "latent shape": ({"arch.hparams.latent_shape": [8, 8, 8]}, [], "give [4, 4, 8]"),
    "code shape": ({"arch.hparams.code_shape": [3, 3, 3]}, [], "code_shape [3, 3, 3] does not divide latent_shape"),
    "channels": ({"arch.ddconfig.ch": 48}, [], "ddconfig.ch 48 is not a multiple of 32"),
    "codebook sizes": ({"arch.hparams.n_embed": [16, 8]}, [], "n_embed has 2 values for the 3 depths"),
    "sizes of a shared codebook": ({"arch.hparams.n_embed": [16, 8, 4]}, [], "shared_codebook needs one n_embed"),
    "unknown bottleneck": ({"arch.hparams.bottleneck_type": "vqq"}, [], "'vqq'"),
    "unknown loss": ({"arch.hparams.loss_type": "huber"}, [], "loss_type 'huber' is not one of mse, l1"),
    "unknown update": ({"arch.hparams.codebook_update": "late"}, [], "codebook_update 'late' is not one of"),
    "unknown architecture": ({"arch.type": "vqgan"}, [], "arch.type must be 'rq-vae', got 'vqgan'"),
    "average": ({"arch.ema": 1.5}, [], "must be a number in [0, 1), got 1.5"),
    "unknown optimizer": ({"optimizer.type": "adamx"}, [], "unknown optimizer.type 'adamx', choose one of ['adam', "),
    "negative rate": ({"optimizer.init_lr": -1.0}, [], "optimizer.init_lr"),
    "unknown warm-up": ({"optimizer.warmup.mode": "cube"}, [], "unknown optimizer.warmup.mode 'cube'"),
    "unknown precision": ({"experiment.precision": "fp8"}, [], "experiment.precision='fp8': choose from auto, fp32"),
    "fp16 without a GPU": ({"experiment.precision": "fp16"}, [], "experiment.precision=fp16 needs a GPU"),
    "unknown policy": ({"experiment.non_finite": "ignore"}, [], "experiment.non_finite='ignore': choose from stop"),
    "discriminator loss": ({"gan": changed(GAN, {"loss.disc_loss": "wgan"})}, [], "unknown disc_loss 'wgan', choose"),
    "generator loss": ({"gan": changed(GAN, {"loss.gen_loss": "hinge"})}, [], "unknown gen_loss 'hinge', choose"),
    "generator before discriminator": (
        {"gan": GAN, "gan.loss.disc_start_step": 5, "gan.loss.gen_start_step": 2},
        [],
        "gan.loss.gen_start_step 2 lies before the discriminator's first step 5",
    ),
    "discriminator norms": (
        {"gan": GAN, "gan.disc.arch.use_actnorm": True, "gan.disc.arch.sync_batchnorm": True},
        [],
        "use_actnorm and sync_batchnorm exclude each other",
    ),
    "discriminator optimizer": (
        {"gan": GAN, "gan.disc.optimizer": {"tpye": "adam"}},
        [],
        "unknown key 'gan.disc.optimizer.tpye'; did you mean 'gan.disc.optimizer.type'?",
    ),
    "no LPIPS weights": (LPIPS, [], "set gan.loss.perceptual_weight=0"),
    "missing LPIPS file": (LPIPS, ["gan.loss.perceptual_backbone=/no/vgg.pth"], "/no/vgg.pth"),
    "eval of nothing": ({}, ["--eval"], "--eval needs -l/--load-path"),
    "eval and resume": ({}, ["--eval", "--resume", "-l", "x"], "--eval and --resume exclude each other"),
    "eval of a missing run": ({}, ["--eval", "-l", "/no/run"], "-l /no/run does not exist"),
    "finetuning from a missing file": ({}, ["-l", "/no/model.pt"], "-l /no/model.pt does not exist"),
    "nothing to resume": ({}, ["--resume"], "nothing to resume: no run of"),
    "resuming a missing run": ({}, ["--resume", "-l", "/no/run"], "-l /no/run does not exist"),
    "test batch": ({}, ["-t", "0"], "-t/--test-batch-size 0 must be at least 1"),
    "postfix": ({}, ["-p", "a/b"], "postfix 'a/b' cannot be part of a directory name"),
    "backend": ({}, ["--dist-backend", "mpi"], "--dist-backend"),
    "world size": ({}, ["--world_size", "2"], "--world_size 2 contradicts the launcher"),
}


@pytest.mark.parametrize("case", STAGE1_ERRORS)
def test_stage1_refuses(case, refuse, tmp_path):
    changes, flags, says = STAGE1_ERRORS[case]
    config = write_config(tmp_path / "tiny.yaml", stage1(changes))
    assert says in refuse("main_stage1.py", "-m", config, "-r", tmp_path / "runs", *flags)
    assert not list(tmp_path.glob("runs/*/*")), "a run directory was left behind"


STAGE2_ERRORS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no stage 1": ({}, [], "no stage-1 checkpoint: give -v/--vqvae PATH or vqvae.ckpt"),
    "missing stage 1": ({}, ["-v", "/no/run"], "/no/run"),
    "no stage 1 to say how large images are": (
        {"dataset": {"type": "folder", "root": "."}},
        [],
        "no stage-1 checkpoint: give -v/--vqvae PATH or vqvae.ckpt",
    ),
    "nor one that is there": (
        {"dataset": {"type": "folder", "root": "."}},
        ["-v", "/no/run"],
        "no checkpoint at /no",
    ),
    "grid": (
        {"arch.block_size": [4, 4, 3]},
        ["-v", "RUN"],
        "arch.block_size=[4, 4, 3] does not fit the stage-1 checkpoint, whose codes are [2, 2, 3]",
    ),
    "vocabulary": (
        {"arch.vocab_size": 32},
        ["-v", "RUN"],
        "arch.vocab_size=[32, 32, 32] does not fit the stage-1 checkpoint, whose codes are [16, 16, 16]",
    ),
    "vocabulary of the dataset section": (
        {"dataset.vocab_size": 8},
        ["-v", "RUN"],
        "dataset.vocab_size=8 does not fit",
    ),
    "code vectors": (
        {"arch.input_embed_dim": 8},
        ["-v", "RUN"],
        "arch.input_embed_dim=8 does not fit the stage-1 checkpoint, whose code vectors have 32 entries",
    ),
    "heads": ({"arch.head.block.n_head": 3}, ["-v", "RUN"], "arch.head.block.n_head=3 must divide arch.embed_dim=16"),
    "dropout": ({"arch.body.block.attn_pdrop": 1.5}, ["-v", "RUN"], "arch.body.block.attn_pdrop=1.5 must be"),
    "activation": ({"arch.body.block.gelu": "v3"}, ["-v", "RUN"], "arch.body.block.gelu='v3' must be one of v1, v2"),
    "missing size": ({"arch.body": {"block": {"n_head": 2}}}, ["-v", "RUN"], "no value for 'arch.body.n_layer'"),
    "unknown loss": ({"loss.type": "focal"}, ["-v", "RUN"], "loss.type='focal' must be one of"),
    "temperature of the targets": ({"loss.temp": 0.0}, ["-v", "RUN"], "loss.temp=0.0 must be above 0"),
    "top-k": ({"experiment.sample.top_k": 0}, ["-v", "RUN"], "top_k=0 must be a whole number of at least 1"),
    "top-k per depth": ({"experiment.sample.top_k": [4, 4]}, ["-v", "RUN"], "must be one value or one per depth (3)"),
    "top-p": ({"sampling": {"top_p": 1.5}}, ["-v", "RUN"], "top_p=1.5 must be above 0 and at most 1"),
    "sampling temperature": ({"sampling": {"temp": 0.0}}, ["-v", "RUN"], "temperature=0.0 must be above 0"),
    "classes": ({"arch.vocab_size_cond": 5}, ["-v", "RUN"], "arch.vocab_size_cond=5 is less than the 8 classes"),
    "dropping no condition": (
        {"arch.vocab_size_cond": 1, "arch.cond_drop_prob": 0.1},
        ["-v", "RUN"],
        "arch.cond_drop_prob=0.1 needs a condition",
    ),
    "text without captions": ({**TEXT, "dataset.type": "digits"}, ["-v", "RUN"], "digits has no captions"),
    "text of another length": ({**TEXT, "arch.block_size_cond": 9}, ["-v", "RUN"], "which have 8 tokens"),
    "text of more words": ({**TEXT, "arch.vocab_size_cond": 9}, ["-v", "RUN"], "is less than the 27 tokens that"),
    "images of another size": ({"dataset.resolution": 16}, ["-v", "RUN"], "that of the stage-1 checkpoint is 8"),
    "averaged stage 1 that is not there": (
        {"vqvae.ema": True},
        ["-v", "RUN"],
        "has no averaged weights",
    ),
    "stage 2 as stage 1": ({}, ["-v", "RUN2"], "arch.type is 'rq-transformer', not 'rq-vae'"),
    "stage 1 as stage 2": ({}, ["-v", "RUN", "-l", "RUN"], "arch.type is 'rq-vae', not 'rq-transformer'"),
}


@pytest.mark.parametrize("case", STAGE2_ERRORS)
def test_stage2_refuses(case, refuse, trained, tmp_path):
    changes, flags, says = STAGE2_ERRORS[case]
    config = write_config(tmp_path / "tiny.yaml", stage2(changes))
    runs = {"RUN": trained[0], "RUN2": trained[1]}
    flags = [runs.get(flag, flag) for flag in flags]
    assert says in refuse("main_stage2.py", "-m", config, "-r", tmp_path / "runs", *flags)
    assert not list(tmp_path.glob("runs/*/*")), "a run directory was left behind"


SAMPLING_ERRORS: dict[str, tuple[str, list[str], str]] = {
    "guidance without dropout": ("main_sampling_fid.py", ["--cfg-scale", "2"], "cond_drop_prob"),
    "top-k": ("main_sampling_fid.py", ["--top-k", "0"], "top_k=0 must be a whole number of at least 1"),
    "top-p": ("main_sampling_fid.py", ["--top-p", "0"], "top_p=0.0 must be above 0"),
    "temperature": ("main_sampling_fid.py", ["-t", "0"], "temperature=0.0 must be above 0"),
    "rejection share": ("main_sampling_fid.py", ["--reject-keep", "1.5"], "--reject-keep 1.5 must be above 0"),
    "rejection model alone": ("main_sampling_fid.py", ["--reject-model", "resnet18"], "needs --reject-keep SHARE"),
    "rejection model": (
        "main_sampling_fid.py",
        ["--reject-keep", "0.5", "--reject-model", "resnet"],
        "'resnet' is neither 'classifier' nor a classifier of torchvision",
    ),
    "rejection weights": (
        "main_sampling_fid.py",
        ["--reject-keep", "0.5", "--reject-model", "resnet18"],
        "no weights at",
    ),
    "no averaged weights": ("main_sampling_fid.py", ["--ema"], "has no averaged weights"),
    "stage 1 as stage 2": ("main_sampling_fid.py", ["-a", "RUN"], "is an rq-vae (arch.type), not an rq-transformer"),
    "stage 2 as stage 1": ("compute_rfid.py", ["--vqvae", "RUN2"], "is an rq-transformer (arch.type), not an rq-vae"),
    "unknown features": ("main_sampling_fid.py", ["--features", "dino"], "invalid choice: 'dino'"),
    "unknown flag": ("main_sampling_fid.py", ["--topk", "4"], "unknown flag --topk; did you mean --top-k?"),
    "no Inception weights": ("main_sampling_fid.py", ["-n", "4"], "FID_INCEPTION_WEIGHTS"),
    "unknown split": ("compute_rfid.py", ["--split", "test"], "split 'test' is unknown; choose one of train"),
    "depth": ("compute_rfid.py", ["--depth", "9"], "--depth 9 is not in 1..3"),
    "batch size": ("compute_rfid.py", ["--batch-size", "0"], "--batch-size 0 must be at least 1"),
    "no Inception weights for rFID": ("compute_rfid.py", [], "FID_INCEPTION_WEIGHTS"),
}


@pytest.mark.parametrize("case", SAMPLING_ERRORS)
def test_sampling_and_rfid_refuse(case, refuse, trained, tmp_path):
    name, flags, says = SAMPLING_ERRORS[case]
    first, second = trained
    flags = [{"RUN": first, "RUN2": second}.get(flag, flag) for flag in flags]
    models = (
        ["--vqvae", first] if name == "compute_rfid.py" else ["-v", first, "-a", second, "--save-dir", tmp_path / "out"]
    )
    assert says in refuse(name, *models, *flags)
    assert not (tmp_path / "out").exists()


def test_config_files_that_cannot_be_read(refuse, tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1())
    results = ["-r", tmp_path / "runs"]
    assert "-m/--model-config is missing" in refuse("main_stage1.py", *results)
    assert f"no config file {tmp_path / 'tny.yaml'}; did you mean {config}?" in refuse(
        "main_stage1.py", "-m", tmp_path / "tny.yaml", *results
    )
    config.write_text("arch: [1, 2\nexperiment: {")
    assert "not valid YAML" in refuse("main_stage1.py", "-m", config, *results)
    config.write_text("- 1\n- 2\n")
    assert str(config) in refuse("main_stage1.py", "-m", config, *results)
    assert "unknown key 'arch.block_size'" in refuse("main_stage1.py", "-m", write_config(config, stage2()), *results)
    assert not (tmp_path / "runs").exists()


def test_a_result_path_that_is_a_file(refuse, tmp_path):
    (tmp_path / "runs").write_text("")
    config = write_config(tmp_path / "tiny.yaml", stage1())
    assert "cannot create a run directory" in refuse("main_stage1.py", "-m", config, "-r", tmp_path / "runs")


def test_lpips_files_that_are_no_vgg16(refuse, tmp_path):
    file = tmp_path / "vgg.pth"
    config = write_config(tmp_path / "tiny.yaml", stage1(LPIPS | {"gan.loss.perceptual_backbone": str(file)}))
    flags = ["-m", config, "-r", tmp_path / "runs"]
    file.write_bytes(b"damaged")
    assert f"{file} cannot be read" in refuse("main_stage1.py", *flags)
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    assert f"{file} is not torchvision's VGG16" in refuse("main_stage1.py", *flags)


def test_damaged_weights(refuse, trained, tmp_path):
    """Cut short, and for a published file not even a checkpoint."""
    first, second = (shutil.copytree(run, tmp_path / run.parent.name) for run in trained)
    one, two = write_config(tmp_path / "1.yaml", stage1()), write_config(tmp_path / "2.yaml", stage2())
    results = ["-r", tmp_path / "runs"]
    for run in (first, second):
        (weights,) = run.glob("snapshots/*/model.safetensors")
        weights.write_bytes(weights.read_bytes()[:100])
    assert "model.safetensors" in refuse("main_stage1.py", "-m", one, *results, "-l", first)
    assert "model.safetensors" in refuse("main_stage2.py", "-m", two, *results, "-v", first)
    assert "model.safetensors" in refuse("main_stage2.py", "-m", two, *results, "-v", trained[0], "-l", second)
    published = tmp_path / "model.pt"
    published.write_bytes(b"no checkpoint")
    (tmp_path / "config.yaml").write_text("arch: {type: rq-vae}\n")
    assert "model.pt" in refuse("main_stage1.py", "-m", one, *results, "-l", published)
    assert not (tmp_path / "runs").exists()


def test_runs_without_snapshots_and_epochs_without_one(refuse, trained, tmp_path):
    first, _ = trained
    one, two = write_config(tmp_path / "1.yaml", stage1()), write_config(tmp_path / "2.yaml", stage2())
    empty = tmp_path / "empty"
    (empty / "snapshots").mkdir(parents=True)
    results = ["-r", tmp_path / "runs"]
    assert "has no complete snapshot" in refuse("main_stage1.py", "-m", one, *results, "--eval", "-l", empty)
    assert str(empty) in refuse("main_stage2.py", "-m", two, *results, "-v", empty)
    assert "-e 7:" in refuse("main_stage1.py", "-m", one, *results, "--eval", "-l", first, "-e", 7)


def test_checkpoints_that_are_all_damaged(command, trained, tmp_path):
    run_dir = shutil.copytree(trained[0], tmp_path / "run")
    for file in run_dir.glob("checkpoints/*/rank_*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    before = sorted(run_dir.rglob("*"))
    ended = command("main_stage1.py", "--resume", "-l", run_dir)
    lines = ended.said
    assert ended.code == 2
    assert "passing over a damaged checkpoint" in lines[0]
    assert [line for line in lines if line.startswith("error:")] == [lines[-1]]
    assert "every checkpoint in" in lines[-1]
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["main_stage1.py", "-m", "configs/demo/stage1/digits.yaml", "arch.hparams.n_embd=3"],
            "'arch.hparams.n_embed'?",
        ),
        pytest.param(
            ["main_stage2.py", "-m=configs/demo/stage2/digits.yaml", "-v", "/no/run"], "/no/run", marks=pytest.mark.slow
        ),
        (["main_sampling_fid.py", "-a", "/no/run"], "-v/--model-vqvae-path"),
    ],
)
def test_as_a_process(words, says, tmp_path):
    results = ["-r", tmp_path] if "stage" in words[0] else []
    done = run_process(*words, *results)
    assert (done.code, done.out) == (2, "")
    (error,) = done.said
    assert error.startswith("error: ") and says in error
    assert not list(tmp_path.iterdir())
