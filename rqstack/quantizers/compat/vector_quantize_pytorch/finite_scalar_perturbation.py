"""Finite scalar perturbation with the signature of vector-quantize-pytorch 1.32; the arithmetic is that of the core.

Legend: B batch, N rows, C scalars of a code vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.mixed_radix import scalars_first, scalars_last
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.scalar_moments import MomentTargets, moment_loss, scalar_moments
from rqstack.quantizers.compat.vector_quantize_pytorch.channel_order import channels_back, channels_last, index_type
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_numbers import LevelNumbers
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project, projection_pair
from rqstack.quantizers.methods.scalar_perturbation import ACTIVATIONS, ScalarBins

Information = dict[str, Tensor | dict[str, Tensor]]  # what `FSP` tells beside its result

FREE = (0.0, 0.0)
# name -> what the moments of the (projected) input are pulled to
VECTOR_NORMS = {
    "none": MomentTargets(FREE, FREE),
    "var": MomentTargets(),
    "kurt": MomentTargets(skewness=(0.0, 0.06), kurtosis=(0.0, 0.05)),
    "var_tanh": MomentTargets(variance=(0.8225, 0.07)),
    "var_sigmoid": MomentTargets(variance=(3.29, 0.07)),
    "var_laplace": MomentTargets(variance=(2.0, 0.07)),
}


@checks_settings
def build_cdf_act(act_name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The distribution function of that name and its inverse: 'tanh', 'sigmoid', 'normal', 'laplace', 'cauchy'."""
    require(act_name in ACTIVATIONS, f"act_name {act_name!r} is not one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[act_name]


@checks_settings
class FSP(LevelNumbers):
    """Maps every scalar to (0, 1) and takes the centre of its bin there, or in training a number near by.

    `forward` returns (quantized like the input, int32 indices, loss of the moments, information). Input is (..., dim),
    or (B, dim, ...) with `channel_first`.
    """

    def __init__(
        self,
        levels: Sequence[int],
        dim: int | None = None,
        channel_first: bool = False,
        projection_has_bias: bool = True,
        act_name: str = "tanh",
        quantize_rate: float = 0.0,
        need_inv_act: bool = False,
        vector_norm: str = "var_tanh",
    ):
        super().__init__()
        check_sizes(levels=levels, dim=dim)
        levels = [int(level) for level in levels]
        require(vector_norm in VECTOR_NORMS, f"vector_norm {vector_norm!r} is not one of {', '.join(VECTOR_NORMS)}")
        require(0 <= quantize_rate <= 1, f"quantize_rate must be in [0, 1], got {quantize_rate}")
        self.act_func, self.inv_act_func = build_cdf_act(act_name)
        self.act_name, self.need_inv_act, self.quantize_rate = act_name, need_inv_act, quantize_rate
        self.codebook_dim, self.codebook_size = len(levels), math.prod(levels)
        self.dim, self.channel_first = len(levels) if dim is None else dim, channel_first
        self.has_projections = self.dim != len(levels)
        pair = projection_pair(self.dim, len(levels), self.has_projections, projection_has_bias)
        self.project_in, self.project_out = pair
        self.bins = ScalarBins(levels, act_name, quantize_rate, need_inv_act)
        self.moment_targets = VECTOR_NORMS[vector_norm]

    def extra_repr(self) -> str:
        """The settings, for `print`."""
        return (
            f"levels={self.bins.levels.tolist()}, dim={self.dim}, act_name={self.act_name!r}, "
            f"need_inv_act={self.need_inv_act}, quantize_rate={self.quantize_rate}"
        )

    def quantize_act_value(self, act_z: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Numbers in [0, 1] (..., C) -> the centres of their bins, with the gradient of the identity, and the bins as
        floats. eps: what is nearer to 1 counts as 1 - eps."""
        digits_CN = self.bins.round(scalars_first(act_z.detach().clamp(max=1 - eps)))
        centres = scalars_last(self.bins.centres(digits_CN), act_z.shape[:-1])
        return straight_through(act_z, centres), scalars_last(digits_CN, act_z.shape[:-1])

    def level_indices_to_indices(self, level_indices: Tensor) -> Tensor:
        """Bins (..., C) -> int32 indices (...)."""
        indices = self.bins.codes(scalars_first(level_indices)).to(index_type(self.codebook_size))
        return indices.view(level_indices.shape[:-1])

    def indices_to_level_indices(self, indices: Tensor) -> Tensor:
        """Indices (...) -> bins (..., C), of the same type."""
        return scalars_last(self.bins.digits(indices.reshape(-1).long()), indices.shape).to(indices.dtype)

    def indices_to_act_value(self, indices: Tensor) -> Tensor:
        """Indices (...) -> bin centres in (0, 1) (..., C)."""
        return scalars_last(self.bins.centres(self.bins.digits(indices.reshape(-1).long())), indices.shape)

    def indices_to_codes(self, indices: Tensor, eps: float = 1e-6) -> Tensor:
        """Indices -> what `forward` returns for them in eval mode, in the same layout."""
        with full_precision(indices.device):
            vectors = self._values(self.indices_to_act_value(indices), eps)
            return channels_back(project(self.project_out, vectors), self.channel_first)

    def forward(self, z: Tensor, eps: float | None = None) -> tuple[Tensor, Tensor, Tensor, Information]:
        """(quantized, indices, loss, {level_indices, norm_info, and p_accept_prob where moves are drawn})."""
        rows = channels_last(z, self.channel_first, self.dim)
        with full_precision(z.device):
            x_NC = project(self.project_in, rows.reshape(-1, self.dim))
            found = scalar_moments(x_NC, over_ranks=self.training)
            act_CN = self.bins.activate(scalars_first(x_NC))
            with torch.no_grad():
                digits_CN = self.bins.round(act_CN)
                chosen_CN, accepted = self._chosen(act_CN, self.bins.centres(digits_CN))
                values = self._values(chosen_CN, torch.finfo(x_NC.dtype).eps if eps is None else eps).T
            passed = x_NC if self.need_inv_act else self.bins.scaled(act_CN).T
            out = project(self.project_out, straight_through(passed, values)).reshape(rows.shape).to(z.dtype)
            loss = moment_loss(found, self.moment_targets)
        indices = self.bins.codes(digits_CN).to(index_type(self.codebook_size)).view(rows.shape[:-1])
        level_indices = scalars_last(digits_CN, rows.shape[:-1])
        info: Information = {"level_indices": level_indices, "norm_info": found._asdict(), **accepted}
        return channels_back(out, self.channel_first), indices, loss, info

    def _chosen(self, act_CN: Tensor, centres_CN: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """In train mode the bin centres or moved numbers, and how many moves stayed inside."""
        self.bins.quantize_rate = self.quantize_rate  # programs anneal it
        if not self.training or self.quantize_rate >= 1:
            return centres_CN, {}
        chosen_CN, accepted = self.bins.perturb(act_CN, centres_CN)
        return chosen_CN, {"p_accept_prob": accepted}

    def _values(self, act: Tensor, eps: float) -> Tensor:
        return self.inv_act_func(act.clamp(eps, 1 - eps)) if self.need_inv_act else self.bins.scaled(act)
