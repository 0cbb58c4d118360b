"""The quantizer library."""

from rqvae.quantizers.affine import AffineRule
from rqvae.quantizers.base import NullQuantizer, Quantizer, QuantizerOutput, TargetQuantizer
from rqvae.quantizers.binary_mapper import BinaryMapper
from rqvae.quantizers.build import build_quantizer
from rqvae.quantizers.code_losses import VectorLosses
from rqvae.quantizers.codebook import EMACodebook, RestartRule
from rqvae.quantizers.finite_scalar import FiniteScalarQuantizer
from rqvae.quantizers.grouped_of import GroupedOf
from rqvae.quantizers.hierarchical import HierarchicalQuantizer
from rqvae.quantizers.implicit_codebook import ImplicitCodebook, ImplicitResidualQuantizer
from rqvae.quantizers.latent import LatentQuantizer
from rqvae.quantizers.layout import InLayout, mask_from_lengths
from rqvae.quantizers.learned_codebook import LearningRule
from rqvae.quantizers.lookup_free import LookupFreeQuantizer
from rqvae.quantizers.patches import InPatches
from rqvae.quantizers.pooling import MaxVectorPool2d, SoftmaxVectorPool2d
from rqvae.quantizers.random_projection import RandomProjectionQuantizer
from rqvae.quantizers.residual import ResidualQuantizer
from rqvae.quantizers.residual_of import ResidualOf, residual_fsq, residual_lfq, residual_simvq
from rqvae.quantizers.residual_vector import ResidualVectorQuantizer
from rqvae.quantizers.scalar_perturbation import ScalarPerturbationQuantizer
from rqvae.quantizers.sim import SimQuantizer
from rqvae.quantizers.usage import CodeUsage
from rqvae.quantizers.vector import VectorQuantizer
from rqvae.quantizers.warmup import codebook_warmup

__all__ = [
    "AffineRule",
    "BinaryMapper",
    "CodeUsage",
    "EMACodebook",
    "FiniteScalarQuantizer",
    "GroupedOf",
    "HierarchicalQuantizer",
    "ImplicitCodebook",
    "ImplicitResidualQuantizer",
    "InLayout",
    "InPatches",
    "LatentQuantizer",
    "LearningRule",
    "LookupFreeQuantizer",
    "MaxVectorPool2d",
    "NullQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "RandomProjectionQuantizer",
    "ResidualOf",
    "ResidualQuantizer",
    "ResidualVectorQuantizer",
    "RestartRule",
    "ScalarPerturbationQuantizer",
    "SimQuantizer",
    "SoftmaxVectorPool2d",
    "TargetQuantizer",
    "VectorLosses",
    "VectorQuantizer",
    "build_quantizer",
    "codebook_warmup",
    "mask_from_lengths",
    "residual_fsq",
    "residual_lfq",
    "residual_simvq",
]
