"""Optimizers from their published config sections, and gradient clipping."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from training.optimization.optimizer import OptimizerConfig, build_optimizer, clip_gradients


def section(**values) -> OptimizerConfig:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(OptimizerConfig), values))


def test_published_sections():
    warmup = {"epoch": 0.5, "multiplier": 1, "buffer_epoch": 0, "min_lr": 4e-5, "mode": "fix"}
    config = section(type="adam", init_lr=4e-5, weight_decay=0.0, betas=[0.5, 0.9], warmup=warmup)
    assert (config.warmup.epoch, config.warmup.start_from_zero, config.max_gn) == (0.5, True, None)
    optimizer = build_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (4e-5, (0.5, 0.9), 0.0)


def test_golden_stage2_section(golden):
    config = section(**OmegaConf.to_container(golden("rqtransformer-class").config.optimizer))
    (group,) = build_optimizer(nn.Linear(2, 2), config).param_groups
    assert (group["weight_decay"], group["eps"], config.max_gn) == (1e-4, 1e-8, 1.0)


def test_adamw_decays_every_parameter_as_published():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    optimizer = build_optimizer(model, section(type="adamW", init_lr=0.1, weight_decay=0.5))
    assert len(optimizer.param_groups) == 1
    before = model[1].weight.detach().clone()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    torch.testing.assert_close(model[1].weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("name", "kind"), [("adamW", torch.optim.AdamW), ("ADAM", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_types_in_any_case_learn(name, kind):
    param = torch.tensor([4.0], requires_grad=True)
    optimizer = build_optimizer([param], section(type=name, init_lr=0.1, momentum=0.9))
    assert type(optimizer) is kind
    for _ in range(5):
        optimizer.zero_grad()
        param.square().sum().backward()
        optimizer.step()
    assert abs(param.item()) < 4.0


def test_sgd_uses_momentum():
    param = torch.tensor([0.0], requires_grad=True)
    optimizer = build_optimizer([param], section(type="sgd", init_lr=1.0, momentum=0.5))
    for _ in range(2):
        param.grad = torch.ones(1)
        optimizer.step()
    assert param.item() == -2.5


def test_published_defaults():
    assert type(build_optimizer(nn.Linear(2, 2), section())) is torch.optim.AdamW
    param = torch.tensor([0.0], requires_grad=True)
    optimizer = build_optimizer([param], section(type="sgd", init_lr=1.0))
    for _ in range(2):
        param.grad = torch.ones(1)
        optimizer.step()
    assert param.item() == pytest.approx(-2.9)  # a step of 1, then one of 1 + 0.9


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    optimizer = build_optimizer(model, section())
    assert [param is model.weight for param in optimizer.param_groups[0]["params"]] == [True]


def test_groups_keep_their_settings():
    a, b = (torch.ones(1, requires_grad=True) for _ in range(2))
    optimizer = build_optimizer([{"params": [a], "weight_decay": 0.0}, {"params": [b]}], section(weight_decay=0.3))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.3]


@pytest.mark.parametrize(
    ("kind", "fused", "device", "expected"),
    [
        ("adamW", "auto", "cpu", True),
        ("adam", "auto", "cpu", True),
        ("adamW", "auto", None, False),
        ("adamW", "auto", "cuda:0", True),
        ("sgd", "auto", "cuda:0", False),
        ("sgd", "auto", "cpu", False),
        ("sgd", True, "cpu", True),
        ("adamW", False, "cuda", False),
    ],
)
def test_fused_kernel_choice(kind, fused, device, expected):
    optimizer = build_optimizer([torch.ones(1, requires_grad=True)], section(type=kind, fused=fused), device)
    assert optimizer.param_groups[0]["fused"] is (True if expected else None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "lion"}, "'lion'.*adam.*adamW.*sgd"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        ({"init_lr": -1.0}, "init_lr"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"max_gn": 0.0}, "max_gn"),
        ({"grad_accm_steps": 0}, "grad_accm_steps"),
        ({"fused": "yes"}, "fused.*'yes'"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer([torch.ones(1, requires_grad=True)], section(**change))


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to optimize"):
        build_optimizer([torch.ones(1)], section())


def gradients() -> list[torch.Tensor]:
    params = [torch.zeros(1, requires_grad=True) for _ in range(3)]
    params[0].grad, params[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
    return params  # the third has no gradient


def test_clipping_scales_the_joint_norm():
    params = gradients()
    assert clip_gradients(params, 1.0).item() == 5.0
    clipped = torch.cat([param.grad for param in params[:2]])
    torch.testing.assert_close(clipped, torch.tensor([0.6, 0.8]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_norm", [None, 6.0])
def test_small_norms_are_only_measured(max_norm):
    params = gradients()
    assert clip_gradients((param for param in params), max_norm).item() == 5.0
    assert [param.grad.item() for param in params[:2]] == [3.0, 4.0]


def test_norm_without_gradients_is_zero():
    assert clip_gradients([torch.zeros(1, requires_grad=True)], 1.0).item() == 0.0


def test_norm_that_is_not_finite_is_returned():
    params = gradients()
    params[0].grad.fill_(float("inf"))
    assert clip_gradients(params, 1.0).isinf()
