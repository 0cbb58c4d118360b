"""The chunked losses against plain torch, their gradients, their memory and what they report."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rqtransformer.model import RQTransformerOutput
from rqtransformer.targets import (
    DenseTargets,
    SoftTargets,
    Stage2LossConfig,
    condition_loss,
    cross_entropy_per_depth,
    per_depth_statistics,
    stage2_loss,
)

B, H, W, D, V, E = 3, 2, 5, 4, 13, 6
CHUNKS = pytest.mark.parametrize("chunk", [None, 1, 7, 30, 1000])


@pytest.fixture
def problem():
    """(logits, codes, residuals, codebooks)."""
    return (
        torch.randn(B, H, W, D, V, requires_grad=True),
        torch.randint(0, V, (B, H, W, D)),
        torch.randn(B, H, W, D, E),
        [torch.randn(V, E) for _ in range(D)],
    )


def reference_soft_targets(residual, codebooks, temp):
    columns = []
    for depth, book in enumerate(codebooks):
        distances = (residual[..., depth, None, :] - book).square().sum(-1)
        columns.append(F.softmax(-distances / temp, dim=-1))
    return torch.stack(columns, dim=-2)


@CHUNKS
def test_hard_loss_and_gradient_equal_torch(problem, chunk):
    logits, codes, _, _ = problem
    loss_D, nll_D, accuracy_D = cross_entropy_per_depth(logits, codes, chunk=chunk)
    rows = F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none").unflatten(0, (B * H * W, D))
    torch.testing.assert_close(loss_D, rows.mean(0))
    torch.testing.assert_close(nll_D, rows.mean(0).detach())
    torch.testing.assert_close(accuracy_D, (logits.argmax(-1) == codes).flatten(0, 2).float().mean(0))
    weights = torch.arange(1.0, D + 1)
    (ours,) = torch.autograd.grad((loss_D * weights).sum(), logits, retain_graph=True)
    (torchs,) = torch.autograd.grad((rows.mean(0) * weights).sum(), logits)
    torch.testing.assert_close(ours, torchs)
    assert not nll_D.requires_grad
    assert not accuracy_D.requires_grad


@CHUNKS
@pytest.mark.parametrize("temp", [0.3, 1.0, 2.0])
def test_soft_loss_and_gradient_equal_torch(problem, chunk, temp):
    logits, codes, residual, codebooks = problem
    loss_D, nll_D, _ = cross_entropy_per_depth(logits, codes, SoftTargets(residual, codebooks, temp), chunk)
    expected_D = -(reference_soft_targets(residual, codebooks, temp) * logits.log_softmax(-1)).sum(-1)
    expected_D = expected_D.flatten(0, 2).mean(0)
    torch.testing.assert_close(loss_D, expected_D, atol=2e-6, rtol=1e-5)
    (ours,) = torch.autograd.grad(loss_D.sum(), logits, retain_graph=True)
    (torchs,) = torch.autograd.grad(expected_D.sum(), logits)
    torch.testing.assert_close(ours, torchs, atol=1e-7, rtol=1e-5)


def test_dense_targets_equal_targets_from_residuals(problem):
    logits, codes, residual, codebooks = problem
    dense = DenseTargets(reference_soft_targets(residual, codebooks, 0.5))
    lazy = SoftTargets(residual, codebooks, 0.5)
    torch.testing.assert_close(
        cross_entropy_per_depth(logits, codes, dense)[0], cross_entropy_per_depth(logits, codes, lazy)[0]
    )


def test_smaller_codebooks_leave_the_logits_beyond_them_alone(problem):
    logits, codes, residual, codebooks = problem
    codebooks[1] = codebooks[1][:5]
    masked = logits.detach().clone()
    masked[..., 1, 5:] = torch.finfo(torch.float32).min / 2
    masked.requires_grad_(True)
    loss_D, _, _ = cross_entropy_per_depth(masked, codes.clamp(max=4), SoftTargets(residual, codebooks, 0.5))
    loss_D.sum().backward()
    narrow = reference_soft_targets(residual[..., 1:2, :], codebooks[1:2], 0.5)
    expected = -(narrow * logits[..., 1:2, :5].log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss_D[1], expected, atol=2e-6, rtol=1e-5)
    assert masked.grad[..., 1, 5:].eq(0).all()
    assert torch.isfinite(masked.grad).all()


def test_half_precision_logits_are_worked_on_in_fp32(problem):
    logits, codes, residual, codebooks = problem
    half = logits.detach().bfloat16().requires_grad_(True)
    targets = SoftTargets(residual, codebooks, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss_D, _, _ = cross_entropy_per_depth(half, codes, targets)
    expected_D, _, _ = cross_entropy_per_depth(half.detach().float(), codes, targets)
    assert loss_D.dtype == torch.float32
    torch.testing.assert_close(loss_D, expected_D, atol=1e-6, rtol=0)
    loss_D.sum().backward()
    assert half.grad.dtype == torch.bfloat16


class _LargestResult(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes, views of the logits left out, and the
    memory of all those as large as the logits.
    """

    def __init__(self, logits):
        super().__init__()
        self.logits_address, self.largest = logits.untyped_storage().data_ptr(), 0
        self.logits_bytes, self.as_large = logits.untyped_storage().nbytes(), {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() != self.logits_address:
                self.largest = max(self.largest, made.numel())
                if made.untyped_storage().nbytes() >= self.logits_bytes:
                    self.as_large[made.untyped_storage().data_ptr()] = made  # kept: no address is used twice
        return result


@pytest.mark.parametrize("soft", [True, False])
def test_without_gradients_nothing_is_larger_than_a_chunk(problem, soft):
    logits, codes, residual, codebooks = problem
    targets = SoftTargets(residual, codebooks, 0.5) if soft else None
    logits = logits.detach()
    with _LargestResult(logits) as seen:
        cross_entropy_per_depth(logits, codes, targets, chunk=5)
    assert 5 * V <= seen.largest < logits.numel() / 4


@pytest.mark.parametrize("soft", [True, False])
def test_only_the_gradient_is_of_the_size_of_the_logits(problem, soft):
    logits, codes, residual, codebooks = problem
    targets = SoftTargets(residual, codebooks, 0.5) if soft else None
    before = logits.detach().clone()
    with _LargestResult(logits) as seen:
        loss = cross_entropy_per_depth(logits, codes, targets, chunk=5)[0].sum()
        (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert list(seen.as_large) == [grad.untyped_storage().data_ptr()]
    assert torch.equal(logits, before)  # the caller may still read them, and go back again
    kept = grad.clone()
    assert torch.equal(torch.autograd.grad(loss, logits, retain_graph=True)[0], kept)
    assert torch.equal(grad, kept)


def test_a_step_works_every_target_out_once(problem):
    logits, codes, residual, codebooks = problem
    targets, rows = SoftTargets(residual, codebooks, 0.5), []
    worked_out = targets.scores

    def counted(start, end, depth):
        rows.append(end - start)
        return worked_out(start, end, depth)

    targets.scores = counted
    cross_entropy_per_depth(logits, codes, targets, chunk=5)[0].sum().backward()
    assert sum(rows) == codes.numel()


def test_fp16_gradients_are_rounded_after_the_loss_scale_is_in_them(problem):
    logits, codes, residual, codebooks = problem
    half = logits.detach().half().requires_grad_(True)
    targets = SoftTargets(residual, codebooks, 0.5)
    exact = half.detach().float().requires_grad_(True)
    for given in (half, exact):
        (cross_entropy_per_depth(given, codes, targets)[0].sum() * 2.0**10).backward()
    torch.testing.assert_close(half.grad, exact.grad.half(), atol=0, rtol=0)


def test_statistics_carry_no_gradient_and_match_the_loss(problem):
    logits, codes, _, _ = problem
    nll_D, accuracy_D = per_depth_statistics(logits, codes)
    torch.testing.assert_close(nll_D, cross_entropy_per_depth(logits, codes)[0].detach())
    assert not nll_D.requires_grad
    assert accuracy_D.shape == (D,)


def test_condition_loss_leaves_dropped_conditions_out():
    logits, cond = torch.randn(3, 4, 10, requires_grad=True), torch.randint(0, 10, (3, 5))
    plain = F.cross_entropy(logits.flatten(0, 1), cond[:, 1:].flatten())
    torch.testing.assert_close(condition_loss(logits, cond), plain)
    dropped = cond.clone()
    dropped[1] = 10
    kept = torch.tensor([0, 2])
    expected = F.cross_entropy(logits[kept].flatten(0, 1), cond[kept, 1:].flatten())
    torch.testing.assert_close(condition_loss(logits, dropped), expected)
    assert condition_loss(logits, torch.full_like(cond, 10)) == 0


def test_stage2_loss_weighs_image_and_text(problem):
    logits, codes, residual, codebooks = problem
    cond = torch.randint(0, 10, (B, 5))
    output = RQTransformerOutput(logits, torch.randn(B, 4, 10), None)
    config = Stage2LossConfig(temp=0.5, txt_weight=0.1, img_weight=0.9)
    loss, terms = stage2_loss(output, codes, SoftTargets(residual, codebooks, 0.5), cond, config)
    torch.testing.assert_close(loss.detach(), 0.9 * terms["loss_img"] + 0.1 * terms["loss_txt"])
    torch.testing.assert_close(terms["loss_txt"], condition_loss(output.cond_logits, cond))
    names = {f"{name}_depth_{d}" for name in ("loss", "nll", "accuracy") for d in range(D)}
    assert set(terms) == {"loss", "loss_img", "loss_txt"} | names
    assert all(value.ndim == 0 and not value.requires_grad for value in terms.values())
    assert (
        stage2_loss(output._replace(cond_logits=None), codes, None, None, Stage2LossConfig(type="cross_entropy"))[
            1
        ].keys()
        == {"loss", "loss_img"} | names
    )


def test_the_image_weight_applies_without_text_too(problem):
    logits, codes, _, _ = problem
    grads = {}
    for weight in (1.0, 0.25):
        config = Stage2LossConfig(type="cross_entropy", img_weight=weight)
        loss, terms = stage2_loss(RQTransformerOutput(logits), codes, None, None, config)
        assert torch.equal(loss.detach(), weight * terms["loss_img"])
        assert torch.equal(terms["loss"], loss.detach())
        grads[weight] = torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(grads[0.25], 0.25 * grads[1.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "soft"}, r"loss.type='soft' must be one of soft_target_cross_entropy, cross_entropy"),
        ({"temp": 0.0}, r"loss.temp=0.0 must be above 0"),
        ({"chunk": 0}, r"loss.chunk=0 must be at least 1"),
        ({}, r"needs targets"),
    ],
)
def test_wrong_settings_are_named(problem, changes, message):
    logits, codes, _, _ = problem
    with pytest.raises(ValueError, match=message):
        stage2_loss(RQTransformerOutput(logits), codes, None, None, Stage2LossConfig(**changes))
