"""Two processes (gloo): both ranks hold the same state, and it is that of one process on the same global batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import succeed
from tests.ranks import free_port
from tests.training.rank_cases import RankCase, train_cases
from tests.training.tiny_runs import (
    GAN,
    checkpoint_tensors,
    differing,
    metrics_without_time,
    only_run,
    stage1,
    stage2,
    train,
    write_config,
)

STEPS = 4
GLOBAL_BATCH = 8
# Plain gradient descent: Adam divides by the size of a gradient and so would turn rounding into steps of full size.
PLAN = {
    "experiment.max_steps": STEPS,
    "experiment.total_batch_size": GLOBAL_BATCH,
    "experiment.test_images": 7,
    "optimizer.type": "sgd",
    "optimizer.init_lr": 0.05,
    "optimizer.momentum": 0.9,
    "arch.ema": 0.9,
    "dataset.hflip": True,
}
DISC_SGD = {"type": "sgd", "init_lr": 0.02, "momentum": 0.9, "max_gn": 1.0}
SYNC_GAN = {"gan": GAN, "gan.disc.optimizer": DISC_SGD, "gan.disc.arch.sync_batchnorm": True}
ACT_GAN = {"gan": GAN, "gan.disc.optimizer": DISC_SGD, "gan.disc.arch.use_actnorm": True}
OWN_TABLES = {
    "arch.input_emb_vqvae": False,
    "arch.head_emb_vqvae": False,
    "arch.shared_tok_emb": False,
    "arch.shared_cls_emb": False,
}
TEXT = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8, "loss.txt_weight": 0.1, "loss.img_weight": 0.9}
SIMVQ = {"arch.hparams.bottleneck_type": "residual_simvq", "arch.hparams.bottleneck.quantize_dropout": True}
RVQ = {
    "arch.hparams.bottleneck_type": "residual_vq",
    "arch.hparams.shared_codebook": False,
    "arch.hparams.bottleneck": {"codebook": "learned", "quantize_dropout": True, "kmeans_init": True},
}
VQ = {"arch.hparams.bottleneck_type": "vq", "arch.hparams.bottleneck": {"codebook_dim": 4, "kmeans_init": True}}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "deferred": ("stage1", {}),
    "per-depth": ("stage1", {"arch.hparams.codebook_update": "per_depth", "arch.hparams.shared_codebook": False}),
    "gan-sync": ("stage1", SYNC_GAN),
    "gan-actnorm": ("stage1", ACT_GAN | {"gan.loss.disc_start_step": 1}),
    "dropped-sim-levels": ("stage1", SIMVQ),
    "dropped-learned-levels": ("stage1", RVQ),
    "vector-heads": ("stage1", VQ),
    "hard-class": ("stage2", {"loss.type": "cross_entropy"} | OWN_TABLES),
    "soft-class": ("stage2", {}),
    "soft-text": ("stage2", TEXT),
    "text-without-its-loss": ("stage2", TEXT | {"loss.txt_weight": 0.0}),
}
# Equal to one process only up to what a rank sees alone: batch statistics, or its share of accumulated micro-batches.
ALONE_DIFFERS = {
    "gan-batchnorm": ("stage1", {"gan": GAN, "gan.loss.disc_start_step": 1}),
    "stochastic-dropout": ("stage2", {"loss.stochastic_codes": True, "arch.embd_pdrop": 0.1}),
}
ACCUMULATED = {"deferred": 2, "soft-class": 2, "hard-class": 2}  # images per micro-step and rank instead of 4


LONG = frozenset({"gan-actnorm", "dropped-sim-levels", "dropped-learned-levels", "vector-heads", "soft-text"})
LONG |= {"text-without-its-loss"}


def marked(names: Iterable[str]) -> list[Any]:
    """Names as parameters; the cases that only the long suite takes are marked."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in names]


def write_case(folder: Path, name: str, batch_size: int) -> Path:
    stage, changes = (CASES | ALONE_DIFFERS)[name]
    config = (stage1 if stage == "stage1" else stage2)(PLAN | changes | {"experiment.batch_size": batch_size})
    return write_config(folder / f"{name}.yaml", config)


def flags(config: Path, stage: str, tokenizer: Path) -> tuple[str, ...]:
    return ("-m", str(config), *(("-v", str(tokenizer)) if stage == "stage2" else ()))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A trained stage-1 run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir


@dataclass(frozen=True)
class Ranks:
    """All cases trained by two processes: what each ends with, and the folder with a run directory for each case."""

    tensors: list[dict[str, dict[str, torch.Tensor]]]
    folder: Path

    def run_dir(self, name: str) -> Path:
        return only_run(self.folder / name / "runs")


