"""HierarchicalVQ beside the installed vector-quantize-pytorch."""

import inspect

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch.hierarchical_vq import HierarchicalVQ

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer

PLAIN = {"kmeans_init": False, "threshold_ema_dead_code": 0}
SETTINGS = {
    "sequence": ({"scales": (1, 2, 5, 10)}, (3, 8, 10)),
    "channel last": ({"scales": (1, 3, 6), "channel_first": False}, (3, 7, 8)),
    "image": ({"scales": (1, (2, 3), 4), "accept_image_fmap": True}, (2, 8, 4, 5)),
    "video": ({"scales": (1, 2), "accept_3d_fmap": True}, (2, 8, 2, 4, 3)),
    "separate": ({"scales": (1, 2, 4), "shared_codebook": False, "codebook_size": (16, 24, 32)}, (3, 8, 9)),
    "rotation": ({"scales": (1, 2, 4), "rotation_trick": True}, (3, 8, 9)),
    "weights": ({"scales": (2, 4), "commitment_weight": 0.3, "decay": 0.7}, (3, 8, 9)),
    "no convolution": ({"scales": (1, 4), "quant_resi": 0.0}, (3, 8, 9)),
    "convolution each": ({"scales": (1, 2, 4), "share_quant_resi": 0, "quant_resi": -0.3}, (3, 8, 9)),
    "two convolutions": ({"scales": (1, 2, 4, 5, 6), "share_quant_resi": 2}, (3, 8, 9)),
    "orthogonal": ({"scales": (1, 4), "orthogonal_reg_weight": 2.0, "shared_codebook": False}, (3, 8, 9)),
    # the original differentiates every scale's term with the codebook as the last scale leaves it; decay 1: it stays
    "orthogonal, shared": ({"scales": (1, 4), "orthogonal_reg_weight": 2.0, "decay": 1.0}, (3, 8, 9)),
}


def _pair(options):
    options = {"dim": 8, "codebook_size": 32, **PLAIN, **options}
    ours, theirs = HierarchicalVQ(**options), peer.HierarchicalVQ(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def _mask(shape, channel_first):
    grid = shape[2:] if channel_first else shape[1:-1]
    mask = torch.rand(shape[0], *grid) < 0.6
    mask.view(shape[0], -1)[:, 0] = True
    return mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_training_and_eval(name, masked):
    options, shape = SETTINGS[name]
    ours, theirs = _pair(options)
    mask = _mask(shape, options.get("channel_first", True)) if masked else None
    for _ in range(3):
        x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
        found, expected = ours(x, mask=mask), theirs(x, mask=mask)
        assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-5)
        mine, other = ([x, *quantizer.parameters()] for quantizer in (ours, theirs))
        total = [(out[0] * upstream).sum() + out[2] for out in (found, expected)]
        gradients = torch.autograd.grad(total[0], mine, allow_unused=True, materialize_grads=True)
        wanted = torch.autograd.grad(total[1], other, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(gradients, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-5, rtol=1e-5)
    ours.eval()
    theirs.eval()
    found, expected = ours(x, mask=mask), theirs(x, mask=mask)
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[2] == expected[2] == 0
    torch.testing.assert_close(
        ours.get_output_from_indices(found[1]), theirs.get_output_from_indices(expected[1]), atol=1e-5, rtol=1e-5
    )


def test_lengths_and_another_grid():
    ours, theirs = _pair({"scales": (1, 2, 4)})
    x, lens = torch.randn(3, 8, 12), torch.tensor([12, 7, 3])
    found, expected = (one.eval()(x, lens=lens) for one in (ours, theirs))
    assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    mine, other = (one.get_output_from_indices(found[1], full_shape=12) for one in (ours, theirs))
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_the_orthogonal_term_of_a_shared_codebook_that_moves():
    """Values and moving averages agree; gradients of the term are those of the codebook it was taken of."""
    ours, theirs = _pair({"scales": (1, 2, 4), "orthogonal_reg_weight": 2.0})
    for _ in range(3):
        x = torch.randn(3, 8, 9)
        found, expected = ours(x), theirs(x)
        assert all(torch.equal(a, b) for a, b in zip(found[1], expected[1], strict=True))
        torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-5, rtol=1e-5)


def test_nested_dropout_keeps_the_same_levels():
    ours, theirs = _pair({"scales": (1, 2, 4, 6), "nested_dropout": 0.7, "nested_dropout_min_levels": 2, "decay": 1.0})
    x, seen = torch.randn(2, 8, 6), set()
    for seed in range(20):
        torch.manual_seed(seed)
        found = ours(x, return_cutoff=True)
        torch.manual_seed(seed)
        expected = theirs(x, return_cutoff=True)
        assert found[3] == expected[3]
        torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[2], expected[2], atol=1e-5, rtol=1e-5)
        seen.add(found[3])
    assert seen == {None, 1, 2}


def test_signatures():
    for method in ("__init__", "forward", "get_output_from_indices"):
        found, expected = (
            inspect.signature(getattr(kind, method)).parameters for kind in (HierarchicalVQ, peer.HierarchicalVQ)
        )
        assert [(p.name, p.kind, p.default) for p in found.values()] == [
            (p.name, p.kind, p.default) for p in expected.values()
        ]
