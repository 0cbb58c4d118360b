"""The names and signatures of vector-quantize-pytorch 1.32."""

from rqvae.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

__all__ = ["VectorQuantize"]
