"""The quantizer library."""

from rqvae.quantizers.base import NullQuantizer, Quantizer, QuantizerOutput
from rqvae.quantizers.build import build_quantizer
from rqvae.quantizers.codebook import EMACodebook
from rqvae.quantizers.residual import ResidualQuantizer

__all__ = ["EMACodebook", "NullQuantizer", "Quantizer", "QuantizerOutput", "ResidualQuantizer", "build_quantizer"]
