"""One entry of a mask per sample: the loss and the codebook are those of the samples that count, for every drop-in."""

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch import (
    LFQ,
    GroupedResidualLFQ,
    HierarchicalVQ,
    ResidualLFQ,
    ResidualVQ,
    VectorQuantize,
)

MASK = torch.tensor([True, False, True])
# (drop-in, shape of its input)
DROP_INS = {
    "LFQ, images": (lambda: LFQ(codebook_size=64, dim=16), (16, 4, 4)),
    "LFQ, video": (lambda: LFQ(codebook_size=64, dim=16, num_codebooks=2), (16, 2, 4, 4)),
    "LFQ, sequences": (lambda: LFQ(codebook_size=64, dim=16), (12, 16)),
    "LFQ, commitment": (lambda: LFQ(codebook_size=64, dim=16, commitment_loss_weight=1.0), (16, 4, 4)),
    "ResidualLFQ": (lambda: ResidualLFQ(dim=16, codebook_size=64, num_quantizers=2), (12, 16)),
    "GroupedResidualLFQ": (
        lambda: GroupedResidualLFQ(dim=16, groups=2, codebook_size=64, num_quantizers=2),
        (12, 16),
    ),
    "VectorQuantize": (lambda: VectorQuantize(dim=16, codebook_size=32), (12, 16)),
    "VectorQuantize, images": (lambda: VectorQuantize(dim=16, codebook_size=32, accept_image_fmap=True), (16, 4, 4)),
    "VectorQuantize, tokens": (lambda: VectorQuantize(dim=16, codebook_size=32), (16,)),
    "ResidualVQ": (lambda: ResidualVQ(dim=16, codebook_size=32, num_quantizers=2), (12, 16)),
    "HierarchicalVQ": (
        lambda: HierarchicalVQ(dim=16, codebook_size=32, scales=(1, 2), accept_image_fmap=True),
        (16, 4, 4),
    ),
}


@pytest.mark.parametrize("name", DROP_INS)
def test_the_loss_is_that_of_the_samples_that_count(name):
    make, shape = DROP_INS[name]
    torch.manual_seed(0)
    quantizer, x = make(), torch.randn(3, *shape)
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    masked = quantizer(x, mask=MASK)[2]
    after = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.load_state_dict(state)
    torch.testing.assert_close(masked, quantizer(x[MASK])[2])
    for key, value in quantizer.state_dict().items():
        torch.testing.assert_close(after[key], value, msg=key)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises((ValueError, AssertionError), match=r"mask of shape \(2,\) fits neither"):
        LFQ(codebook_size=64, dim=16)(torch.randn(3, 16, 4, 4), mask=torch.tensor([True, False]))
