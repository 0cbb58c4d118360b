"""Every config key when resuming: applied and recorded, or refused by its name."""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from runtime.errors import UserError
from tests.repository import ROOT
from tests.training.tiny_runs import (
    GAN,
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
from training.launch.resume_rules import APPLIED, ONCE, REFUSED, RULES, Change, allowed_changes, resume_table, rule_of
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config

OTHER = "another value"
STEPS = 4
PLAN = {"experiment.max_steps": STEPS, "experiment.save_steps": 2, "experiment.test_steps": 100}
LAST = f"checkpoints/step_{STEPS:08d}"


def every_key(schema: type, prefix: str = "") -> list[str]:
    hints = typing.get_type_hints(schema)
    keys = []
    for field in dataclasses.fields(schema):
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        name = prefix + field.name
        keys += [name] if section is None else every_key(typing.cast(type, section), f"{name}.")
    return keys


def filled(schema: type) -> typing.Any:
    """A config with all optional sections."""
    hints, values = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        kinds = [hints[field.name], *typing.get_args(hints[field.name])]
        section = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        values |= {} if section is None else {field.name: filled(typing.cast(type, section))}
    return schema(**values)


def put(config: typing.Any, key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, value)


@pytest.mark.parametrize("schema", [Stage1Config, Stage2Config])
def test_every_key_is_applied_or_refused_by_its_name(schema):
    keys = every_key(schema)
    assert len(keys) > 100
    for key in keys:
        before, after = filled(schema), filled(schema)
        put(after, key, OTHER)
        if rule_of(key).effect == REFUSED:
            with pytest.raises(
                UserError, match=rf"^{key}=another value: the resumed run has .* start a new run$"
            ) as told:
                allowed_changes(before, after)
            assert len(str(told.value)) < 300
        else:
            (change,) = allowed_changes(before, after)
            assert (change.key, change.after) == (key, OTHER)


def test_every_row_of_the_table_is_of_a_key():
    known = {*every_key(Stage1Config), *every_key(Stage2Config)}
    sections = {key.rsplit(".", count)[0] for key in known for count in range(1, 5)}
    assert {key for rule in RULES for key in rule.keys} <= known | sections
    assert {rule.effect for rule in RULES} == {APPLIED, ONCE, REFUSED}


def test_the_documentation_has_the_table():
    assert resume_table() in (ROOT / "docs/checkpoints.md").read_text()


def test_sections_that_come_or_go_are_refused():
    without, with_gan = Stage1Config(), filled(Stage1Config)
    for before, after in ((without, with_gan), (with_gan, without)):
        with pytest.raises(UserError, match="^gan"):
            allowed_changes(before, after)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A run that was killed after its checkpoint of step 2."""
    folder = tmp_path_factory.mktemp("killed")
    train_until(3, "stage1", "-m", write_config(folder / "tiny.yaml", stage1(PLAN)), "-r", folder / "runs")
    return only_run(folder / "runs")


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    ["optimizer.weight_decay=0.5", "optimizer.betas=[0.1,0.2]", "optimizer.eps=0.1", "optimizer.max_gn=1e-3"],
)
def test_a_changed_optimizer_changes_the_weights_and_is_recorded(word, killed, tmp_path):
    kept, run = copy_of(killed, tmp_path / "a"), copy_of(killed, tmp_path / "b")
    train("stage1", "--resume", "-l", kept)
    train("stage1", "--resume", "-l", run, word)
    assert "model/encoder.conv_in.weight" in differing(*(checkpoint_tensors(each / LAST) for each in (kept, run)))
    key, _, value = word.partition("=")
    for file in (run / "config.yaml", run / f"snapshots/step_{STEPS:08d}/config.yaml"):
        assert OmegaConf.select(OmegaConf.load(file), key) == OmegaConf.create(f"x: {value}").x
    assert f"from here on {key}=" in (run / "train.log").read_text()
    again = session("stage1", "--resume", "-l", run)
    again.close()
    assert not again.changed
    groups = again.stage.update.optimizer.param_groups
    assert groups[0].get(key.rpartition(".")[2], 0.0) != 0.5 or word == "optimizer.weight_decay=0.5"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["experiment.batch_size=10"], "experiment.batch_size=10: the resumed run takes 4 images per step"),
        (["optimizer.grad_accm_steps=2"], "optimizer.grad_accm_steps=2: the resumed run takes 4 images per step"),
        (["optimizer.grad_accm_steps=0"], "optimizer.grad_accm_steps=0"),
        (["experiment.batch_size=0"], "experiment.batch_size=0"),
        (["seed=5"], "seed=5: the resumed run has 0"),
        (["--seed", "5"], "seed=5: the resumed run has 0"),
        (["optimizer.type=sgd"], "optimizer.type=sgd"),
        (["dataset.type=digits"], "dataset.type=digits"),
        (["-p", "name"], "-p/--postfix name: a resumed run keeps its directory"),
        (["-e", "1"], "-e/--test-epoch 1"),
    ],
)
def test_what_a_resumed_run_cannot_do_is_refused_by_name(words, named, killed):
    before = (killed / "config.yaml").read_text()
    with pytest.raises(ValueError) as told:
        session("stage1", "--resume", "-l", killed, *words)
    assert str(told.value).startswith(named)
    assert (killed / "config.yaml").read_text() == before


def test_a_step_may_be_cut_in_smaller_parts(killed, tmp_path):
    run = copy_of(killed, tmp_path)
    again = session("stage1", "--resume", "-l", run, "experiment.batch_size=2")
    again.close()
    assert (again.plan.micro_batch, again.plan.accumulation, again.plan.global_batch) == (2, 2, 4)
    saved = OmegaConf.load(run / "config.yaml").experiment
    assert (saved.batch_size, saved.total_batch_size) == (2, 4)
    both = session("stage1", "--resume", "-l", run, "experiment.batch_size=1", "optimizer.grad_accm_steps=4")
    both.close()
    assert (both.plan.micro_batch, both.plan.accumulation) == (1, 4)


def test_a_longer_run_says_what_becomes_of_the_learning_rate(killed, tmp_path):
    run = copy_of(killed, tmp_path)
    train("stage1", "--resume", "-l", run)
    train("stage1", "--resume", "-l", run)
    log = (run / "train.log").read_text()
    assert "the run is finished: 4 of 4 steps are done" in log
    assert "learning rate of step" not in log
    train("stage1", "--resume", "-l", run, "experiment.epochs=0.6")
    log = (run / "train.log").read_text()
    assert "from here on experiment.epochs=0.6 (was null)" in log
    assert "from here on experiment.max_steps=null (was 4)" in log
    assert "the learning rate of step 4 becomes 0.000345; before the changes it was 0 and its 4 steps are over" in log


def test_an_edited_file_is_refused_or_named(tmp_path, monkeypatch):
    file = write_config(tmp_path / "tiny.yaml", stage1(PLAN))
    run = train("stage1", "-m", file, "-r", tmp_path / "runs", "experiment.log_steps=2").run_dir
    results = ["-m", file, "-r", tmp_path / "runs"]
    session("stage1", *results, "--resume").close()
    write_config(file, stage1(PLAN | {"optimizer.init_lr": 0.5, "dataset.hflip": True}))
    with pytest.raises(UserError, match=r"tiny.yaml has been edited .*dataset.hflip=True, optimizer.init_lr=0.5\)"):
        session("stage1", *results, "--resume")
    session("stage1", *results, "--resume", "optimizer.init_lr=0.5", "dataset.hflip=true").close()
    write_config(file, stage1(PLAN | {"dataset.hflip": True, "optimizer.max_gn": 2.0, "optimizer.init_lr": 0.5}))
    goes_on = train("stage1", *results, "--auto-resume")
    assert goes_on.run_dir == run
    assert "tiny.yaml has been edited since the run began (optimizer.max_gn=2.0" in (run / "train.log").read_text()


def test_relative_paths_are_recorded_absolute_and_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "s1.yaml", stage1())
    tokenizer = train("stage1", "-m", "s1.yaml", "-r", "first").run_dir
    write_config(tmp_path / "s2.yaml", stage2(PLAN))
    run = train("stage2", "-m", "s2.yaml", "-v", tokenizer, "-r", "second").run_dir.absolute()
    recorded = OmegaConf.load(run / "config.yaml").vqvae.ckpt
    assert Path(recorded).is_absolute()
    typed = json.loads((run / "launch.json").read_text())["typed_paths"]
    assert typed == {"vqvae.ckpt": str(Path(recorded).relative_to(tmp_path))}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    session("stage2", "--resume", "-l", run).close()
    moved = tmp_path.with_name(f"{tmp_path.name}-moved")
    tmp_path.rename(moved)
    run = moved / run.relative_to(tmp_path)
    monkeypatch.chdir(moved)
    again = session("stage2", "--resume", "-l", run)
    again.close()
    assert Path(OmegaConf.load(run / "config.yaml").vqvae.ckpt).is_relative_to(moved)
    monkeypatch.chdir(moved / "elsewhere")
    (moved / "first").rename(moved / "gone")
    with pytest.raises(UserError, match=r"no checkpoint at .*; -v/--vqvae PATH says where stage 1 lies"):
        session("stage2", "--resume", "-l", run)


def test_a_run_of_fp16_and_one_that_is_not_go_on_from_each_other(killed, tmp_path):
    """The loss scale is no part of a run in another precision: it starts anew."""
    run = session("stage1", "--resume", "-l", killed)
    run.close()
    state = run.stage.update.state_dict()
    assert state["scaler"] == {}
    run.stage.update.scaler = torch.amp.GradScaler("cpu", enabled=True)
    run.stage.update.load_state_dict(state)


def test_a_discriminator_keeps_its_type(tmp_path):
    gan = {**GAN, "disc": {**GAN["disc"], "optimizer": {"type": "sgd", "init_lr": 0.01, "momentum": 0.9}}}
    run = train("stage1", "-m", write_config(tmp_path / "t.yaml", stage1(PLAN | {"gan": gan})), "-r", tmp_path).run_dir
    with pytest.raises(UserError, match=r"gan.disc.optimizer.type=adam"):
        session("stage1", "--resume", "-l", run, "gan.disc.optimizer.type=adam")
    resumed = session("stage1", "--resume", "-l", run, "gan.disc.optimizer.momentum=0.5")
    resumed.close()
    changed = resumed.stage
    assert changed.objects()["discriminator_update"].optimizer.param_groups[0]["momentum"] == 0.5
    assert changed.update.optimizer.param_groups[0]["betas"] == (0.5, 0.9)


def test_a_change_in_words():
    assert str(Change("a.b", None, [1, 2])) == "a.b=[1, 2] (was null)"


def test_a_warm_up_longer_than_the_run_is_said(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", stage1(PLAN | {"gan": GAN}))
    run = train("stage1", "-m", config, "-r", tmp_path / "runs", "optimizer.warmup.epoch=3").run_dir
    log = (run / "train.log").read_text()
    assert (
        log.count("the warm-up of 30 steps (optimizer.warmup.epoch) is as long as the run or longer: 4 steps end at")
        == 1
    )
