"""A chain of modules with one quantizer in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require
from rqstack.quantizers.compat.vector_quantize_pytorch.finite_scalar_perturbation import FSP
from rqstack.quantizers.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from rqstack.quantizers.compat.vector_quantize_pytorch.hierarchical_vq import HierarchicalVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.latent_quantization import LatentQuantize
from rqstack.quantizers.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from rqstack.quantizers.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_fsq import GroupedResidualFSQ, ResidualFSQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_lfq import GroupedResidualLFQ, ResidualLFQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_sim_vq import ResidualSimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.sim_vq import SimVQ
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

QUANTIZERS = (
    FSP,
    FSQ,
    GroupedResidualFSQ,
    GroupedResidualLFQ,
    GroupedResidualVQ,
    HierarchicalVQ,
    LFQ,
    LatentQuantize,
    RandomProjectionQuantizer,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
)


class Sequential(nn.Module):
    """Modules called one after another, exactly one of them a quantizer of this package.

    Returns what the quantizer returns, with its first entry passed on through the modules after it. Keywords of the
    call go to the quantizer.
    """

    def __init__(self, *fns: nn.Module):
        super().__init__()
        found = [type(fn).__name__ for fn in fns if isinstance(fn, QUANTIZERS)]
        names = ", ".join(kind.__name__ for kind in QUANTIZERS)
        require(len(found) == 1, f"Sequential takes exactly one quantizer ({names}), got {found or 'none'}")
        self.fns = nn.ModuleList(fns)

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Any, ...]:
        """(output, *what the quantizer returns after its vectors)."""
        rest: tuple[Any, ...] = ()
        for fn in self.fns:
            if isinstance(fn, QUANTIZERS):
                result = fn(x, **kwargs)
                x, rest = (result, ()) if isinstance(result, Tensor) else (result[0], tuple(result[1:]))
            else:
                x = fn(x)
        return (x, *rest)
