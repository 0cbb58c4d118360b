"""The names and signatures of vector-quantize-pytorch 1.32."""

from rqstack.quantizers.compat.vector_quantize_pytorch.binary_mapper import BinaryMapper
from rqstack.quantizers.compat.vector_quantize_pytorch.finite_scalar_perturbation import FSP, build_cdf_act
from rqstack.quantizers.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from rqstack.quantizers.compat.vector_quantize_pytorch.hierarchical_vq import HierarchicalVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.latent_quantization import LatentQuantize
from rqstack.quantizers.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from rqstack.quantizers.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_fsq import GroupedResidualFSQ, ResidualFSQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_lfq import GroupedResidualLFQ, ResidualLFQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_sim_vq import ResidualSimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.sequential import Sequential
from rqstack.quantizers.compat.vector_quantize_pytorch.sim_vq import SimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

__all__ = [
    "BinaryMapper",
    "FSP",
    "FSQ",
    "GroupedResidualFSQ",
    "GroupedResidualLFQ",
    "GroupedResidualVQ",
    "HierarchicalVQ",
    "LFQ",
    "LatentQuantize",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "Sequential",
    "SimVQ",
    "VectorQuantize",
    "build_cdf_act",
]
