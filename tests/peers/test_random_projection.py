"""RandomProjectionQuantizer beside the installed vector-quantize-pytorch."""

import inspect

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer


@pytest.mark.parametrize("books", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_the_same_indices_and_losses(books, norm, training):
    """With several codebooks the state brings the projections that the original adds."""
    options = {"dim": 10, "codebook_dim": 6, "codebook_size": 32, "num_codebooks": books, "norm": norm}
    ours, theirs = RandomProjectionQuantizer(**options), peer.RandomProjectionQuantizer(**options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 50, 10) * 3
    indices, expected = ours.train(training)(x), theirs.train(training)(x)
    assert torch.equal(indices, expected) and indices.dtype == expected.dtype
    target = torch.randint(0, 32, indices.shape)
    torch.testing.assert_close(ours(x, indices=target), theirs(x, indices=target), atol=1e-5, rtol=1e-5)
    assert not ours.vq.training


def test_signature():
    found, expected = (
        inspect.signature(kind).parameters for kind in (RandomProjectionQuantizer, peer.RandomProjectionQuantizer)
    )
    assert [(p.name, p.kind, p.default) for p in found.values()] == [
        (p.name, p.kind, p.default) for p in expected.values()
    ]
