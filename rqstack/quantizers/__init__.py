"""The quantizer library."""

from rqstack.quantizers.arithmetic.code_losses import VectorLosses
from rqstack.quantizers.base import NullQuantizer, Quantizer, QuantizerOutput, TargetQuantizer
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.learned import LearningRule
from rqstack.quantizers.codebooks.moving_average import EMACodebook, RestartRule
from rqstack.quantizers.methods.binary_mapper import BinaryMapper
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.methods.latent_quantization import LatentQuantizer
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer
from rqstack.quantizers.methods.multi_scale import MultiScaleQuantizer
from rqstack.quantizers.methods.neural_codebook import NeuralCodebook, NeuralResidualQuantizer
from rqstack.quantizers.methods.random_projection import RandomProjectionQuantizer
from rqstack.quantizers.methods.residual_published import ResidualQuantizer
from rqstack.quantizers.methods.residual_stack import ResidualStack, residual_fsq, residual_lfq, residual_simvq
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationQuantizer
from rqstack.quantizers.methods.simvq import SimQuantizer
from rqstack.quantizers.methods.vector import VectorQuantizer
from rqstack.quantizers.usage import CodeUsage
from rqstack.quantizers.warmup import codebook_warmup
from rqstack.quantizers.wrappers.grouped import Grouped
from rqstack.quantizers.wrappers.layout import InLayout, mask_from_lengths
from rqstack.quantizers.wrappers.patches import InPatches
from rqstack.quantizers.wrappers.vector_pooling import MaxVectorPool2d, SoftmaxVectorPool2d

__all__ = [
    "AffineRule",
    "BinaryMapper",
    "CodeUsage",
    "EMACodebook",
    "FiniteScalarQuantizer",
    "Grouped",
    "MultiScaleQuantizer",
    "NeuralCodebook",
    "NeuralResidualQuantizer",
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
    "ResidualStack",
    "ResidualQuantizer",
    "ResidualVectorQuantizer",
    "RestartRule",
    "ScalarPerturbationQuantizer",
    "SimQuantizer",
    "SoftmaxVectorPool2d",
    "TargetQuantizer",
    "VectorLosses",
    "VectorQuantizer",
    "codebook_warmup",
    "mask_from_lengths",
    "residual_fsq",
    "residual_lfq",
    "residual_simvq",
]
