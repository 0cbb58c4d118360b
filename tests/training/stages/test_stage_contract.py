"""Both stages are what `training.stage.Stage` says, and nothing more: who holds one needs to know nothing else."""

from __future__ import annotations

import inspect

import pytest

from tests.training.tiny_runs import session, stage1, write_config
from training.stage import Stage
from training.stages.stage1 import Stage1
from training.stages.stage2 import Stage2

ATTRIBUTES = set(Stage.__annotations__)
METHODS = {name for name, value in vars(Stage).items() if inspect.isfunction(value) and not name.startswith("_")}
PROPERTIES = {name for name, value in vars(Stage).items() if isinstance(value, property)}


@pytest.mark.parametrize("stage", [Stage1, Stage2])
def test_a_stage_offers_the_contract_and_no_more(stage):
    offered = {name for name in vars(stage) if not name.startswith("_")}
    assert METHODS | ATTRIBUTES <= offered <= METHODS | ATTRIBUTES | PROPERTIES


@pytest.mark.parametrize("stage", [Stage1, Stage2])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_are_called_as_the_contract_says(stage, method):
    ours, theirs = (list(inspect.signature(getattr(owner, method)).parameters) for owner in (stage, Stage))
    assert ours == theirs


def test_properties_are_there_once_it_is_built(tmp_path):
    run = session("stage1", "-m", write_config(tmp_path / "tiny.yaml", stage1({"arch.ema": 0.5})), "-r", tmp_path)
    run.close()
    assert {"config", "precision", "keeps_average"} == PROPERTIES
    assert run.stage.config.seed == 0
    assert run.stage.precision.name == "fp32"
    assert run.stage.keeps_average
