"""`Sequential` as vector-quantize-pytorch offers it, and the names the package exports."""

import importlib

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat import vector_quantize_pytorch as compat
from rqstack.quantizers.compat.vector_quantize_pytorch import FSQ, RandomProjectionQuantizer, Sequential, VectorQuantize


def test_a_quantizer_between_other_modules():
    torch.manual_seed(0)
    quantizer = VectorQuantize(dim=8, codebook_size=16).eval()
    chain = Sequential(nn.Linear(4, 8), quantizer, nn.Linear(8, 3)).eval()
    x = torch.randn(2, 12, 4)
    output, indices, loss = chain(x, topk=2)
    assert (output.shape, indices.shape, loss.shape) == ((2, 12, 2, 3), (2, 12, 2), (2, 12, 2))
    quantized, expected, _ = quantizer(chain.fns[0](x), topk=2)
    assert torch.equal(indices, expected)
    assert torch.equal(output, chain.fns[2](quantized))
    assert {name.split(".")[0] for name in chain.state_dict()} == {"fns"}


def test_quantizers_with_other_results():
    output, indices = Sequential(FSQ(levels=[8, 5]), nn.Linear(2, 3))(torch.randn(2, 12, 2))
    assert (output.shape, indices.shape) == ((2, 12, 3), (2, 12))
    projected = RandomProjectionQuantizer(dim=8, codebook_size=16, codebook_dim=4, num_codebooks=3)
    (indices,) = Sequential(nn.Linear(5, 8), projected)(torch.randn(2, 12, 5))
    assert indices.shape == (2, 12, 3)


@pytest.mark.parametrize("number", [0, 2])
def test_exactly_one_quantizer(number):
    modules = [VectorQuantize(dim=8, codebook_size=16) for _ in range(number)]
    with pytest.raises(ValueError, match="exactly one quantizer"):
        Sequential(nn.Identity(), *modules)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vector_quantize_pytorch", "VectorQuantize"),
        ("residual_vq", "ResidualVQ"),
        ("residual_vq", "GroupedResidualVQ"),
        ("random_projection_quantizer", "RandomProjectionQuantizer"),
        ("finite_scalar_quantization", "FSQ"),
        ("finite_scalar_perturbation", "FSP"),
        ("finite_scalar_perturbation", "build_cdf_act"),
        ("lookup_free_quantization", "LFQ"),
        ("residual_lfq", "ResidualLFQ"),
        ("residual_lfq", "GroupedResidualLFQ"),
        ("residual_fsq", "ResidualFSQ"),
        ("residual_fsq", "GroupedResidualFSQ"),
        ("latent_quantization", "LatentQuantize"),
        ("sim_vq", "SimVQ"),
        ("residual_sim_vq", "ResidualSimVQ"),
        ("binary_mapper", "BinaryMapper"),
        ("hierarchical_vq", "HierarchicalVQ"),
        ("sequential", "Sequential"),
    ],
)
def test_names_come_from_the_package_and_from_its_modules(module, name):
    own = importlib.import_module(f"{compat.__name__}.{module}")
    assert getattr(own, name) is getattr(compat, name)
    assert name in compat.__all__
