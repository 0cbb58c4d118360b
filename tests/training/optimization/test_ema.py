"""The weight average: published decay, what is averaged, swapping in and out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.optimization.ema import EMA, effective_decay


class Model(nn.Module):
    """A bit of everything: a layer, a batch norm, a shared module and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.books = nn.ModuleList([self.norm, self.norm])
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def moved(model: Model) -> Model:
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            value.add_(1)
    return model


def test_golden_effective_decay(golden):
    """What is left of an average of 1 after an update with 0: the decay in float32, which the reference stores."""
    io = golden("losses").io
    mu, steps = io["ema.mu"].item(), [None if step == -2 else step for step in io["ema.steps"].tolist()]
    model, applied = nn.Linear(1, 1), []
    for step in steps:
        nn.init.ones_(model.weight)
        ema = EMA(model, mu)
        nn.init.zeros_(model.weight)
        ema.update(model, step)
        applied.append(ema.shadow["weight"].item())
    expected = io["ema.effective_decay"]
    torch.testing.assert_close(torch.tensor(applied, dtype=torch.float64), expected, atol=1e-9, rtol=0)
    decays = torch.tensor([effective_decay(step, mu) for step in steps], dtype=torch.float64)
    torch.testing.assert_close(decays, expected, atol=6e-8, rtol=0)


def test_starts_as_a_separate_float32_copy_without_scratch_or_doubles():
    model = Model().to(torch.bfloat16)
    ema = EMA(model, 0.9)
    assert set(ema.shadow) == {
        "layer.weight", "layer.bias", "norm.weight", "norm.bias",
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked",
    }  # fmt: skip
    assert ema.shadow["layer.weight"].dtype == torch.float32
    before = ema.shadow["layer.weight"].clone()
    assert torch.equal(before, model.layer.weight.float())
    moved(model)
    assert torch.equal(ema.shadow["layer.weight"], before)


def test_update_follows_the_formula():
    model = Model()
    ema = EMA(model, 0.9)
    start = {name: value.clone() for name, value in ema.shadow.items()}
    moved(model)
    ema.update(model)
    for name in ("layer.weight", "norm.bias", "norm.running_mean"):
        torch.testing.assert_close(ema.shadow[name], start[name] + 0.1)
    assert ema.shadow["norm.num_batches_tracked"] == 1  # integers are copied
    ema.update(model, step=0)  # decay 0.1
    torch.testing.assert_close(ema.shadow["layer.weight"], start["layer.weight"] + 1 - 0.1 * 0.9)


def test_negative_step_copies_exactly():
    model = Model()
    ema = EMA(model, 0.999)
    with torch.no_grad():
        model.layer.weight.normal_()
    ema.update(model, step=-1)
    assert torch.equal(ema.shadow["layer.weight"], model.layer.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_changes_are_not_lost_in_low_precision(dtype):
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    ema = EMA(model, 0.9999)
    nn.init.ones_(model.weight)
    for _ in range(100):
        ema.update(model)
    assert ema.shadow["weight"].item() == pytest.approx(1 - 0.9999**100, rel=1e-3)


def test_swap_restores_the_model_bit_for_bit_even_after_an_error():
    model = Model()
    ema = EMA(model, 0.9)
    average = {name: value.clone() for name, value in ema.shadow.items()}
    moved(model)
    own = {name: value.clone() for name, value in model.state_dict().items()}

    def fail_inside() -> None:
        with ema.swap(model):
            assert all(torch.equal(model.state_dict()[name], value) for name, value in average.items())
            assert model.layer.weight.requires_grad
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())
    assert all(torch.equal(ema.shadow[name], value) for name, value in average.items())


def test_swap_restores_the_model_when_the_average_cannot_be_copied_in():
    model = Model()
    ema = EMA(model, 0.9)
    moved(model)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    ema.shadow["norm.running_var"] = torch.ones(7)  # the entries before it are copied by then
    with pytest.raises(RuntimeError, match="size"), ema.swap(model):
        pytest.fail("there is no average to work with")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in own.items())


def test_gradients_flow_inside_swap():
    model = Model()
    with EMA(model, 0.9).swap(model):
        model.layer(torch.ones(1, 2)).sum().backward()
    assert model.layer.weight.grad is not None


def test_state_round_trip_continues_bit_for_bit():
    model = Model()
    ema, resumed = EMA(model, 0.9), EMA(Model(), 0.9)
    ema.update(moved(model), 3)
    resumed.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    moved(model)
    ema.update(model, 4)
    resumed.update(model, 4)
    assert all(torch.equal(resumed.shadow[name], value) for name, value in ema.shadow.items())


def test_state_loads_into_the_model_itself():
    model, fresh = Model(), Model()
    result = fresh.load_state_dict(EMA(model, 0.9).state_dict(), strict=False)
    assert not result.unexpected_keys
    assert torch.equal(fresh.layer.weight, model.layer.weight)


def test_foreign_state_is_refused():
    ema = EMA(Model(), 0.9)
    state = ema.state_dict()
    state["head.weight"] = state.pop("layer.weight")
    with pytest.raises(ValueError, match=r"2 names differ, first head\.weight"):
        ema.load_state_dict(state)


@pytest.mark.parametrize("mu", [1.0, -0.1, True, "0.9", float("nan")])
def test_wrong_decay(mu):
    with pytest.raises(ValueError, match="decay"):
        EMA(Model(), mu)
