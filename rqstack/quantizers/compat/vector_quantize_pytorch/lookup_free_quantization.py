"""Lookup-free quantization with the signature of vector-quantize-pytorch 1.32; the arithmetic is that of the core.

Legend: B batch, N rows, c codebooks side by side, C bits of a code, K = 2^C.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rqstack.quantizers.arithmetic.bit_entropy import mean_entropy, mean_usage_entropy
from rqstack.quantizers.arithmetic.code_losses import mean_square
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.precision import KeepsFloat32, full_precision
from rqstack.quantizers.compat.vector_quantize_pytorch.channel_order import MAP_DIMS, channels_back, channels_last
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import UsageError, check_sizes, checks_settings, require
from rqstack.quantizers.compat.vector_quantize_pytorch.projections import project
from rqstack.quantizers.compat.vector_quantize_pytorch.token_layout import mask_of_samples
from rqstack.quantizers.methods.lookup_free import codes_of_bits, log_odds

ENTROPY_FLOOR = 1e-5  # smallest probability inside the logarithm of the batch entropy
JOINT_BITS = 20  # up to as many the batch entropy is exact; beyond, an upper bound


class Return(NamedTuple):
    """What `LFQ` returns."""

    quantized: Tensor
    indices: Tensor
    entropy_aux_loss: Tensor


class LossBreakdown(NamedTuple):
    """The parts of the loss, without their weights; zeros in eval mode."""

    per_sample_entropy: Tensor
    batch_entropy: Tensor
    commitment: Tensor


class CosineSimLinear(nn.Module):
    """Cosines of the input with the columns of `weight` (in, out), times `scale`."""

    def __init__(self, dim_in: int, dim_out: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), fp32."""
        return F.normalize(x.float(), dim=-1) @ F.normalize(self.weight.float(), dim=0) * self.scale


