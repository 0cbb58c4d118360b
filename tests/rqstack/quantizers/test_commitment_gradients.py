"""The commitment term level by level in closed form, for every residual quantizer; estimators change gradients only.

Level d pulls z to the sum of the first d code vectors: the gradient of |z - sum|^2 / (N E) is 2 (z - sum) / (N E), and
code vectors are constants in it.
"""

import pytest
import torch

from rqstack.quantizers import (
    NeuralResidualOptions,
    ResidualLookupFreeOptions,
    ResidualQuantizer,
    ResidualSimOptions,
    ResidualStack,
    ResidualVectorOptions,
    ResidualVectorQuantizer,
    VectorLosses,
    VectorOptions,
    VectorQuantizer,
    residual_lfq,
    residual_simvq,
)
from rqstack.quantizers.arithmetic.gradient import directional, rotation_trick, straight_through
from rqstack.quantizers.methods.neural_codebook import NeuralResidualQuantizer

DIM, ROWS, DEPTH = 5, 9, 4
ONLY_COMMITMENT = VectorLosses(commitment=1.0, codebook=0.0)


def of_vq(depth):
    return ResidualStack(DIM, [VectorQuantizer(DIM, 12, VectorOptions(losses=ONLY_COMMITMENT)) for _ in range(depth)])


def rvq(depth, **level_options):
    return ResidualVectorQuantizer(DIM, 12, depth, ResidualVectorOptions(losses=ONLY_COMMITMENT, **level_options))


def neural(depth):
    quantizer = NeuralResidualQuantizer(DIM, 12, depth, NeuralResidualOptions(depth=1, losses=ONLY_COMMITMENT))
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return quantizer


COMMITMENT = {"entropy_weight": 0.0, "commitment_weight": 1.0}
FAMILIES = {
    "rq": lambda depth: ResidualQuantizer(DIM, (12,) * depth),
    "rq, shared": lambda depth: ResidualQuantizer(DIM, (12,) * depth, shared=True),
    "residual of vq": of_vq,
    "residual vq": rvq,
    "residual vq, learned": lambda depth: rvq(depth, codebook="learned"),
    "residual simvq": lambda depth: residual_simvq(
        DIM, 12, depth, ResidualSimOptions(codebook_weight=0.0, commitment_weight=1.0)
    ),
    "residual lfq": lambda depth: residual_lfq(DIM, 2**DIM, depth, ResidualLookupFreeOptions(**COMMITMENT)),
    "neural residual vq": neural,
}


def level_scale(name, depth):
    """Levels of LFQ measure their error in units of their own scale."""
    return 4.0**depth if name == "residual lfq" else 1.0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_commitment_at_every_level(name, training):
    """A quantizer of d levels has the mean over its levels as loss, so level d is the difference of two such sums."""
    z = torch.randn(ROWS, DIM, requires_grad=True)
    weighted_before, gradient_before = torch.zeros(()), torch.zeros_like(z)
    for depth in range(1, DEPTH + 1):
        torch.manual_seed(0)
        deep = FAMILIES[name](DEPTH).train(training)
        quantizer = FAMILIES[name](depth).train(training)
        take_first_levels(quantizer, deep)
        out = quantizer(z)
        assert set(out.terms) <= {"commitment", "codebook"}
        (gradient,) = torch.autograd.grad(depth * out.terms["commitment"], z)
        error = z.detach() - quantizer.embed_with_depth(out.codes).sum(-2).detach()
        scale = level_scale(name, depth - 1)
        expected = 2 * error / (ROWS * DIM)
        if name == "residual lfq":  # its level sees residual / scale: the chain rule divides by the scale once more
            expected = expected * scale
        torch.testing.assert_close(gradient - gradient_before, expected, atol=1e-5, rtol=1e-4)
        level = depth * out.terms["commitment"].detach() - weighted_before
        torch.testing.assert_close(level, error.square().mean() * scale, atol=1e-5, rtol=1e-4)
        weighted_before, gradient_before = depth * out.terms["commitment"].detach(), gradient


def take_first_levels(quantizer, deep):
    """Give a quantizer the code vectors of the first levels of a deeper one."""
    theirs = deep.state_dict()
    quantizer.load_state_dict({key: theirs[key] for key in quantizer.state_dict()})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("codebook", ["ema", "learned"])
def test_estimators_of_a_residual_quantizer_change_gradients_only(codebook, shared, training):
    z, upstream = torch.randn(ROWS, DIM, requires_grad=True), torch.randn(ROWS, DIM)
    functions = {"straight_through": straight_through, "rotation": rotation_trick}
    outs = {}
    for estimator in ("straight_through", "rotation", "directional", "gumbel"):
        torch.manual_seed(0)
        options = {"codebook": codebook, "sample_temp": 0.5 if training else 1e-3}
        quantizer = ResidualVectorQuantizer(
            DIM, 12, 3, ResidualVectorOptions(estimator=estimator, **options), shared=shared
        )
        torch.manual_seed(1)
        outs[estimator] = quantizer.train(training)(z)
    reference = outs["straight_through"]
    for estimator, out in outs.items():
        assert torch.equal(out.quantized, reference.quantized), estimator
        assert torch.equal(out.codes, reference.codes), estimator
        assert torch.equal(out.loss, reference.loss), estimator
        (gradient,) = torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)
        assert gradient.isfinite().all()
        if estimator in functions:
            sums = reference.quantized.detach()
            (expected,) = torch.autograd.grad(functions[estimator](z, sums), z, upstream)
            torch.testing.assert_close(gradient, expected)
    (turned,) = torch.autograd.grad(outs["rotation"].quantized, z, upstream, retain_graph=True)
    assert not torch.allclose(turned, upstream, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "neural residual vq"])
def test_the_output_has_the_gradient_of_the_identity(name):
    quantizer = FAMILIES[name](3)
    z, upstream = torch.randn(ROWS, DIM, requires_grad=True), torch.randn(ROWS, DIM)
    (gradient,) = torch.autograd.grad(quantizer(z).quantized, z, upstream)
    assert torch.equal(gradient, upstream)


def test_directional_of_a_sum_moves_learned_code_vectors():
    """With a learned codebook the step along the constant direction is differentiated in the code vectors too."""
    losses = VectorLosses(commitment=0.0, codebook=0.0)
    options = {"codebook": "learned", "losses": losses, "kmeans_init": False}
    quantizer = ResidualVectorQuantizer(DIM, 12, 2, ResidualVectorOptions(estimator="directional", **options))
    z = torch.randn(ROWS, DIM)
    out = quantizer(z)
    out.quantized.square().sum().backward()
    rows = quantizer.levels[0].codebooks[0].rows
    assert rows.grad[out.codes[:, 0]].abs().sum() > 0
    distance = directional(z, quantizer.decode(out.codes).detach().requires_grad_(), noise=0.0)
    assert torch.equal(distance.detach(), out.quantized.detach())
