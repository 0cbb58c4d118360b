"""Residual and grouped compositions: level by level, dropout, sharing, gradients."""

import copy

import pytest
import torch
from torch import nn

from rqstack.quantizers import (
    FiniteScalarOptions,
    ResidualFiniteScalarOptions,
    ResidualLookupFreeOptions,
    ResidualQuantizer,
    ResidualSimOptions,
    ResidualStack,
    residual_fsq,
    residual_lfq,
    residual_simvq,
)
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.wrappers.grouped import Grouped


def test_every_level_quantizes_what_is_left():
    quantizer = residual_simvq(4, 30, 3).eval()
    z = torch.randn(11, 4)
    out, left = quantizer(z), z
    for depth in range(3):
        book = quantizer.codebook(depth)
        assert torch.equal(out.codes[:, depth], torch.cdist(left, book).argmin(1))
        left = left - book[out.codes[:, depth]]
    torch.testing.assert_close(out.quantized, z - left)


@pytest.mark.parametrize("symmetric", [False, True])
def test_residual_fsq_gets_finer_by_a_factor_per_level(symmetric):
    """Odd and symmetric grids lose at most half a step of the last level."""
    quantizer = residual_fsq(1, 4, ResidualFiniteScalarOptions(levels=[5], preserve_symmetry=symmetric)).eval()
    z = torch.randn(1000, 1) * 0.5
    error = (quantizer(z).quantized - quantizer.bound(z)).abs().max()
    assert error <= 0.25 * 4.0**-3 * 1.05 + 1e-3
    assert error > 0
    torch.testing.assert_close(quantizer.scale[:, 0], 4.0 ** -torch.arange(4.0))


def test_residual_lfq_halves_its_scale():
    quantizer = residual_lfq(2, 4, 3).eval()
    z = torch.tensor([[0.9, -1.6]])
    assert torch.equal(quantizer(z).quantized, torch.tensor([[1 - 0.5 + 0.25, -1 - 0.5 - 0.25]]))


def test_output_gradient_is_the_identity_and_the_loss_is_the_mean_over_levels():
    quantizer = residual_simvq(4, 30, 2, ResidualSimOptions(commitment_weight=0.5, codebook_weight=0.0))
    z = torch.randn(11, 4, requires_grad=True)
    out = quantizer(z)
    upstream = torch.randn_like(z)
    assert torch.equal(torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)[0], upstream)
    parts = quantizer.embed_with_depth(out.codes)
    errors = [z - parts[:, 0], z - parts[:, 0] - parts[:, 1]]
    torch.testing.assert_close(out.loss, 0.5 * sum(e.square().mean() for e in errors) / 2)
    (gradient,) = torch.autograd.grad(out.loss, z)
    torch.testing.assert_close(gradient, (0.5 * sum(errors) / 44).detach())


def test_shared_levels_are_one_module():
    shared, separate = residual_simvq(4, 8, 3, ResidualSimOptions(shared=True)), residual_simvq(4, 8, 3)
    assert len(list(shared.parameters())) == 1
    assert len(list(separate.parameters())) == 3
    assert set(shared.state_dict()) == {"levels.0.map.weight", "levels.0.frozen"}, "nothing is stored twice"
    assert torch.equal(shared.codebook(0), shared.codebook(2))


@pytest.mark.parametrize(
    ("cutoff", "multiple", "allowed"), [(0, 1, {1, 2, 3, 4, 5}), (2, 1, {3, 4, 5}), (0, 2, {2, 4, 5})]
)
def test_quantize_dropout(cutoff, multiple, allowed):
    quantizer = residual_fsq(
        2,
        5,
        ResidualFiniteScalarOptions(
            levels=[5, 5], quantize_dropout=True, dropout_cutoff=cutoff, dropout_multiple=multiple
        ),
    )
    z, seen = torch.randn(6, 2), set()
    for seed in range(60):
        torch.manual_seed(seed)
        out = quantizer(z)
        kept = int((out.codes[0] >= 0).sum())
        seen.add(kept)
        assert out.codes.shape == (6, 5)
        assert (out.codes[:, kept:] == -1).all()
        assert torch.equal(quantizer.decode(out.codes), out.quantized)
        assert torch.equal(quantizer.decode(out.codes[:, :kept]), out.quantized)
    assert seen == allowed
    assert (quantizer.eval()(z).codes >= 0).all()


def test_groups_are_independent():
    groups = [
        FiniteScalarQuantizer(2, FiniteScalarOptions([5, 4])),
        residual_fsq(2, 2, ResidualFiniteScalarOptions(levels=[3, 3])),
    ]
    quantizer = Grouped(4, groups).eval()
    assert quantizer.num_codes == (20, 9, 9)
    z = torch.randn(7, 4)
    out = quantizer(z)
    for part, group, codes in ((z[:, :2], groups[0], out.codes[:, :1]), (z[:, 2:], groups[1], out.codes[:, 1:])):
        alone = group(part)
        assert torch.equal(alone.codes, codes)
    first = quantizer.decode(out.codes[:, :1])
    assert torch.equal(first[:, :2], out.quantized[:, :2])
    assert (first[:, 2:] == 0).all()


def test_levels_with_a_learned_codebook_are_updated_once():
    """The compositions take any quantizer of the library, also one with state."""
    level = ResidualQuantizer(4, (8,))
    quantizer = ResidualStack(4, [level, level])
    z = torch.randn(30, 4)
    out = quantizer(z)
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    book = level.codebooks[0]
    assert book.num_updates == 0
    quantizer.update_codebook()
    assert book.num_updates == 1
    quantizer(z)
    quantizer.discard_codebook_update()
    quantizer.update_codebook()
    assert book.num_updates == 1
    assert torch.equal(quantizer.eval().targets(z)[1], quantizer(z).codes)


def test_codes_are_drawn_from_a_stack_that_was_made_in_inference_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        quantizer, z = residual_lfq(6, 16, 3).eval(), torch.randn(50, 6)
        drawn = quantizer.targets(z, 0.1, True, torch.Generator().manual_seed(0))[1]
    assert not torch.equal(drawn, quantizer.targets(z)[1])
    again = copy.deepcopy(quantizer).targets(z, 0.1, True, torch.Generator().manual_seed(0))[1]
    assert torch.equal(drawn, again)


def test_scales_stay_fp32():
    quantizer = residual_fsq(3, 3, ResidualFiniteScalarOptions(levels=[8, 6, 4])).eval()
    z = torch.randn(20, 3)
    expected = quantizer(z).quantized
    assert torch.equal(quantizer.bfloat16()(z).quantized, expected)
    assert isinstance(quantizer.project_in, nn.Identity)


def test_wrong_options():
    with pytest.raises(ValueError, match="dim 5 does not split evenly over 2 groups"):
        Grouped(5, [FiniteScalarQuantizer(2, FiniteScalarOptions([3, 3]))] * 2)
    with pytest.raises(ValueError, match="2 levels with 1 scales"):
        ResidualStack(2, [FiniteScalarQuantizer(2, FiniteScalarOptions([3, 3]))] * 2, scales=[1.0])
    with pytest.raises(ValueError, match="scales must be positive"):
        ResidualStack(2, [FiniteScalarQuantizer(2, FiniteScalarOptions([3, 3]))], scales=[0.0])
    with pytest.raises(ValueError, match=r"dropout_cutoff must be in 0 \.\. 2"):
        residual_lfq(4, 16, 3, ResidualLookupFreeOptions(quantize_dropout=True, dropout_cutoff=3))
