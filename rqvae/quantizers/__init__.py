"""The quantizer library."""

from rqvae.quantizers.base import NullQuantizer, Quantizer, QuantizerOutput
from rqvae.quantizers.build import build_quantizer
from rqvae.quantizers.code_losses import VectorLosses
from rqvae.quantizers.codebook import EMACodebook, RestartRule
from rqvae.quantizers.residual import ResidualQuantizer
from rqvae.quantizers.vector import VectorQuantizer
from rqvae.quantizers.warmup import codebook_warmup

__all__ = [
    "EMACodebook",
    "NullQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "RestartRule",
    "VectorLosses",
    "VectorQuantizer",
    "build_quantizer",
    "codebook_warmup",
]
