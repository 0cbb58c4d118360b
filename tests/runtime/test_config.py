"""Strict merging of defaults, YAML and overrides, and the one-line errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Optional

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from runtime.config import TEXT_OR_LIST, config_to_yaml, load_config, save_config
from runtime.errors import UserError


@dataclass
class Model:
    width: int = 8
    dropout: Optional[float] = None
    shape: List[int] = field(default_factory=lambda: [8, 8, 4])

    def __post_init__(self) -> None:
        if self.width == 13:
            raise ValueError("width 13 is unlucky; take another")


@dataclass
class Optimizer:
    init_lr: float = 1e-3
    betas: List[float] = field(default_factory=lambda: [0.9, 0.99])


@dataclass
class Experiment:
    name: str = "???"
    model: Model = field(default_factory=Model)
    optimizer: Optional[Optimizer] = None
    stages: List[Model] = field(default_factory=list)
    extra: Any = None


def load(directory: Path, text: str, *overrides: str) -> Experiment:
    file = directory / "experiment.yaml"
    file.write_text(text)
    return load_config(Experiment, file, overrides)


def test_yaml_over_defaults_and_overrides_over_yaml(tmp_path):
    config = load(
        tmp_path,
        "name: a\nmodel: {width: 16}\noptimizer: {init_lr: 4e-5}\n",
        "model.shape=[1,2]",
        "model.dropout=0.5",
        "optimizer.betas.1=0.95",
        "name='x y'",
    )
    assert config == Experiment("x y", Model(16, 0.5, [1, 2]), Optimizer(4e-5, [0.9, 0.95]))
    assert isinstance(config.model, Model)
    assert isinstance(config.optimizer, Optimizer)


def test_an_absent_section_is_filled_with_its_defaults_by_an_override(tmp_path):
    assert load(tmp_path, "name: a", "optimizer.init_lr=1").optimizer == Optimizer(1.0)
    assert load(tmp_path, "name: a\noptimizer: {init_lr: 1}", "optimizer=null").optimizer is None


def test_without_a_file_the_overrides_alone_count():
    assert load_config(Experiment, None, ["name=b", "model.width=2"]).model.width == 2


def test_free_sections_take_new_keys_only_when_asked(tmp_path):
    text = "name: a\nextra: {known: 1}\n"
    assert load(tmp_path, text, "extra.known=2", "+extra.new.deep=3").extra == {"known": 2, "new": {"deep": 3}}
    with pytest.raises(UserError, match=r"unknown key 'extra.new'.*\+extra.new=3"):
        load(tmp_path, text, "extra.new=3")


def test_interpolations_are_resolved_in_the_merged_config(tmp_path):
    config = load(tmp_path, "name: a\nmodel: {width: 4}\nextra: {double: '${model.width}'}\n", "model.width=6")
    assert config.extra == {"double": 6}


def test_lists_of_sections(tmp_path):
    config = load(tmp_path, "name: a\nstages: [{width: 1}, {dropout: 0.1}]\n", "stages.1.width=5")
    assert config.stages == [Model(1), Model(5, 0.1)]


ERRORS = {
    "name: a\nmodel: {widht: 3}": "unknown key 'model.widht'; did you mean 'model.width'?",
    "name: a\nmodl: {width: 3}": "unknown key 'modl'; did you mean 'model'?",
    "name: a\nwidth: 3": "unknown key 'width'; did you mean 'model.width'?",
    "name: a\nqqq: 3": "unknown key 'qqq'; valid here: name, model, optimizer, stages, extra",
    "name: a\nmodel: {width: wide}": "'model.width': Value 'wide' of type 'str' could not be converted to Integer",
    "name: a\nmodel: {width: 1.5}": "'model.width': Value '1.5' of type 'float' could not be converted to Integer",
    "name: a\nmodel: 3": "'model': ",
    "name: a\noptimizer: {betas: 0.9}": "'optimizer.betas': ",
    "name: a\noptimizer: {init_lr: [1]}": "'optimizer.init_lr': ",
    "name: a\nstages: [{widht: 1}]": "unknown key 'stages.widht'; did you mean 'stages.width'?",
    "model: {width: 3}": "no value for 'name'",
    "name: ${nowhere}": "'name': Interpolation key 'nowhere' not found",
    "name: a\nmodel: {width: 13}": "width 13 is unlucky; take another",
    "name: [a": "not valid YAML: expected ',' or ']', but got '<stream end>', line 1, column 9",
    "name: a\nname: b": "found duplicate key name",
    "name: !!python/object/apply:os.system ['true']": "could not determine a constructor for the tag",
    "- a": "must be a DictConfig",
    "defaults: [absent]\nname: a": "Could not load 'absent'",
    "defaults: 5\nname: a": "defaults must be a list",
    "defaults: [null]\nname: a": "Unsupported type in defaults",
    "defaults: [b: _self_]\nname: a": "its defaults list has an entry that is none",
    f"name: a\n{'deep.' * 100}: 1": f"unknown key '{('deep.' * 16)[:77]}...'",
}


@pytest.mark.filterwarnings("ignore:.*_self_")
@pytest.mark.parametrize("text", ERRORS)
def test_a_wrong_file_gives_one_line_with_its_name(tmp_path, text):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}: ")
    assert ERRORS[text] in message
    assert "\n" not in message
    assert len(message) < 250 + len(str(tmp_path))


OVERRIDE_ERRORS = {
    "model.widht=3": "command line: unknown key 'model.widht'; did you mean 'model.width'?",
    "+model.qqq=3": "command line: unknown key 'model.qqq'; valid here: width, dropout, shape",
    "optimizer.init_lrr=3": "did you mean 'optimizer.init_lr'?",
    "lr=3": "unknown key 'lr'",
    "model.width=wide": "'model.width': Value 'wide'",
    "model.width.x=1": "'model.width.x'",
    "model=null": "'model'",
    "stages.0.width=1": "unknown key 'stages.0.width'",
    "name": "overrides are written key=value",
    "model.width=1,2": "write model.width=[...] for a list",
    "~model": "write model=null",
}


@pytest.mark.parametrize("override", OVERRIDE_ERRORS)
def test_a_wrong_override_gives_one_line(tmp_path, override):
    with pytest.raises(UserError) as caught:
        load(tmp_path, "name: a", override)
    assert OVERRIDE_ERRORS[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_suggests_the_nearest(tmp_path):
    (tmp_path / "digits.yaml").write_text("name: a")
    with pytest.raises(UserError, match=r"no config file .*digit\.yaml; did you mean .*digits\.yaml\?"):
        load_config(Experiment, tmp_path / "digit.yaml")
    with pytest.raises(UserError, match="no config file"):
        load_config(Experiment, tmp_path / "nowhere" / "a.yaml")
    (tmp_path / "a.yml").write_text("name: a")
    with pytest.raises(UserError, match=r"ends in \.yaml"):
        load_config(Experiment, tmp_path / "a.yml")


def test_unreadable_text_is_a_user_error(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.yaml"):
        load_config(Experiment, tmp_path / "a.yaml")


def test_defaults_lists_look_beside_the_file_and_in_configs(tmp_path):
    folder = tmp_path / "it's a place" / "configs" / "set" / "stage1"
    shared = folder.parents[1] / "shared"
    folder.mkdir(parents=True)
    shared.mkdir()
    (shared / "small.yaml").write_text("# @package _global_\nmodel: {width: 2, dropout: 0.1}\n")
    (shared / "large.yaml").write_text("# @package _global_\nmodel: {width: 200}\n")
    (folder / "base.yaml").write_text("optimizer: {init_lr: 2}\n")
    text = "defaults: [/shared: small, base, _self_]\nname: a\nmodel: {dropout: 0.3}\n"
    assert load(folder, text) == Experiment("a", Model(2, 0.3), Optimizer(2.0))
    assert load(folder, text, "shared=large", "model.width=7").model == Model(7, 0.3)
    assert load(folder, text, "shared=large").model == Model(200, 0.3)
    with pytest.raises(UserError, match="Could not find 'shared/huge'"):
        load(folder, text, "shared=huge")


def test_loading_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for width in (1, 2):
        assert load(tmp_path, f"name: a\nmodel: {{width: {width}}}").model.width == width
    with pytest.raises(UserError):
        load(tmp_path, "nam: a")
    assert not GlobalHydra.instance().is_initialized()
    assert [entry.name for entry in tmp_path.iterdir()] == ["experiment.yaml"]


def test_a_saved_config_loads_to_the_same(tmp_path):
    config = load(tmp_path, "name: a\nextra: {x: [1, null, 2.5], y: {z: text}}\noptimizer: {}\n")
    save_config(config, tmp_path / "run" / "config.yaml")
    assert load_config(Experiment, tmp_path / "run" / "config.yaml") == config
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_config_to_yaml_takes_mappings_too():
    assert config_to_yaml({"a": {"b": 1}}) == "a:\n  b: 1\n"


FOLDERS = (
    "müller", "a=b", "x (1)", "a,b", "a#b", "中文", "123", "01", "1e3", "true", "1_000", "inf", "{x}", "[a]", "f(x)",
    "it's (1)", 'a"b', "~/a", " a", "a ", "a & b;c!?*<>|", "C:\\x", "back\\", "http://a/b?c=d&e", "{0..3}.tar", "a:b@c",
)  # fmt: skip


@dataclass
class Files:
    root: Any = field(default=None, metadata={TEXT_OR_LIST: True})
    cache: Optional[str] = None


@dataclass
class Paths:
    files: Files = field(default_factory=Files)
    maybe: Optional[Files] = None
    count: int = 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_any_folder_name_can_be_given_as_it_is(folder):
    words = [f"files.root={folder}", f"files.cache={folder}", f"maybe.cache={folder}"]
    config = load_config(Paths, None, words)
    assert config.files.cache == config.maybe.cache == folder
    assert config.files.root == (["a"] if folder == "[a]" else folder)


def test_text_keeps_the_grammar_of_null_quotes_lists_and_interpolations():
    words = ["files.cache='a,b'", "files.root=[a,'x (1)']", "maybe.root=${files.cache}", "maybe.cache=null"]
    config = load_config(Paths, None, words)
    assert config.files == Files(["a", "x (1)"], "a,b")
    assert config.maybe == Files("a,b", None)


@pytest.mark.parametrize("word", ["count=x (1)", "count=müller", "count=1,2", f"count={'(' * 500}"])
def test_what_is_no_text_says_how_to_quote(word):
    with pytest.raises(UserError, match=r"'count=\"\.\.\.\"'") as told:
        load_config(Paths, None, [word])
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model.dropout=nan", "command line: 'model.dropout': nan is not a finite number"),
        ("model.dropout=${test.nan:}", "command line: 'model.dropout': nan is not a finite number"),
        ("model.dropout=-inf", "command line: 'model.dropout': -inf is not a finite number"),
        ("model.width=99999999999999999999", "'model.width': 99999999999999999999 does not fit into 64 bits"),
        ("model.shape=[1,-99999999999999999999]", "'model.shape.1': -99999999999999999999 does not fit"),
    ],
)
def test_numbers_that_no_setting_can_be(word, says):
    OmegaConf.register_new_resolver("test.nan", lambda: float("nan"), replace=True)
    with pytest.raises(UserError, match=re.escape(says)):
        load_config(Experiment, None, ["name=a", word])
