"""The layers of vqtorch."""

from rqstack.quantizers.compat.vqtorch.nn.gvq import GroupVectorQuant
from rqstack.quantizers.compat.vqtorch.nn.pool import MaxVecPool2d, SoftMaxPool2d, SoftMaxVecPool2d
from rqstack.quantizers.compat.vqtorch.nn.rvq import ResidualVectorQuant
from rqstack.quantizers.compat.vqtorch.nn.vq import VectorQuant, VectorQuantize
from rqstack.quantizers.compat.vqtorch.nn.vq_base import VQBaseLayer

_VQBaseLayer = VQBaseLayer

__all__ = [
    "GroupVectorQuant",
    "MaxVecPool2d",
    "ResidualVectorQuant",
    "SoftMaxPool2d",
    "SoftMaxVecPool2d",
    "VQBaseLayer",
    "VectorQuant",
    "VectorQuantize",
]
