"""The names and signatures of vqtorch, on any device."""

from rqstack.quantizers.compat.vqtorch import dists, inits, nn, norms
from rqstack.quantizers.compat.vqtorch.inits import codebook_warmup
from rqstack.quantizers.compat.vqtorch.nn import (
    GroupVectorQuant,
    MaxVecPool2d,
    ResidualVectorQuant,
    SoftMaxPool2d,
    SoftMaxVecPool2d,
    VectorQuant,
    VectorQuantize,
)
from rqstack.quantizers.compat.vqtorch.switch import get_vq_layers, is_vq, is_vqn, no_vq

__all__ = [
    "GroupVectorQuant",
    "MaxVecPool2d",
    "ResidualVectorQuant",
    "SoftMaxPool2d",
    "SoftMaxVecPool2d",
    "VectorQuant",
    "VectorQuantize",
    "codebook_warmup",
    "dists",
    "get_vq_layers",
    "inits",
    "is_vq",
    "is_vqn",
    "nn",
    "no_vq",
    "norms",
]
