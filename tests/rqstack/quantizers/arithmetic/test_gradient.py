"""Gradient estimators and loss terms in closed form; estimators change gradients only."""

import math

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers import VectorLosses, VectorOptions, VectorQuantizer
from rqstack.quantizers.arithmetic.code_losses import (
    code_cross_entropy,
    expected_vectors,
    negative_usage_entropy,
    orthogonality,
)
from rqstack.quantizers.arithmetic.gradient import directional, rotation_trick, straight_through, synchronised


def vectors(count=6, dim=5):
    return torch.randn(count, dim, requires_grad=True), torch.randn(count, dim), torch.randn(count, dim)


def test_rotation_in_the_plane():
    """From angle a to angle b and length 2 to length 3: the gradient turns by a - b and grows by 3 / 2."""
    a, b = 0.3, 1.9
    z = (2 * torch.tensor([[math.cos(a), math.sin(a)]])).requires_grad_()
    q = 3 * torch.tensor([[math.cos(b), math.sin(b)]])
    rotation_trick(z, q).backward(torch.tensor([[1.0, 0.0]]))
    turn = a - b
    torch.testing.assert_close(z.grad, 1.5 * torch.tensor([[math.cos(turn), math.sin(turn)]]))


def test_rotation_is_the_scaled_rotation_that_carries_z_onto_its_code():
    z, q, upstream = vectors()
    rotation_trick(z, q).backward(upstream)
    for row in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(lambda v, q=q[row]: rotation_trick(v, q), z[row].detach())
        torch.testing.assert_close(jacobian @ z[row], q[row], msg="c R z = q")
        scale = (q[row].norm() / z[row].norm()).square()
        torch.testing.assert_close(jacobian @ jacobian.T, scale * torch.eye(5), atol=1e-5, rtol=1e-5)
        assert torch.linalg.det(jacobian) > 0, "a rotation, no reflection"
        torch.testing.assert_close(z.grad[row], jacobian.T @ upstream[row])


def test_rotation_of_vectors_without_direction_and_of_opposite_ones_is_finite():
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    rotation_trick(z, torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])).sum().backward()
    assert z.grad.isfinite().all()
    assert z.grad[0].tolist() == [1, 1], "straight through where there is nothing to rotate"


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_directional_is_the_gradient_of_a_step_along_a_constant_direction(noise):
    z, q, upstream = vectors()
    q.requires_grad_()
    torch.manual_seed(7)
    directional(z, q, noise).backward(upstream)
    torch.manual_seed(7)
    direction = F.normalize(q.detach() - z.detach() + noise * torch.randn(6, 5) * (noise > 0), dim=1)
    step = z + (q - z).norm(dim=1, keepdim=True) * direction
    expected = torch.autograd.grad(step, (z, q), upstream)
    torch.testing.assert_close(z.grad, expected[0])
    torch.testing.assert_close(q.grad, expected[1])


def test_gumbel_is_the_gradient_of_the_mean_of_the_draw():
    quantizer = VectorQuantizer(
        5,
        7,
        VectorOptions(
            codebook="learned", estimator="gumbel", sample_temp=0.7, losses=VectorLosses(commitment=0, codebook=0)
        ),
    )
    quantizer.codebooks[0].assign(torch.randn(7, 5), torch.ones(7))
    z, _, upstream = vectors()
    quantizer(z).quantized.backward(upstream)
    rows = quantizer.codebooks[0].rows
    probs = (-torch.cdist(z, rows).square() / 0.7).softmax(1)
    expected = torch.autograd.grad(probs @ rows, (z, rows), upstream)
    torch.testing.assert_close(z.grad, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows.grad, expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_estimators_change_gradients_only(distance, codebook):
    z, _, upstream = vectors(40)
    results = {}
    for estimator in ("straight_through", "rotation", "directional", "gumbel"):
        torch.manual_seed(3)
        quantizer = VectorQuantizer(
            5, 7, VectorOptions(distance=distance, codebook=codebook, estimator=estimator, sample_temp=0.5)
        )
        torch.manual_seed(4)
        out = quantizer(z)
        (gradient,) = torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)
        results[estimator] = out, gradient
    reference, identity = results.pop("straight_through")
    if distance == "euclidean":
        assert torch.equal(identity, upstream)
    for name, (out, gradient) in results.items():
        assert torch.equal(out.quantized, reference.quantized), name
        assert torch.equal(out.codes, reference.codes), name
        assert torch.equal(out.loss, reference.loss), name
        assert not torch.allclose(gradient, identity), name


def test_straight_through_has_the_value_bit_for_bit():
    z, q, upstream = vectors()
    out = straight_through(z, q)
    assert torch.equal(out, q)
    out.backward(upstream)
    assert torch.equal(z.grad, upstream)


