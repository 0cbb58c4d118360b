"""Random projection: cosine search, frozen state, and the shortest preimage."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers import RandomProjectionOptions
from rqstack.quantizers.methods.random_projection import RandomProjectionQuantizer


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_have_the_highest_cosine(normalize):
    quantizer = RandomProjectionQuantizer(12, 32, RandomProjectionOptions(5, normalize=normalize), num_codebooks=3)
    z = torch.randn(4, 7, 12) * 3 + 1
    x = (z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True, unbiased=False) if normalize else z
    projected = F.normalize((x @ quantizer.projection).view(4, 7, 3, 5), dim=-1)
    cosine = torch.einsum("bndc,dkc->bndk", projected, quantizer.codebooks)
    codes = quantizer(z).codes
    assert torch.equal(codes, cosine.argmax(-1))
    assert torch.equal(quantizer.indices(z), codes)
    torch.testing.assert_close(quantizer.codebooks.norm(dim=-1), torch.ones(3, 32))


def test_decoded_vectors_project_to_their_code_vectors():
    quantizer = RandomProjectionQuantizer(12, 32, RandomProjectionOptions(5), num_codebooks=2)
    out = quantizer(torch.randn(9, 12))
    expected = torch.stack([quantizer.codebook(d)[out.codes[:, d]] for d in range(2)], 1)
    torch.testing.assert_close((out.quantized @ quantizer.projection).view(9, 2, 5), expected, atol=1e-4, rtol=1e-4)


def test_nothing_learns_and_buffers_stay_fp32():
    quantizer = RandomProjectionQuantizer(12, 32, RandomProjectionOptions(5))
    assert not list(quantizer.parameters())
    z = torch.randn(9, 12)
    out = quantizer(z)
    assert out.loss == 0
    assert torch.equal(quantizer.half()(z).codes, out.codes)
    other = RandomProjectionQuantizer(12, 32, RandomProjectionOptions(5))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).quantized, out.quantized)


def test_wrong_options():
    with pytest.raises(ValueError, match="codebook_size must be a whole number of at least 1, got 0"):
        RandomProjectionQuantizer(12, 0, RandomProjectionOptions(5))
