"""What a step of stage 2 reads back from the device: nothing by default."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rqstack.quantizers import ResidualStack
from rqstack.quantizers.arithmetic import given_tensors
from rqstack.quantizers.methods.finite_scalar import FiniteScalarOptions, FiniteScalarQuantizer
from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.targets import SoftTargets, Stage2LossConfig, stage2_loss
from training.optimization.optimizer import OptimizerConfig, build_optimizer
from training.optimization.update import ScaledUpdate

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)


class HostReads(TorchDispatchMode):
    """Counts what would make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in READS
        return func(*args, **(kwargs or {}))


def update_of(model: nn.Module, scaled: bool) -> ScaledUpdate:
    optimizer = build_optimizer(model, OptimizerConfig(type="adamW", fused=True), "cpu")
    schedule = SimpleNamespace(at=lambda step: 1e-3)
    settings = SimpleNamespace(non_finite="stop", max_skipped_steps=1)
    return ScaledUpdate(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=scaled), 1.0, settings)


def test_a_scaled_update_reads_nothing_and_leaves_out_what_overflowed():
    model = nn.Linear(3, 2)
    update = update_of(model, scaled=True)
    update.backward(model(torch.ones(1, 3)).sum())  # the scale is made at the first use
    with HostReads() as reads:
        assert update.step(1, {})
    assert reads.count == 0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    update.backward(model(torch.full((1, 3), float("inf"))).sum())
    with HostReads() as reads:
        update.step(2, {})
    assert reads.count == 0
    assert all(map(torch.equal, before, model.parameters()))
    assert update.scaler.get_scale() == 2.0**15


def test_a_step_with_soft_targets_reads_nothing():
    arch = {"block_size": [2, 2, 3], "embed_dim": 16, "vocab_size": 20, "vocab_size_cond": 5, "ema": None}
    stacks = {name: {"n_layer": 1, "block": {"n_head": 2}} for name in ("body", "head")}
    model = RQTransformer(RQTransformerConfig.from_mapping({**arch, **stacks}))
    update = update_of(model, scaled=False)
    codes, cond = torch.randint(20, (2, 2, 2, 3)), torch.tensor([1, 2])
    with HostReads() as reads:
        targets = SoftTargets(torch.randn(2, 2, 2, 3, 4), [torch.randn(20, 4)] * 3, 0.5)
        loss, terms = stage2_loss(model(codes, None, cond), codes, targets, cond, Stage2LossConfig())
        update.backward(loss)
        update.step(1, terms)
    assert reads.count == 0


def test_stochastic_targets_of_a_stack_read_nothing(monkeypatch):
    monkeypatch.setattr(given_tensors, "_check_range", lambda *given: None)  # of codes: read on a CPU alone
    stack = ResidualStack(
        4, [FiniteScalarQuantizer(4, FiniteScalarOptions([3, 3, 3, 3])) for _ in range(2)], scales=[1.0, 0.5]
    )
    with HostReads() as reads:
        stack.targets(torch.randn(6, 4), 0.5, True)
    assert reads.count == 0