@pytest.mark.parametrize("estimator", [straight_through, rotation_trick, directional])
def test_synchronised_adds_a_share_of_the_gradient_to_the_code_vectors(estimator):
    z, q, upstream = vectors()
    q.requires_grad_()
    torch.manual_seed(7)
    plain = estimator(z, q)
    gradients = torch.autograd.grad(plain, (z, q), upstream, allow_unused=True)
    torch.manual_seed(7)
    out = synchronised(estimator(z, q), q, 0.3)
    assert torch.equal(out, plain)
    out.backward(upstream)
    assert torch.equal(z.grad, gradients[0])
    own = torch.zeros_like(q) if gradients[1] is None else gradients[1]
    torch.testing.assert_close(q.grad, own + 0.3 * upstream)


@pytest.mark.parametrize("masked", [False, True])
def test_commitment_and_codebook_losses_in_closed_form(masked):
    quantizer = VectorQuantizer(
        4, 9, VectorOptions(codebook="learned", losses=VectorLosses(commitment=0.25, codebook=2.0))
    )
    quantizer.codebooks[0].assign(torch.randn(9, 4), torch.ones(9))
    z = torch.randn(10, 4, requires_grad=True)
    mask = torch.arange(10) < 6 if masked else torch.ones(10, dtype=torch.bool)
    out = quantizer(z, mask if masked else None)
    out.loss.backward()
    error = (z - out.quantized).detach() * mask[:, None]
    torch.testing.assert_close(out.terms["commitment"], 0.25 * error.square().sum() / (4 * mask.sum()))
    torch.testing.assert_close(out.terms["codebook"], 8 * out.terms["commitment"])
    torch.testing.assert_close(z.grad, 0.25 * 2 * error / (4 * mask.sum()))
    pulled = torch.zeros(9, 4).index_add_(0, out.codes[:, 0], -2.0 * 2 * error / (4 * mask.sum()))
    torch.testing.assert_close(quantizer.codebooks[0].rows.grad, pulled)


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
def test_soft_terms_equal_their_definitions(chunk_bytes, monkeypatch):
    """Value and gradients against the whole N x K matrix, in one chunk and in many."""
    monkeypatch.setattr("rqstack.quantizers.arithmetic.nearest.CPU_CHUNK_BYTES", chunk_bytes)
    x, weight = torch.randn(33, 5, requires_grad=True), torch.randn(12, 5, requires_grad=True)
    codes, mask = torch.randint(0, 12, (33,)), torch.rand(33) < 0.7
    logits = -torch.cdist(x, weight).square() / 1.3
    mean = logits[mask].softmax(1).mean(0)
    upstream = torch.randn(33, 5)
    pairs = [
        (code_cross_entropy(x, weight, codes, 1.3, mask), F.cross_entropy(logits[mask], codes[mask])),
        (negative_usage_entropy(x, weight, 1.3, mask), (mean * mean.log()).sum()),
        ((expected_vectors(x, weight, 1.3) * upstream).sum(), (logits.softmax(1) @ weight * upstream).sum()),
    ]
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        gradients = torch.autograd.grad(ours, (x, weight), retain_graph=True)
        for one, other in zip(gradients, torch.autograd.grad(expected, (x, weight), retain_graph=True)):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("num_codes", [3, 50])
def test_orthogonality_is_the_mean_squared_cosine_of_pairs(num_codes):
    weight = torch.randn(num_codes, 6)
    cosine = F.cosine_similarity(weight[:, None], weight[None], dim=-1)
    expected = (cosine.square().sum() - num_codes) / num_codes**2
    torch.testing.assert_close(orthogonality(weight), expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(orthogonality(torch.eye(6)), torch.zeros(()), atol=1e-6, rtol=0)


def test_orthogonal_term_of_active_and_capped_codes():
    def rows_with_gradient(**settings):
        losses = VectorLosses(commitment=0, codebook=0, orthogonal=1.0, **settings)
        quantizer = VectorQuantizer(5, 40, VectorOptions(codebook="learned", losses=losses))
        out = quantizer(torch.randn(6, 5))
        out.loss.backward()
        moved = quantizer.codebooks[0].rows.grad.abs().sum(1).nonzero()[:, 0]
        return set(moved.tolist()), set(out.codes[:, 0].tolist())

    assert len(rows_with_gradient()[0]) == 40
    assert len(rows_with_gradient(orthogonal_max=7)[0]) == 7
    touched, chosen = rows_with_gradient(orthogonal_active=True)
    assert touched == chosen
    touched, chosen = rows_with_gradient(orthogonal_active=True, orthogonal_max=2)
    assert len(touched) == 2
    assert touched < chosen
