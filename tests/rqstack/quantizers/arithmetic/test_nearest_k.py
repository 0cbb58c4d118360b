"""The k nearest code vectors: against the whole distance matrix, in chunks."""

import pytest
import torch

from rqstack.quantizers.arithmetic.nearest import nearest_codes
from rqstack.quantizers.arithmetic.nearest_k import nearest_k


@pytest.mark.parametrize("chunk_bytes", [1, 2**20])
@pytest.mark.parametrize("k", [1, 3, 11])
def test_codes_and_distances_are_those_of_the_whole_matrix(k, chunk_bytes, monkeypatch):
    monkeypatch.setattr("rqstack.quantizers.arithmetic.nearest.CPU_CHUNK_BYTES", chunk_bytes)
    x, weight = torch.randn(40, 5), torch.randn(11, 5)
    codes, distances = nearest_k(x, weight, k)
    expected = torch.cdist(x, weight, compute_mode="donot_use_mm_for_euclid_dist").square().sort(1)
    assert torch.equal(codes, expected.indices[:, :k])
    torch.testing.assert_close(distances, expected.values[:, :k])
    assert torch.equal(codes[:, 0], nearest_codes(x, weight))


def test_distances_do_not_cancel_far_from_zero():
    weight = 1000 + torch.randn(6, 4)
    codes, distances = nearest_k(weight, weight, 2)
    assert codes[:, 0].tolist() == list(range(6))
    assert distances[:, 0].eq(0).all()
    assert nearest_k(weight.bfloat16(), weight, 1)[1].dtype == torch.float32
    assert nearest_k(weight[:0], weight, 2)[0].shape == (0, 2)


@pytest.mark.parametrize("k", [0, 7])
def test_wrong_k_is_refused(k):
    with pytest.raises(ValueError, match="choose 1 to 6"):
        nearest_k(torch.zeros(2, 3), torch.zeros(6, 3), k)
