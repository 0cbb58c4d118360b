"""Affine re-parametrisation: moments, moving averages, the two maps, groups, casts."""

import pytest
import torch

from rqstack.quantizers.codebooks.affine import (
    AffineRule,
    LearnedAffine,
    RunningAffine,
    VectorMoments,
    blend,
    carry,
    scale_groups,
    vector_moments,
)


def test_moments_are_those_of_the_valid_finite_rows():
    x, valid = 3 + 2 * torch.randn(2, 50, 4), torch.rand(2, 50) < 0.6
    dirty = torch.where(valid[..., None], x, 1e6)
    valid[0, 3], valid[1, 7] = True, True
    dirty[0, 3, 1], dirty[1, 7, 0] = float("nan"), float("inf")
    found, count = vector_moments(dirty, valid)
    valid[0, 3], valid[1, 7] = False, False
    for book in range(2):
        rows = x[book][valid[book]]
        assert count[book] == len(rows)
        torch.testing.assert_close(found.mean[book, 0], rows.mean(0))
        torch.testing.assert_close(found.variance[book, 0], rows.var(0, unbiased=False))


def test_moments_far_from_zero_do_not_cancel():
    x = 1e4 + 0.1 * torch.randn(1000, 1)
    expected = x.double().var(0, unbiased=False)[None].float()
    torch.testing.assert_close(vector_moments(x)[0].variance, expected, rtol=0.05, atol=0)


def test_blend_takes_the_first_values_as_they_are():
    old, new = (VectorMoments(torch.full((1, 2), value), torch.full((1, 2), 2 * value)) for value in (1.0, 3.0))
    assert blend(old, new, 0.75, False).mean.tolist() == [[3.0, 3.0]]
    averaged = blend(old, new, 0.75, torch.tensor(True))
    assert averaged.mean.tolist() == [[1.5, 1.5]]
    assert averaged.variance.tolist() == [[3.0, 3.0]]
    nothing = VectorMoments(torch.full((1, 2), float("nan")), torch.full((1, 2), float("nan")))
    assert blend(nothing, new, 0.75, False).mean.tolist() == [[3.0, 3.0]], "an unset average leaves no trace"


def test_carry_gives_the_target_moments():
    x, y = 5 + 0.5 * torch.randn(200, 3), -2 + 3 * torch.randn(300, 3)
    source, target = vector_moments(x)[0], vector_moments(y)[0]
    carried = carry(x, source, target)
    for mine, theirs in zip(vector_moments(carried)[0], target, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(carry(carried, target, source), x, rtol=1e-4, atol=1e-4)


def test_running_affine_follows_vectors_and_code_vectors():
    affine, x, weight = RunningAffine(3, batch_decay=0.5, codebook_decay=0.9), torch.randn(40, 3), torch.randn(8, 3)
    assert torch.equal(affine(weight), weight), "the identity before anything is observed"
    affine.observe(4 + x, weight)
    torch.testing.assert_close(affine(weight).mean(0), (4 + x).mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(affine(weight).std(0, unbiased=False), x.std(0, unbiased=False), rtol=1e-3, atol=0)
    torch.testing.assert_close(affine.inverse(affine(weight)), weight, rtol=1e-4, atol=1e-4)
    affine.observe(x, 1 + weight)
    torch.testing.assert_close(affine.batch_mean[0], 2 + x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(affine.codebook_mean[0], 0.1 + weight.mean(0), rtol=1e-4, atol=1e-4)


def test_nothing_valid_changes_nothing_and_reset_is_the_identity():
    affine, weight = RunningAffine(3), torch.randn(8, 3)
    affine.observe(torch.full((4, 3), float("nan")), weight)
    assert not affine.started
    assert torch.equal(affine(weight), weight)
    affine.observe(torch.randn(9, 3), weight)
    before = {name: value.clone() for name, value in affine.state_dict().items()}
    affine.observe(torch.randn(9, 3), weight, torch.zeros(9, dtype=torch.bool))
    assert all(torch.equal(value, before[name]) for name, value in affine.state_dict().items())
    affine.reset()
    assert torch.equal(affine(weight), weight)


def test_running_state_stays_fp32():
    affine = RunningAffine(3)
    affine.observe(torch.randn(9, 3), torch.randn(4, 3))
    before = {name: value.clone() for name, value in affine.state_dict().items()}
    affine.half().double()
    assert all(torch.equal(value, before[name]) for name, value in affine.state_dict().items())
    assert not list(affine.parameters())


def test_learned_affine_scales_consecutive_groups():
    affine, weight = LearnedAffine(6, 2, groups=3, lr_scale=0.5), torch.randn(6, 2)
    assert torch.equal(affine(weight), weight)
    affine.scale.data.copy_(torch.tensor([[0.0, 0.0], [2.0, 4.0], [0.0, 0.0]]))
    affine.bias.data[2] = 6.0
    expected = torch.cat([weight[:2], weight[2:4] * torch.tensor([2.0, 3.0]), weight[4:] + 3.0])
    torch.testing.assert_close(affine(weight), expected)
    torch.testing.assert_close(affine.inverse(expected), weight)
    affine.reset()
    assert torch.equal(affine(weight), weight)


def test_learned_affine_gradients_reach_scale_bias_and_weight():
    weight = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    scale, bias = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *tensors: scale_groups(*tensors, lr_scale=0.3), (weight, scale, bias))
    affine = LearnedAffine(6, 2, lr_scale=0.5).half()
    affine(weight.detach().half()).sum().backward()
    assert affine.bias.grad.tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("kind", ["learned", "running"])
def test_rules_build_their_module(kind):
    affine = AffineRule(kind, groups=2)
    assert isinstance(affine.build(8, 4), LearnedAffine if kind == "learned" else RunningAffine)


def test_wrong_rules_are_refused():
    with pytest.raises(ValueError, match="'fixed' is not one of learned, running"):
        AffineRule("fixed")
    with pytest.raises(ValueError, match="8 codes do not split into 3 affine groups"):
        AffineRule(groups=3).build(8, 4)
