"""Data-parallel wrapping: the module alone in one process, equal gradients in two."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from runtime import distributed
from runtime.distributed import DistEnv
from training.optimization.parallel import check_parallel, no_sync, wrap

ALONE = DistEnv(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), backend="none")
BATCH_NC = torch.arange(12.0).view(6, 2) / 10


def build(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    model.register_buffer("codebook", torch.randn(4))
    model.register_buffer("count", torch.tensor(seed))
    return model


def test_alone_there_is_no_wrapper():
    model = build(0)
    assert wrap(model, ALONE) is model
    assert isinstance(no_sync(model), nullcontext)


def test_choices():
    two = DistEnv(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"), backend="gloo")
    assert [check_parallel(name, ALONE) for name in ("ddp", "fsdp", "none")] == ["ddp", "fsdp", "none"]
    assert check_parallel("fsdp", two) == "fsdp"
    with pytest.raises(ValueError, match="'none' is one process, and these are 2: choose ddp or fsdp"):
        check_parallel("none", two)
    with pytest.raises(ValueError, match="'fsdp': choose from ddp, none; too small"):
        check_parallel("fsdp", two, ("ddp", "none"), "too small")
    with pytest.raises(ValueError, match="'fdsp': choose from ddp, none$"):
        check_parallel("fdsp", two, ("ddp", "none"), "too small")


def test_a_frozen_model_is_not_wrapped():
    model = build(0).requires_grad_(False)
    two = DistEnv(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"), backend="gloo")
    assert wrap(model, two) is model


def train_one_rank(rank: int) -> dict[str, Tensor]:
    env = distributed.initialize()
    model = build(seed=rank)
    parallel = wrap(model, env)
    seen = {f"buffer.{name}": buffer.clone() for name, buffer in model.named_buffers()}
    mine = BATCH_NC[rank * 3 : rank * 3 + 3]
    with no_sync(parallel, enabled=True):
        parallel(mine).mean().backward()
    seen["local"] = model[0].weight.grad.clone()
    with no_sync(parallel, enabled=False):
        parallel(mine).square().mean().backward()
    seen |= {f"grad.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
    # The first forward after a synchronised backward is the one that would broadcast buffers.
    model.codebook.fill_(float(rank))
    parallel(mine)
    seen["codebook after"] = model.codebook.clone()
    return seen


def test_two_ranks_have_the_gradients_of_the_joint_batch(on_ranks):
    first, second = on_ranks(train_one_rank)
    alone = build(seed=0)
    output = alone(BATCH_NC)
    (output.mean() + output.square().mean()).backward()
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(first[f"grad.{name}"], parameter.grad)
        assert torch.equal(first[f"grad.{name}"], second[f"grad.{name}"])
    for name, buffer in alone.named_buffers():
        assert torch.equal(first[f"buffer.{name}"], buffer), "buffers start as rank 0's"
        assert torch.equal(second[f"buffer.{name}"], buffer)
    assert not torch.equal(first["local"], second["local"]), "no_sync leaves gradients to each rank"
    assert (first["codebook after"].max(), second["codebook after"].max()) == (0, 1), "buffers are a rank's own"


def _gradients_of_a_first_and_a_later_step(rank: int) -> list[Tensor]:
    """Flat gradients of the same batch, by a wrapper that is new, and by the same in its third step."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for width in (7, 61, 33, 5) for layer in (nn.LazyLinear(width), nn.Tanh())))
    torch.manual_seed(rank)
    batch_NC = torch.randn(8, 3)
    model(batch_NC)  # gives the lazy layers their parameters
    wrapped = wrap(model, distributed.DistEnv(rank, 3, rank, torch.device("cpu"), "gloo"))
    found = []
    for _ in range(3):
        model.zero_grad()
        wrapped(batch_NC).square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).clone())
    return [found[0], found[2]]


def test_three_ranks_add_up_in_one_order_in_every_step(on_ranks):
    """A process that has just resumed a run takes its first step; the run it goes on with had taken many."""
    results = on_ranks(_gradients_of_a_first_and_a_later_step, number=3)
    first = results[0][0]
    assert first.abs().sum() > 0
    for of_rank in results:
        assert all(torch.equal(gradient, first) for gradient in of_rank)
