"""RandomProjectionQuantizer as vector-quantize-pytorch offers it."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer


def test_readme():
    quantizer = RandomProjectionQuantizer(dim=512, num_codebooks=16, codebook_dim=256, codebook_size=1024)
    x = torch.randn(1, 1024, 512)
    indices = quantizer(x)
    assert indices.shape == (1, 1024, 16) and indices.dtype == torch.int64
    assert len(indices.unique()) > 900


def _cosines(quantizer, x, books, norm):
    x = F.layer_norm(x, (10,)) if norm else x
    projected = F.normalize(torch.einsum("bnd,hde->bnhe", x, quantizer.rand_projs), dim=-1)
    return torch.einsum("bnhe,hke->bnhk", projected, quantizer.vq.codebook.view(books, 32, 6))


@pytest.mark.parametrize("books", [1, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_the_highest_cosine_in_code_vectors_of_the_size_given(books, norm):
    quantizer = RandomProjectionQuantizer(dim=10, num_codebooks=books, codebook_dim=6, codebook_size=32, norm=norm)
    x = torch.randn(2, 9, 10) * 3 + 1
    cosines = _cosines(quantizer, x, books, norm)
    indices = quantizer(x)
    assert indices.shape == ((2, 9) if books == 1 else (2, 9, 3))
    assert torch.equal(indices.view(2, 9, books), cosines.argmax(-1))
    target = torch.randint(0, 32, indices.shape)
    loss = quantizer(x, indices=target)
    expected = F.cross_entropy(cosines.flatten(0, 2), target.flatten())
    torch.testing.assert_close(loss, expected)


def test_nothing_changes_in_training():
    quantizer = RandomProjectionQuantizer(dim=10, num_codebooks=2, codebook_dim=6, codebook_size=32, kmeans_init=False)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    x = torch.randn(2, 9, 10)
    first = quantizer.train()(x)
    assert torch.equal(first, quantizer.eval()(x)) and not quantizer.vq.training
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_the_same_codes_in_low_precision():
    quantizer = RandomProjectionQuantizer(dim=10, num_codebooks=2, codebook_dim=6, codebook_size=32)
    x = torch.randn(2, 9, 10).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x), quantizer(x.float()))


def test_a_state_with_inner_projections_is_taken_over():
    """More than one codebook: the original's code vectors have size codebook_dim * num_codebooks."""
    quantizer = RandomProjectionQuantizer(dim=10, num_codebooks=2, codebook_dim=6, codebook_size=32)
    own = quantizer.state_dict()
    assert own["vq._codebook.embed"].shape == (2, 32, 6)
    foreign = {
        **own,
        "vq.project_in.weight": torch.randn(24, 12),
        "vq.project_in.bias": torch.randn(24),
        "vq.project_out.weight": torch.randn(12, 24),
        "vq.project_out.bias": torch.randn(12),
        "vq._codebook.embed": F.normalize(torch.randn(2, 32, 12), dim=-1),
        "vq._codebook.embed_avg": torch.randn(2, 32, 12),
    }
    quantizer.load_state_dict(foreign, strict=True)
    x = torch.randn(2, 9, 10)
    projected = torch.einsum("bnd,hde->bnhe", F.layer_norm(x, (10,)), quantizer.rand_projs).flatten(2)
    inner = F.linear(projected, foreign["vq.project_in.weight"], foreign["vq.project_in.bias"]).unflatten(-1, (2, 12))
    cosines = torch.einsum("bnhe,hke->bnhk", F.normalize(inner, dim=-1), foreign["vq._codebook.embed"])
    assert torch.equal(quantizer(x), cosines.argmax(-1))
    assert set(quantizer.state_dict()) == set(foreign)


def test_a_wrong_input_is_named():
    quantizer = RandomProjectionQuantizer(dim=10, codebook_dim=6, codebook_size=32)
    with pytest.raises(ValueError, match="input has 9 channels; the quantizer takes dim 10"):
        quantizer(torch.randn(2, 4, 9))
