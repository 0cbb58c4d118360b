"""What the layers of vqtorch share: any dim, groups, norms, and the switch that turns quantization off.

Legend: B batch, C channels (feature_size), G groups, E = C / G, "..." the other dims of the input in order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.compat.vqtorch.norms import CODEBOOK_NORMS, check_norm, get_norm


@checks_arguments
class VQBaseLayer(nn.Module):
    """Brings an input with its features in `dim` to (..., G, E) and back.

    norm: 'none', 'l2', 'l2c', 'bn', 'gn' or 'in' of the input. cb_norm (also codebook_norm): 'none', 'l2' or 'l2c' of
    the code vectors; see `norms.py`. code_vector_size: size of a code vector. enabled: set it to False and the layer
    only applies the norm.
    """

    enabled = True
    data_initialized: Tensor  # with kmeans_init only

    def __init__(
        self,
        feature_size: int,
        num_codes: int,
        dim: int = 1,
        norm: str | None = "none",
        cb_norm: str | None = "none",
        kmeans_init: bool = False,
        code_vector_size: int | None = None,
        codebook_norm: str | None = None,
    ):
        super().__init__()
        if min(feature_size, num_codes) < 1:
            raise ValueError(f"feature_size and num_codes must be at least 1, got {feature_size} and {num_codes}")
        self.feature_size, self.num_codes, self.dim = feature_size, num_codes, dim
        self.code_vector_size = feature_size if code_vector_size is None else code_vector_size
        self.groups = 1
        self.norm, self.codebook_norm = norm, cb_norm if codebook_norm is None else codebook_norm
        check_norm("codebook_norm", self.codebook_norm, CODEBOOK_NORMS)
        self.norm_layer, self.norm_before_grouping = get_norm(norm, feature_size)
        self.kmeans_init = kmeans_init
        if kmeans_init:
            self.register_buffer("data_initialized", torch.zeros(1))

    def to_canonical_group_format(self, z: Tensor, groups: int) -> Tensor:
        """Features in `dim` -> (..., G, E)."""
        grouped: Tensor = z.movedim(self.dim, -1).unflatten(-1, (groups, -1))
        return grouped

    def to_original_format(self, x: Tensor) -> Tensor:
        """(..., G, E) -> features in `dim`."""
        return x.flatten(-2).movedim(-1, self.dim)

    def prepare_inputs(self, z: Tensor, groups: int) -> Tensor:
        """Norm and grouping: (..., G, E), fp32. ValueError where `dim` has not `feature_size` entries."""
        if z.ndim < 2 or not -z.ndim <= self.dim < z.ndim or z.shape[self.dim] != self.feature_size:
            raise ValueError(f"expected {self.feature_size} features in dim {self.dim}, got shape {tuple(z.shape)}")
        if self.norm_before_grouping and not isinstance(self.norm_layer, nn.Identity):
            first = z.movedim(self.dim, 1)
            z = self.norm_layer(first.reshape(*first.shape[:2], -1, 1)).view(first.shape).movedim(1, self.dim)
        z = self.to_canonical_group_format(z, groups).float()
        return z if self.norm_before_grouping else self.norm_layer(z)

    def extra_repr(self) -> str:
        """The settings."""
        return f"num_codes: {self.num_codes}, groups: {self.groups}, enabled: {self.enabled}"
