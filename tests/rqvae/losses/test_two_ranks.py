"""Two gloo ranks with half of a batch each compute what one process computes on the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rqstack.quantizers.usage import CodeUsage
from rqvae.losses.adversarial import adaptive_weight
from rqvae.losses.normalization import ActNorm, SyncBatchNorm

SPLIT = 3  # ranks get 3 and 5 of 8 images: counts differ, means are not means of means


def batch() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.randn(8, 4, 5, 5, generator=generator) + 3


def run_norm(norm: nn.Module, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Forward, and the gradients of a loss that depends on every output differently."""
    x = x.clone().requires_grad_()
    output = norm(x)
    (output * weight).sum().backward()
    grads = {f"grad.{name}": param.grad for name, param in norm.named_parameters()}
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    return {"output": output.detach(), "grad_x": x.grad, **grads, **state}


def perturbed(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, param in enumerate(norm.parameters()):
            param.add_(0.1 * torch.arange(4.0).view_as(param) + i)
    return norm


def results(rank: int) -> dict[str, dict[str, Tensor]]:
    mine = slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    x, weight = batch()[mine], batch().flip(1).sin()[mine]
    found = {"sync": run_norm(perturbed(SyncBatchNorm(4)), x, weight), "act": run_norm(ActNorm(4), x, weight)}
    usage = CodeUsage(2, 8)
    usage.update(torch.arange(16).view(8, 2)[mine] % 8)
    layer = torch.ones(4, requires_grad=True)
    half = (batch()[:4], batch()[4:])[rank]

    def mean_over_ranks(grads: Tensor) -> Tensor:
        dist.all_reduce(grads)
        return grads.div_(2)

    found["other"] = {
        "counts": usage.reduce().counts_DK,
        "weight": adaptive_weight(*toy_losses(layer, half), layer, reduce=mean_over_ranks),
    }
    return found


def toy_losses(layer: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    scaled = x * layer[:, None, None]
    return scaled.square().mean(), scaled.sin().mean()


@pytest.fixture(scope="module")
def ranks(on_ranks) -> list[dict[str, dict[str, Tensor]]]:
    return on_ranks(results)


@pytest.mark.parametrize(("kind", "norm_class"), [("sync", nn.BatchNorm2d), ("act", ActNorm)])
def test_normalisation(ranks, kind, norm_class):
    norm = norm_class(4)
    whole = run_norm(perturbed(norm) if kind == "sync" else norm, batch(), batch().flip(1).sin())
    first, second = ranks[0][kind], ranks[1][kind]
    for name, expected in whole.items():
        if name in ("output", "grad_x"):  # per image
            actual = torch.cat([first[name], second[name]])
        elif name.startswith("grad."):  # summed by the wrapper that averages gradients
            actual = first[name] + second[name]
        else:
            actual = first[name]
            assert torch.equal(first[name], second[name]), name
        assert torch.allclose(actual, expected, atol=2e-5, rtol=2e-5), name


def test_usage_and_adaptive_weight(ranks):
    usage = CodeUsage(2, 8)
    usage.update(torch.arange(16).view(8, 2) % 8)
    for rank in ranks:
        assert torch.equal(rank["other"]["counts"], usage.counts_DK)


def test_adaptive_weight_equals_that_of_the_whole_batch(ranks):
    layer = torch.ones(4, requires_grad=True)
    expected = adaptive_weight(*toy_losses(layer, batch()), layer)
    alone = adaptive_weight(*toy_losses(layer, batch()[:4]), layer)
    assert (alone - expected).abs() > 1e-3  # so that the average matters
    for rank in ranks:
        torch.testing.assert_close(rank["other"]["weight"], expected)
