"""The quantizer library: the interface, every method with its options, what goes around them, and how they start.

Codebooks, arithmetic and the calls of other libraries (`compat`) are in the rooms below.
"""

from rqstack.quantizers.arithmetic.code_losses import VectorLosses
from rqstack.quantizers.base import NullQuantizer, Quantizer, QuantizerOutput
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.entry_use import RestartRule
from rqstack.quantizers.codebooks.moving_average import EMACodebook
from rqstack.quantizers.methods.binary_mapper import BinaryMapper, BinaryOptions
from rqstack.quantizers.methods.finite_scalar import (
    FiniteScalarOptions,
    FiniteScalarQuantizer,
    ResidualFiniteScalarOptions,
    residual_fsq,
)
from rqstack.quantizers.methods.latent_quantization import LatentOptions, LatentQuantizer
from rqstack.quantizers.methods.lookup_free import (
    LookupFreeOptions,
    LookupFreeQuantizer,
    ResidualLookupFreeOptions,
    residual_lfq,
)
from rqstack.quantizers.methods.multi_scale import MultiScaleOptions, MultiScaleQuantizer
from rqstack.quantizers.methods.neural_codebook import NeuralResidualOptions, NeuralResidualQuantizer
from rqstack.quantizers.methods.random_projection import RandomProjectionOptions, RandomProjectionQuantizer
from rqstack.quantizers.methods.residual_published import ResidualQuantizer
from rqstack.quantizers.methods.residual_stack import ResidualStack, StackOptions
from rqstack.quantizers.methods.residual_vector import ResidualVectorOptions, ResidualVectorQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationOptions, ScalarPerturbationQuantizer
from rqstack.quantizers.methods.simvq import ResidualSimOptions, SimOptions, SimQuantizer, residual_simvq
from rqstack.quantizers.methods.vector import VectorQuantizer
from rqstack.quantizers.methods.vector_options import VectorOptions
from rqstack.quantizers.usage import CodeUsage
from rqstack.quantizers.warmup import codebook_warmup
from rqstack.quantizers.wrappers.grouped import Grouped
from rqstack.quantizers.wrappers.layout import InLayout, mask_from_lengths
from rqstack.quantizers.wrappers.patches import InPatches
from rqstack.quantizers.wrappers.vector_pooling import MaxVectorPool2d, SoftmaxVectorPool2d

__all__ = [
    "AffineRule",
    "BinaryMapper",
    "BinaryOptions",
    "CodeUsage",
    "EMACodebook",
    "FiniteScalarOptions",
    "FiniteScalarQuantizer",
    "Grouped",
    "InLayout",
    "InPatches",
    "LatentOptions",
    "LatentQuantizer",
    "LookupFreeOptions",
    "LookupFreeQuantizer",
    "MaxVectorPool2d",
    "MultiScaleOptions",
    "MultiScaleQuantizer",
    "NeuralResidualOptions",
    "NeuralResidualQuantizer",
    "NullQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "RandomProjectionOptions",
    "RandomProjectionQuantizer",
    "ResidualFiniteScalarOptions",
    "ResidualLookupFreeOptions",
    "ResidualQuantizer",
    "ResidualSimOptions",
    "ResidualStack",
    "ResidualVectorOptions",
    "ResidualVectorQuantizer",
    "RestartRule",
    "ScalarPerturbationOptions",
    "ScalarPerturbationQuantizer",
    "SimOptions",
    "SimQuantizer",
    "SoftmaxVectorPool2d",
    "StackOptions",
    "VectorLosses",
    "VectorOptions",
    "VectorQuantizer",
    "codebook_warmup",
    "mask_from_lengths",
    "residual_fsq",
    "residual_lfq",
    "residual_simvq",
]