@checks_settings
class LFQ(KeepsFloat32):
    """The signs of the scalars as a code; `forward` returns the named tuple (quantized, int64 indices, loss).

    Sequences are (B, n, dim); images and video (B, dim, ...), or as `channel_first` says. Indices have the shape of the
    input without channels, with the codebooks last where there are several. In train mode the loss is
    entropy_loss_weight x (mean entropy - diversity_gamma x entropy of the mean) + commitment_loss_weight x distance;
    the entropies never need a table of all codes, and the mean is one over all processes. In eval mode it is 0.
    """

    mask: Tensor
    shifts: Tensor
    zero: Tensor
    orthogonal_rot: Tensor

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: Callable[[Tensor], Tensor] = nn.Identity(),  # noqa: B008
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ):
        super().__init__()
        check_sizes(dim=dim, codebook_size=codebook_size, num_codebooks=num_codebooks)
        if codebook_size is None:
            if dim is None:
                raise UsageError("LFQ needs dim or codebook_size")
            codebook_size = 2**dim
        bits = math.ceil(math.log2(codebook_size))
        require(codebook_size == 2**bits, f"codebook_size must be a power of 2, got {codebook_size}; try {2**bits}")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        require(keep or num_codebooks == 1, "several codebooks need keep_num_codebooks_dim=True")
        require(0 < frac_per_sample_entropy <= 1, f"frac_per_sample_entropy {frac_per_sample_entropy} is not in (0, 1]")
        require(
            soft_clamp_input_value is None or soft_clamp_input_value >= codebook_scale,
            f"soft_clamp_input_value {soft_clamp_input_value} is below codebook_scale {codebook_scale}",
        )
        self.codebook_size, self.codebook_dim, inner = codebook_size, bits, bits * num_codebooks
        self.dim = inner if dim is None else dim
        self.num_codebooks, self.keep_num_codebooks_dim = num_codebooks, keep
        self.has_projections = self.dim != inner if has_projections is None else has_projections
        require(
            self.has_projections or self.dim == inner,
            f"dim {self.dim} needs projections to {inner} bits; has_projections is False",
        )
        if cosine_sim_project_in:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            maps: list[nn.Module] = [CosineSimLinear(self.dim, inner, scale)]
        else:
            maps = [nn.Linear(self.dim, inner, projection_has_bias)] if self.has_projections else []
        self.project_in = maps[0] if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(inner, self.dim, projection_has_bias) if self.has_projections else nn.Identity()
        self.channel_first, self.activation, self.spherical = channel_first, straight_through_activation, spherical
        self.orthogonal_rotation, self.force_quantization_f32 = orthogonal_rotation, force_quantization_f32
        if orthogonal_rotation:
            self.register_buffer("orthogonal_rot", nn.init.orthogonal_(torch.empty(bits, bits)))
        self.frac_per_sample_entropy, self.diversity_gamma = frac_per_sample_entropy, diversity_gamma
        self.entropy_loss_weight, self.commitment_loss_weight = entropy_loss_weight, commitment_loss_weight
        self.codebook_scale, self.soft_clamp_input_value = codebook_scale, soft_clamp_input_value
        self.entropy_loss_offset = entropy_loss_offset
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.register_buffer("mask", 2 ** torch.arange(bits - 1, -1, -1))
        self.register_buffer("shifts", torch.arange(bits - 1, -1, -1), persistent=False)
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """All codes as +scale and -scale (K, C), made on request."""
        return self.bits_to_codes(self._bits(torch.arange(self.codebook_size, device=self.shifts.device)).float())

    @property
    def dtype(self) -> torch.dtype:
        """That of the code vectors."""
        return self.zero.dtype

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        """0 and 1 -> -scale and +scale."""
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """Indices -> what `forward` returned with them, in the same layout."""
        first = indices.ndim >= MAP_DIMS - 1 + int(self.keep_num_codebooks_dim)
        first = first if self.channel_first is None else self.channel_first
        indices = indices if self.keep_num_codebooks_dim else indices[..., None]
        with full_precision(indices.device):
            vectors = self.indices_to_vectors(indices).flatten(-2)
            return channels_back(project(self.project_out, vectors) if project_out else vectors, first)

    def indices_to_vectors(self, indices: Tensor) -> Tensor:
        """Indices (...) of one codebook -> code vectors (..., C), rotated but not projected."""
        vectors = self._normalized(self.bits_to_codes(self._bits(indices).float()))
        return vectors @ self.orthogonal_rot.T if self.orthogonal_rotation else vectors

    def forward(
        self,
        x: Tensor,
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: Tensor | None = None,
    ) -> Return | tuple[Return, LossBreakdown]:
        """Quantize x; with `return_loss_breakdown` a pair of the result and a `LossBreakdown`.

        mask: over the positions, (B, n) or (B, ...), or one entry per sample (B,); in the loss only those where it is
        True count.
        """
        first = x.ndim >= MAP_DIMS if self.channel_first is None else self.channel_first
        rows = channels_last(x, first, self.dim)
        with full_precision(x.device):
            space = self._to_space(rows)
            with torch.no_grad():
                bits = (space > 0).float()
                vectors = self._normalized(self.bits_to_codes(bits))
            mask_N = None if mask is None else self._mask_of_rows(mask, rows.shape[:-1])
            losses = self._losses(space, vectors, inv_temperature, mask_N)
            out = straight_through(self.activation(space), vectors) if self.training else vectors
            out = out @ self.orthogonal_rot.T if self.orthogonal_rotation else out
            out = out.reshape(*rows.shape[:-1], self.num_codebooks * self.codebook_dim)
            out = project(self.project_out, out).to(x.dtype)
        indices = codes_of_bits(bits, self.shifts).view(*rows.shape[:-1], self.num_codebooks)
        indices = indices if self.keep_num_codebooks_dim else indices[..., 0]
        result = Return(channels_back(out, first), indices, self._total(losses))
        return (result, losses) if return_loss_breakdown else result

    def _mask_of_rows(self, mask: Tensor, grid: torch.Size) -> Tensor:
        shape, mask = tuple(mask.shape), mask_of_samples(mask, grid[1:])
        fits = mask.shape[:1] == grid[:1] and mask.numel() == grid.numel()
        require(fits, f"mask of shape {shape} fits neither {tuple(grid)} positions nor {grid[0]} samples")
        return mask.reshape(-1)

    def _to_space(self, rows: Tensor) -> Tensor:
        x, clamp = project(self.project_in, rows).float(), self.soft_clamp_input_value
        x = x if clamp is None else (x / clamp).tanh() * clamp
        x = x.reshape(-1, self.num_codebooks, self.codebook_dim)
        return self._normalized(x @ self.orthogonal_rot if self.orthogonal_rotation else x)

    def _losses(
        self, space_NcC: Tensor, vectors_NcC: Tensor, inv_temperature: float, mask_N: Tensor | None
    ) -> LossBreakdown:
        if not self.training:
            return LossBreakdown(self.zero, self.zero, self.zero)
        commitment = self.zero
        if self.commitment_loss_weight > 0:
            commitment = mean_square(space_NcC.flatten(1), vectors_NcC.flatten(1), mask_N)
        if self.frac_per_sample_entropy < 1:
            space_NcC, mask_N = self._sample(space_NcC if mask_N is None else space_NcC[mask_N]), None
        scale = self.codebook_scale / math.sqrt(self.codebook_dim) if self.spherical else self.codebook_scale
        logits = log_odds(space_NcC, inv_temperature, scale)
        each = mean_entropy(logits, mask_N)
        return LossBreakdown(each, mean_usage_entropy(logits, mask_N, JOINT_BITS, ENTROPY_FLOOR), commitment)

    def _sample(self, space_NcC: Tensor) -> Tensor:
        """A share of the rows, drawn on the CPU."""
        kept = int(len(space_NcC) * self.frac_per_sample_entropy)
        return space_NcC[(torch.randn(len(space_NcC)).argsort(-1) < kept).to(space_NcC.device)]

    def _total(self, losses: LossBreakdown) -> Tensor:
        entropy = losses.per_sample_entropy - self.diversity_gamma * losses.batch_entropy
        if self.training and self.experimental_softplus_entropy_loss:
            entropy = F.softplus(entropy + self.entropy_loss_offset)
        return entropy * self.entropy_loss_weight + losses.commitment * self.commitment_loss_weight

    def _bits(self, indices: Tensor) -> Tensor:
        return (indices[..., None].long() >> self.shifts) & 1

    def _normalized(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.codebook_scale if self.spherical else x