@pytest.fixture(scope="module")
def ranks(request, on_ranks, tokenizer, tmp_path_factory) -> Ranks:
    """Trains what the tests that were asked for look at."""
    folder = tmp_path_factory.mktemp("cases")
    cases, long = [], any("slow" in item.keywords for item in request.session.items if item.path == request.path)
    for name, (stage, _) in (CASES | ALONE_DIFFERS).items():
        if name in LONG and not long:
            continue
        config = write_case(folder, name, batch_size=4)
        cases.append(RankCase(name, stage, flags(config, stage, tokenizer)))
    for name, batch_size in ACCUMULATED.items():
        config = write_case(folder / "accumulated", name, batch_size)
        stage = CASES[name][0]
        cases.append(RankCase(f"{name}-accumulated", stage, flags(config, stage, tokenizer)))
    for case in [case for case in cases if case.name in ALONE_DIFFERS]:
        cases.append(RankCase(f"{case.name}-resumed", case.stage, (*case.flags, "experiment.save_steps=2"), stop=3))
    return Ranks(on_ranks(train_cases, cases, str(folder)), folder)


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """Equal to float tolerance, relative to the largest entry of a tensor.

    A bias before a normalization has a gradient of next to nothing, a sum of larger terms that cancel: the floor of
    what an optimizer keeps of gradients is for their rounding.
    """
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        scale = float(theirs[name].float().abs().amax()) if tensor.numel() else 1.0
        floor = 1e-2 if "momentum_buffer" in name else 1e-3
        torch.testing.assert_close(
            tensor, theirs[name], rtol=0.0, atol=2e-5 * max(scale, floor), msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_same_metrics(ours: Path, theirs: Path) -> None:
    for mine, other in zip(metrics_without_time(ours), metrics_without_time(theirs), strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert value == pytest.approx(other[name], rel=2e-4, abs=2e-6), name


@pytest.mark.parametrize("name", marked([*CASES, *ALONE_DIFFERS, *(f"{name}-accumulated" for name in ACCUMULATED)]))
def test_both_ranks_hold_the_same_state(name, ranks):
    ours, theirs = ranks.tensors[0][name], ranks.tensors[1][name]
    # batch statistics of plain BatchNorm belong to a rank; nothing reads them in training
    differ = [key for key in differing(ours, theirs) if ".running_" not in key]
    assert differ == []
    assert differing(ours, checkpoint_tensors(ranks.run_dir(name) / f"checkpoints/step_{STEPS:08d}")) == []


@pytest.mark.parametrize("name", marked(CASES))
def test_two_ranks_equal_one_process_on_the_joint_batch(name, ranks, tokenizer, tmp_path):
    stage = CASES[name][0]
    alone = train(stage, *flags(write_case(tmp_path, name, GLOBAL_BATCH), stage, tokenizer), "-r", tmp_path).run_dir
    ends = checkpoint_tensors(alone / f"checkpoints/step_{STEPS:08d}")
    assert_close(ranks.tensors[0][name], ends)
    assert_same_metrics(ranks.run_dir(name), alone)
    if name in ACCUMULATED:
        assert_close(ranks.tensors[1][f"{name}-accumulated"], ends)
        assert_same_metrics(ranks.run_dir(f"{name}-accumulated"), alone)


@pytest.mark.parametrize("name", ACCUMULATED)
def test_micro_steps_equal_one_large_batch(name, tokenizer, tmp_path):
    stage = CASES[name][0]
    ends = []
    for batch_size in (GLOBAL_BATCH, GLOBAL_BATCH // 2):
        folder = tmp_path / str(batch_size)
        run = train(stage, *flags(write_case(folder, name, batch_size), stage, tokenizer), "-r", folder)
        assert run.plan.accumulation == GLOBAL_BATCH // batch_size
        ends.append(checkpoint_tensors(run.run_dir / f"checkpoints/step_{STEPS:08d}"))
    assert_close(*ends)


@pytest.mark.parametrize("name", ALONE_DIFFERS)
def test_two_ranks_resume_bit_for_bit(name, ranks):
    for rank in (0, 1):
        straight, resumed = ranks.tensors[rank][name], ranks.tensors[rank][f"{name}-resumed"]
        # rank 1's own batch statistics are not saved; nothing reads them in training
        assert [key for key in differing(straight, resumed) if rank == 0 or ".running_" not in key] == []
    straight, resumed = (ranks.run_dir(case) for case in (name, f"{name}-resumed"))
    assert metrics_without_time(straight) == metrics_without_time(resumed)


def test_codebooks_were_restarted_and_moved(ranks, tmp_path):
    """Otherwise the equalities above say little."""
    start = write_case(tmp_path, "deferred", GLOBAL_BATCH)
    first = train("stage1", "-m", start, "-r", tmp_path, "experiment.max_steps=1").run_dir
    early = checkpoint_tensors(first / "checkpoints/step_00000001")
    weight = "model/quantizer.codebooks.0.weight"
    moved = (ranks.tensors[0]["deferred"][weight] - early[weight]).abs().amax(dim=1)
    assert (moved > 1e-3).sum() > len(moved) // 2


@pytest.mark.parametrize(
    ("stage", "launcher"),
    [
        pytest.param("stage1", "torch.distributed.launch", marks=pytest.mark.slow),
        pytest.param("stage2", "torch.distributed.run", marks=pytest.mark.slow),
    ],
)
def test_entry_scripts_run_under_both_launchers(stage, launcher, ranks, tokenizer, tmp_path):
    name = "deferred" if stage == "stage1" else "soft-class"
    config = write_case(tmp_path, name, batch_size=4)
    command = [f"main_{stage}.py", *flags(config, stage, tokenizer), "-r", tmp_path / "runs"]
    watch = "tests/training/threads_at_exit.py"
    done = succeed("-m", launcher, "--nproc_per_node=2", f"--master_port={free_port()}", watch, *command)
    printed = done.out + done.err
    run_dir = only_run(tmp_path / "runs")
    ends = checkpoint_tensors(run_dir / f"checkpoints/step_{STEPS:08d}")
    assert differing(ends, ranks.tensors[0][name]) == []
    assert metrics_without_time(run_dir) == metrics_without_time(ranks.run_dir(name))
    assert printed.count("ends with threads") == (2 if Path("/proc/self/task").is_dir() else 0)
    assert "gloo" not in printed, "a thread of the process group outlives it and may abort the process at its exit"
