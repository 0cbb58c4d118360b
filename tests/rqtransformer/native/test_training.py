"""What is compiled of a training step gives what its plain forms give, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqtransformer import close_attention, dropout, targets
from rqtransformer.native import build as building
from rqtransformer.native import calls, training

AVX2 = tuple("-mavx2" if flag == "-march=native" else flag for flag in building.FLAGS) + ("-mfma",)


@pytest.fixture(params=["native", "avx2"], autouse=True)
def compiled(request, monkeypatch, tmp_path_factory) -> None:
    """Each way to compile; there is nothing to compare without a compiler."""
    if calls.library() is None:
        pytest.skip("nothing is compiled here")
    if request.param == "avx2":
        folder = tmp_path_factory.getbasetemp() / "libraries"
        library = calls.load(building.build(building.find_compiler(), folder, AVX2))
        monkeypatch.setattr(calls, "library", lambda: library)


def both_ways(monkeypatch, run) -> tuple[list[Tensor], list[Tensor]]:
    """What `run` gives compiled and plain, from one random state."""
    ends = []
    for way in (training.trains, lambda *_: False):
        with monkeypatch.context() as patch:
            patch.setattr(training, "trains", way)
            torch.manual_seed(1)
            ends.append(run())
    return ends[0], ends[1]


def check_alike(found: list[Tensor], expected: list[Tensor], tolerance: float = 5e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=tolerance, rtol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    "shape", [(5, 4, 8, 32), (3, 1, 2, 7), (2, 3, 1, 64), (0, 4, 2, 8)], ids=["usual", "one code", "odd", "none"]
)
def test_attention_among_the_codes_of_a_stack(shape, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for _ in range(3)]
    slope = torch.randn(shape)

    def run() -> list[Tensor]:
        out = close_attention.attend_close(*inputs)
        return [out, *torch.autograd.grad(out, inputs, slope)]

    check_alike(*both_ways(monkeypatch, run))


def test_attention_takes_what_does_not_lie_in_a_row(monkeypatch):
    torch.manual_seed(0)
    joint = torch.randn(6, 4, 3, 2, 8)
    inputs = [part.detach().requires_grad_() for part in joint.unbind(2)]
    slope = torch.randn(4, 6, 2, 8).transpose(0, 1)

    def run() -> list[Tensor]:
        out = close_attention.attend_close(*inputs)
        return [out, *torch.autograd.grad(out, inputs, slope)]

    check_alike(*both_ways(monkeypatch, run))


def test_attention_in_bf16_is_that_of_its_numbers_in_fp32():
    torch.manual_seed(0)
    wide = [torch.randn(5, 4, 8, 32).bfloat16().float().requires_grad_() for _ in range(3)]
    narrow = [part.detach().bfloat16().requires_grad_() for part in wide]
    slope = torch.randn(5, 4, 8, 32).bfloat16()
    expected, out = close_attention.attend_close(*wide), close_attention.attend_close(*narrow)
    assert torch.equal(out, expected.bfloat16())
    slopes = torch.autograd.grad(expected, wide, slope.float())
    for found, right in zip(torch.autograd.grad(out, narrow, slope), slopes):
        assert torch.equal(found, right.bfloat16())


@pytest.mark.parametrize("with_residual", [False, True])
def test_dropout_has_the_same_draws(with_residual, monkeypatch):
    torch.manual_seed(0)
    inputs = [torch.randn(37, 151, requires_grad=True) for _ in range(1 + with_residual)]
    slope = torch.randn(37, 151)

    def run() -> list[Tensor]:
        out = dropout.drop_and_add(inputs[0], 0.3, inputs[1] if with_residual else None)
        return [out, *torch.autograd.grad(out, inputs, slope), torch.rand(3)]

    check_alike(*both_ways(monkeypatch, run))


def test_a_branch_in_bf16_beside_fp32_has_the_same_draws(monkeypatch):
    torch.manual_seed(0)
    branch, residual = torch.randn(37, 151).bfloat16().requires_grad_(), torch.randn(37, 151, requires_grad=True)
    slope = torch.randn(37, 151)

    def run() -> list[Tensor]:
        out = dropout.drop_and_add(branch, 0.3, residual)
        assert out.dtype == torch.float32
        return [out, *torch.autograd.grad(out, (branch, residual), slope)]

    check_alike(*both_ways(monkeypatch, run))


def test_dropout_has_a_gradient_of_its_gradient():
    x = torch.randn(8, 9, dtype=torch.float32, requires_grad=True)
    torch.manual_seed(3)
    out = dropout.drop_and_add(x.square(), 0.5, x)
    (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert torch.allclose(curvature, 2 * (out - x).detach() / x.detach().square(), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets_of", ["codes", "soft", "soft, fewer than logits"])
def test_cross_entropy(targets_of, dtype, monkeypatch):
    torch.manual_seed(0)
    logits = (4 * torch.randn(2, 3, 2, 4, 101, dtype=dtype)).requires_grad_()
    with torch.no_grad():
        logits[0, 0, 0, 0, 7] = 200.0
        logits[0, 1, 0, 1, 3] = float("-inf")
    codes = torch.randint(90, (2, 3, 2, 4))
    given = None
    if targets_of != "codes":
        size = 101 if targets_of == "soft" else 90
        given = targets.SoftTargets(3 * torch.randn(2, 3, 2, 4, 8), [torch.randn(size, 8)] * 4, 0.5)
        codes[0, 1, 0, 1] = 3
    if given is not None:
        with torch.no_grad():
            logits[0, 1, 0, 1, 3] = -50.0

    def run() -> list[Tensor]:
        sums = targets.cross_entropy_per_depth(logits, codes, given, chunk=5)
        return [*sums, torch.autograd.grad(sums[0].sum(), logits)[0]]

    found, expected = both_ways(monkeypatch, run)
    check_alike(found[:-1], expected[:-1], tolerance=1e-5)
    check_alike(found[-1:], expected[-1:], tolerance=1e-5 if dtype == torch.float32 else 8e-3)  # of the type


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(wrong, monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 2, 2, 40).requires_grad_()
    with torch.no_grad():
        logits[0, 0, 0, 1, 17] = wrong
    codes = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    found, expected = both_ways(monkeypatch, lambda: [targets.cross_entropy_per_depth(logits, codes)[0]])
    assert torch.equal(found[0].isfinite(), expected[0].isfinite())
    assert not found[0][1].isfinite()


def test_the_number_of_threads_changes_nothing():
    torch.manual_seed(0)
    inputs = [torch.randn(9, 4, 2, 16) for _ in range(3)]
    logits, codes = torch.randn(33, 50), torch.randint(50, (33,))
    ends = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            slope = torch.empty_like(logits)
            sums = training.cross_entropy_rows(logits, codes, torch.ones(33, 50), 0.0, slope)
            ends.append([*training.attend_close(*inputs), sums, slope])
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *ends))
