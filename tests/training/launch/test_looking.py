"""`--print-config` and `--dry-run`: what they say is what a run would do, and they leave nothing behind."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from runtime.config import load_config
from tests.training.tiny_runs import GAN, STAGES, stage1, stage2, train, write_config
from training.dry_run import loss_and_kept_bytes, memory_lines, part_lines
from training.launch.flags import WORDS
from training.optimization.optimizer import OptimizerConfig, moments_per_parameter
from training.stage import Part

LONG = {"experiment.max_steps": 3, "experiment.save_steps": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of stage 1."""
    folder = tmp_path_factory.mktemp("finished")
    return train("stage1", "-m", write_config(folder / "one.yaml", stage1(LONG)), "-r", folder / "runs").run_dir


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything under a folder, with its content."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_printed_config_is_whole_and_can_be_given_back(stage, finished, tmp_path, command):
    given = stage1({"gan": GAN, "arch.ema": 0.9}) if stage == "stage1" else stage2()
    file = write_config(tmp_path / "tiny.yaml", given)
    words = ["-r", tmp_path / "runs", "--seed", 3, "optimizer.init_lr=0.25", "--print-config"]
    words += [] if stage == "stage1" else ["-v", finished]
    before = files(tmp_path)
    printed = command(f"main_{stage}.py", "-m", file, *words)
    assert printed.code == 0
    assert files(tmp_path) == before
    again = tmp_path / "again.yaml"
    again.write_text(printed.out)
    schema = STAGES[stage][0]
    config = load_config(schema, again)
    assert (config.seed, config.optimizer.init_lr, config.experiment.save_minutes) == (3, 0.25, 10.0)
    assert command(f"main_{stage}.py", "-m", again, "-r", tmp_path / "runs", "--print-config").out == printed.out


def test_the_config_of_stage_2_is_printed_with_the_sizes_of_stage_1(finished, tmp_path, command):
    given = stage2()
    del given["arch"]["block_size"], given["arch"]["input_embed_dim"], given["dataset"]["resolution"]
    file = write_config(tmp_path / "tiny.yaml", given)
    (tmp_path / "whole.yaml").write_text(command("main_stage2.py", "-m", file, "-v", finished, "--print-config").out)
    config = load_config(STAGES["stage2"][0], tmp_path / "whole.yaml")
    assert (config.arch.block_size, config.arch.vocab_size, config.arch.input_embed_dim) == ([2, 2, 3], [16] * 3, 32)
    assert config.dataset.resolution == 8
    assert config.vqvae.ckpt == str(finished / "snapshots" / "step_00000003")
    # without a checkpoint it is printed as far as it is known
    assert "block_size: []" in command("main_stage2.py", "-m", file, "--print-config").out


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_dry_run_says_what_there_is_and_leaves_nothing(stage, finished, tmp_path, command):
    given = stage1({"gan": GAN, "arch.ema": 0.9}) if stage == "stage1" else stage2()
    file = write_config(tmp_path / "tiny.yaml", given)
    words = [] if stage == "stage1" else ["-v", finished]
    before = files(tmp_path)
    ended = command(f"main_{stage}.py", "-m", file, "-r", tmp_path / "runs", "--dry-run", *words)
    assert ended.code == 0
    assert files(tmp_path) == before
    lines = ended.out.splitlines()
    assert lines[0] == "data: synthetic, 40 training and 4 validation images, 8 x 8, 3 channels"
    assert "plan: 4 steps, 10 per epoch, of 4 images = 4 x 1 processes x 1 micro-steps" in ended.out
    assert re.search(r"  image: float32 \(4, 3, 8, 8\), -[01]\S* to \S+, mean ", ended.out)
    assert re.search(r"  label: int64 \(4,\), \d to \d: \w+", ended.out)
    assert re.search(r"  codes of it: \(4, 2, 2, 3\), \d+, \d+, \d+ different ones by depth", ended.out)
    assert re.search(r"loss of it: \d", ended.out)
    memory = next(line for line in lines if line.startswith("memory of a process, estimated: "))
    assert ("average" in memory) == (stage == "stage1")
    assert ("discriminator" in ended.out) == (stage == "stage1")
    assert lines[-1] == "a dry run: nothing was trained, nothing was written"


def test_a_dry_run_of_a_resumed_run_does_not_touch_it(finished, command):
    before = files(finished.parent)
    ended = command("main_stage1.py", "-l", finished, "--resume", "--dry-run", "experiment.max_steps=9")
    assert ended.code == 0
    assert "plan: 9 steps" in ended.out
    assert files(finished.parent) == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--print-config", "--dry-run"], "--print-config and --dry-run exclude each other"),
        (["--dry-run", "--eval", "-l", "x"], "--dry-run and --eval exclude each other"),
        (["--print-config", "experiment.batchsize=1"], "did you mean 'experiment.batch_size'?"),
        (["--dry-run", "experiment.batch_size=0"], "experiment.batch_size=0 must be positive"),
    ],
)
def test_what_is_wrong_is_one_line(flags, said, tmp_path, command):
    file = write_config(tmp_path / "tiny.yaml", stage1())
    ended = command("main_stage1.py", "-m", file, "-r", tmp_path / "runs", *flags)
    assert ended.code == 2
    assert len(ended.said) == 1 and said in ended.said[0]
    assert not (tmp_path / "runs").exists()


class OneLayer(SimpleNamespace):
    """A stage of one layer without bias: 5 -> 7 features, trained by Adam."""

    keeps_average = False

    def __init__(self) -> None:
        super().__init__(layer=nn.Linear(5, 7, bias=False))

    def parts(self) -> dict[str, Part]:
        return {"layer": Part(self.layer, OptimizerConfig("adam")), "fixed": Part(nn.Linear(2, 3), None)}

    def trial_loss(self, batch):
        # the gradient of x needs the weight, which autograd keeps too
        return self.layer(batch["x"].requires_grad_()).tanh().sum(), {}


def test_memory_is_counted_by_what_it_is_for():
    stage = OneLayer()
    loss, kept = loss_and_kept_bytes(stage, {"x": torch.zeros(11, 5)}, torch.device("cpu"))
    assert (loss, kept) == (0.0, 4 * 11 * (5 + 7))  # the input, and what tanh gave; the weight is counted elsewhere
    megabyte = 2**20
    (line, _) = memory_lines(stage, megabyte)
    weights, trained = 4 * (35 + 9) / megabyte, 4 * 35 / megabyte
    total = 1 + weights + 3 * trained
    assert line.startswith(f"memory of a process, estimated: {total:.1f} MiB")
    assert list(part_lines(stage.parts())) == ["  layer: 35 numbers", "  fixed, not trained: 9 numbers"]


def test_the_words_that_help_lists_are_keys_of_the_configs():
    schemas = [OmegaConf.structured(schema) for schema, _ in STAGES.values()]
    for word in WORDS:
        key = word.partition("=")[0]
        section, _, name = key.rpartition(".")
        nodes = [OmegaConf.select(schema, section) for schema in schemas]
        assert key == "SECTION.KEY" or all(name in list(node) for node in nodes), word


@pytest.mark.parametrize(("kind", "moments"), [("adam", 2), ("adamW", 2), ("sgd", 1)])
def test_moments_are_those_of_the_optimizer(kind, moments):
    assert moments_per_parameter(OptimizerConfig(kind)) == moments
