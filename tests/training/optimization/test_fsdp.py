"""FSDP2: two processes that share every parameter train like one process that holds the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.repository import CONFIGS
from tests.training.optimization import fsdp_ranks
from tests.training.optimization.fsdp_ranks import ALONE, COMPILED, INITIAL, build, start, train_case
from tests.training.tiny_runs import differing, session, stage1, stage2, train, write_config
from training.optimization.optimizer import allocate_optimizer_state


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A trained stage-1 run."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return train("stage1", "-m", write_config(folder / "stage1.yaml", stage1()), "-r", folder).run_dir


def result(folder: Path, name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


def check_like_one_process(on_ranks, names: list[str], tokenizer: Path, folder: Path) -> None:
    """Trains cases on two ranks and in this process, and compares all they have."""
    on_ranks(fsdp_ranks.train_cases, names, str(tokenizer), str(folder))
    for name in names:
        ours, state = result(folder, name)
        train_case(start(name, "none", str(tokenizer), folder), name, folder)
        theirs, expected = result(folder, name)
        tolerance = 3e-2 if name.startswith("bf16") else 1e-5
        for mine, other in zip(ours["losses"], theirs["losses"], strict=True):
            assert mine[0] == pytest.approx(other[0], abs=tolerance), name
            assert mine[1] == pytest.approx(other[1], rel=30 * tolerance), name
        assert ours["tokenizer"] == theirs["tokenizer"], "the codebook is the frozen one, bit for bit"
        assert ours["validation"].keys() == theirs["validation"].keys()
        assert ours["validation"]["nll"] == pytest.approx(theirs["validation"]["nll"], abs=tolerance)
        check_same_state(state, expected, 100 * tolerance)


def check_same_state(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """The same names, shapes and types whatever the placement, and nearly the same averaged weights."""
    assert state.keys() == expected.keys()
    for key, tensor in state.items():
        assert (tensor.dtype, tensor.shape) == (expected[key].dtype, expected[key].shape), key
        if key.startswith("ema/"):
            torch.testing.assert_close(tensor, expected[key], rtol=0, atol=tolerance, msg=lambda text, key=key: key)


def test_two_ranks_train_like_one_process_for_20_steps(on_ranks, tokenizer, tmp_path):
    check_like_one_process(on_ranks, ["published"], tokenizer, tmp_path)
    losses, _ = zip(*result(tmp_path, "published")[0]["losses"])
    assert len(losses) == 20
    assert losses[-1] < 0.95 * losses[0], "the curve must move, or the equality says little"


@pytest.mark.slow
def test_accumulation_recomputing_and_bf16_on_two_ranks(on_ranks, tokenizer, tmp_path):
    check_like_one_process(on_ranks, ["accumulated-text", "bf16-own-tables"], tokenizer, tmp_path)


@pytest.mark.slow
def test_compiled_blocks_on_two_ranks(on_ranks, tokenizer, tmp_path):
    check_like_one_process(on_ranks, [COMPILED], tokenizer, tmp_path)


@pytest.fixture(scope="module")
def built(on_ranks, tmp_path_factory) -> Path:
    """Every model of `INITIAL`, built by two ranks."""
    folder = tmp_path_factory.mktemp("built")
    on_ranks(fsdp_ranks.build_all, str(folder))
    return folder


@pytest.mark.parametrize("name", INITIAL)
def test_initial_weights_are_those_of_one_process(name, built):
    expected = build(INITIAL[name], "none", ALONE).state_dict()
    assert differing(load_file(built / f"initial-{name}.safetensors"), expected) == []


def test_no_rank_holds_more_than_its_shares_and_one_block(built):
    sizes = [json.loads((built / f"sizes{rank}.json").read_text()) for rank in range(2)]
    assert sum(entry["shares"] for entry in sizes) == sizes[0]["whole"]
    for entry in sizes:
        assert entry["shares"] < entry["peak"] < entry["whole"] / 2 + entry["block"]


def test_the_largest_published_model_fits_its_share(on_ranks, tmp_path):
    """Shares of 3.8 billion parameters among 64, without memory for any of them."""
    world_size = 64
    config = CONFIGS / "imagenet256/stage2/in256-rqtransformer-8x8x4-3800M.yaml"
    on_ranks(fsdp_ranks.account, world_size, str(config), str(tmp_path), number=1)
    sizes = json.loads((tmp_path / f"{world_size}.json").read_text())
    assert sizes["whole"] == 4 * 3_822_488_064
    assert sizes["shares"] == sizes["whole"] // world_size, "even to the last byte"
    assert sizes["block"] == 4 * 78_676_480


def test_moments_are_allocated_without_a_step():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    allocate_optimizer_state(optimizer)
    assert differing(dict(model.state_dict()), before) == []
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.weight.grad is None
    assert not optimizer.state[model.weight]["exp_avg"].any()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"experiment.parallel": "zero"}, "experiment.parallel='zero': choose from ddp, fsdp, none"),
        ({"experiment.gradient_checkpointing": "some"}, "gradient_checkpointing='some': choose from false, true, sel"),
    ],
)
def test_an_unknown_choice_is_refused(changes, line, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=line):
        session("stage2", "-m", write_config(tmp_path / "c.yaml", stage2(changes)), "-v", tokenizer, "-r", tmp_path)


def test_stage_1_is_not_sharded(tmp_path):
    config = write_config(tmp_path / "c.yaml", stage1({"experiment.parallel": "fsdp"}))
    with pytest.raises(ValueError, match="experiment.parallel='fsdp': choose from ddp, none; stage 1 is small"):
        session("stage1", "-m", config, "-r", tmp_path)


def test_stage_1_does_not_recompute_selectively(tmp_path):
    config = write_config(tmp_path / "c.yaml", stage1({"experiment.gradient_checkpointing": "selective"}))
    with pytest.raises(ValueError, match="gradient_checkpointing='selective' is for stage 2: choose false or true"):
        session("stage1", "-m", config, "-r", tmp_path)
