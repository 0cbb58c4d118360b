"""Group normalisation, and SiLU after it, of channels-last maps in GPU kernels. Optional: needs Triton.

PyTorch's own normalises channels-first maps: a channels-last one is laid out anew before and after each, forward and
backward, and under autocast it is written as fp32. Here a value is read as it lies, statistics and arithmetic are fp32,
and the result is rounded once, to the type of the input. Sums have a fixed order: the same bits every time.

Tested in Triton's interpreter only: not verified on a GPU, neither its results nor its speed. `RQTRANSFORMER_TRITON=0`
switches it off.

Legend: B images, T positions, C channels, G groups, S stretches of positions; t, c the tile of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KNOWN_TYPES = frozenset({torch.float32, torch.bfloat16})
BLOCK_T, BLOCK_C = 32, 64
STRETCH = 8 * BLOCK_T  # positions that one program sums over


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _tile(start, end, channels, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):  # type: ignore[no-untyped-def]  # Triton
    """Channels of a tile, which of them exist, places of its values in memory, and which of these exist."""
    channel_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    row_t = start + tl.arange(0, BLOCK_T)
    inside_c = channel_c < channels
    place_tc = row_t.to(tl.int64)[:, None] * channels + channel_c[None, :]
    return channel_c, inside_c, place_tc, (row_t < end)[:, None] & inside_c[None, :]


@triton.jit
def _before_silu(gradient_tc, value_tc):  # type: ignore[no-untyped-def]  # Triton
    """Gradient at the input of SiLU."""
    gate_tc = 1.0 / (1.0 + tl.exp(-value_tc))
    return gradient_tc * gate_tc * (1.0 + value_tc * (1.0 - gate_tc))


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _moments_kernel(
    x_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    square_ptr: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    STRETCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program: mean and sum of squares around it, per channel, over a stretch (Chan et al. 1983)."""
    first = tl.program_id(1) * STRETCH
    image_ptr = x_ptr + tl.program_id(0).to(tl.int64) * rows * channels
    count_c = tl.zeros((BLOCK_C,), tl.float32)
    mean_c = tl.zeros((BLOCK_C,), tl.float32)
    square_c = tl.zeros((BLOCK_C,), tl.float32)
    for offset in range(0, STRETCH, BLOCK_T):
        _, _, place_tc, inside_tc = _tile(first + offset, rows, channels, BLOCK_T, BLOCK_C)
        x_tc = tl.load(image_ptr + place_tc, mask=inside_tc, other=0.0).to(tl.float32)
        number_c = tl.sum(inside_tc.to(tl.float32), axis=0)
        tile_mean_c = tl.sum(x_tc, axis=0) / tl.maximum(number_c, 1.0)
        centred_tc = tl.where(inside_tc, x_tc - tile_mean_c[None, :], 0.0)
        delta_c = tile_mean_c - mean_c
        share_c = number_c / tl.maximum(count_c + number_c, 1.0)
        mean_c += delta_c * share_c
        square_c += tl.sum(centred_tc * centred_tc, axis=0) + delta_c * delta_c * count_c * share_c
        count_c += number_c
    channel_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    out_c = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * channels + channel_c
    tl.store(mean_ptr + out_c, mean_c, mask=channel_c < channels)
    tl.store(square_ptr + out_c, square_c, mask=channel_c < channels)


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _apply_kernel(
    x_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    SILU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program: a tile of the result."""
    channel_c, inside_c, place_tc, inside_tc = _tile(tl.program_id(1) * BLOCK_T, rows, channels, BLOCK_T, BLOCK_C)
    image = tl.program_id(0).to(tl.int64)
    place_tc += image * rows * channels
    group_c = image * groups + channel_c // (channels // groups)
    mean_c = tl.load(mean_ptr + group_c, mask=inside_c, other=0.0)
    scale_c = tl.load(scale_ptr + group_c, mask=inside_c, other=0.0)
    weight_c = tl.load(weight_ptr + channel_c, mask=inside_c, other=0.0).to(tl.float32)
    bias_c = tl.load(bias_ptr + channel_c, mask=inside_c, other=0.0).to(tl.float32)
    x_tc = tl.load(x_ptr + place_tc, mask=inside_tc, other=0.0).to(tl.float32)
    y_tc = (x_tc - mean_c[None, :]) * scale_c[None, :] * weight_c[None, :] + bias_c[None, :]
    if SILU:
        y_tc = y_tc / (1.0 + tl.exp(-y_tc))
    tl.store(y_ptr + place_tc, y_tc.to(y_ptr.dtype.element_ty), mask=inside_tc)


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _backward_kernel(
    x_ptr: tl.tensor,
    gradient_ptr: tl.tensor,
    mean_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    bias_ptr: tl.tensor,
    first_ptr: tl.tensor,
    second_ptr: tl.tensor,
    out_ptr: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    SILU: tl.constexpr,
    SUMS: tl.constexpr,
    STRETCH: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """One program: a stretch.

    With SUMS it writes, per channel, the sum of the gradient after the affine map and that of its product with the
    normalised value into first and second (B, S, C); else it reads these, weighted and averaged over the group, from
    first and second (B, G) and writes the gradient of x.
    """
    image = tl.program_id(0).to(tl.int64)
    channel_c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside_c = channel_c < channels
    group_c = image * groups + channel_c // (channels // groups)
    mean_c = tl.load(mean_ptr + group_c, mask=inside_c, other=0.0)
    scale_c = tl.load(scale_ptr + group_c, mask=inside_c, other=0.0)
    weight_c = tl.load(weight_ptr + channel_c, mask=inside_c, other=0.0).to(tl.float32)
    bias_c = tl.load(bias_ptr + channel_c, mask=inside_c, other=0.0).to(tl.float32)
    first_c = tl.zeros((BLOCK_C,), tl.float32)
    second_c = tl.zeros((BLOCK_C,), tl.float32)
    if not SUMS:
        first_c = tl.load(first_ptr + group_c, mask=inside_c, other=0.0)
        second_c = tl.load(second_ptr + group_c, mask=inside_c, other=0.0)
    for offset in range(0, STRETCH, BLOCK_T):
        start = tl.program_id(1) * STRETCH + offset
        _, _, place_tc, inside_tc = _tile(start, rows, channels, BLOCK_T, BLOCK_C)
        place_tc += image * rows * channels
        x_tc = tl.load(x_ptr + place_tc, mask=inside_tc, other=0.0).to(tl.float32)
        gradient_tc = tl.load(gradient_ptr + place_tc, mask=inside_tc, other=0.0).to(tl.float32)
        normed_tc = (x_tc - mean_c[None, :]) * scale_c[None, :]
        if SILU:
            gradient_tc = _before_silu(gradient_tc, normed_tc * weight_c[None, :] + bias_c[None, :])
            gradient_tc = tl.where(inside_tc, gradient_tc, 0.0)
        if SUMS:
            first_c += tl.sum(gradient_tc, axis=0)
            second_c += tl.sum(gradient_tc * normed_tc, axis=0)
        else:
            centred_tc = gradient_tc * weight_c[None, :] - first_c[None, :] - normed_tc * second_c[None, :]
            x_gradient_tc = centred_tc * scale_c[None, :]
            tl.store(out_ptr + place_tc, x_gradient_tc.to(out_ptr.dtype.element_ty), mask=inside_tc)
    if SUMS:
        out_c = (image * tl.num_programs(1) + tl.program_id(1)) * channels + channel_c
        tl.store(first_ptr + out_c, first_c, mask=inside_c)
        tl.store(second_ptr + out_c, second_c, mask=inside_c)


def serves(norm: nn.Module, x_BCHW: Tensor) -> bool:
    """Whether the kernels take it: exactly an affine GroupNorm, channels last, fp32 or bf16, no groups of one value."""
    return (
        type(norm) is nn.GroupNorm
        and norm.affine
        and x_BCHW.dim() == 4
        and x_BCHW.shape[1] == norm.num_channels
        and x_BCHW.numel() > x_BCHW.shape[0] * norm.num_groups
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
        and {x_BCHW.dtype, norm.weight.dtype, norm.bias.dtype} <= KNOWN_TYPES
        and x_BCHW.device == norm.weight.device
        and triton.cdiv(x_BCHW.shape[2] * x_BCHW.shape[3], BLOCK_T) < 65536
    )


def group_norm(norm: nn.GroupNorm, x_BCHW: Tensor, silu: bool) -> Tensor:
    """The norm, and SiLU after it where wanted, of a map that `serves` takes; same type and layout as the map."""
    y_BCHW: Tensor = _GroupNorm.apply(x_BCHW, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return y_BCHW


def _grid(x_BCHW: Tensor, positions: int) -> tuple[int, int, int]:
    B, C, H, W = x_BCHW.shape
    return B, triton.cdiv(H * W, positions), triton.cdiv(C, BLOCK_C)


@torch.library.custom_op("rqvae::group_norm", mutates_args=())
def _forward_op(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Result, mean (B, G), reciprocal deviation (B, G)."""
    B, C, H, W = x_BCHW.shape
    grid = _grid(x_BCHW, STRETCH)
    mean_BSC, square_BSC = x_BCHW.new_empty((2, B, grid[1], C), dtype=torch.float32).unbind()
    _moments_kernel[grid](x_BCHW, mean_BSC, square_BSC, H * W, C, STRETCH=STRETCH, BLOCK_T=BLOCK_T, BLOCK_C=BLOCK_C)
    mean_BG, scale_BG = _moments_of_groups(mean_BSC, square_BSC, H * W, groups, eps)
    y_BCHW = torch.empty_like(x_BCHW)
    _apply_kernel[_grid(x_BCHW, BLOCK_T)](
        x_BCHW,
        mean_BG,
        scale_BG,
        weight_C.contiguous(),
        bias_C.contiguous(),
        y_BCHW,
        H * W,
        C,
        groups,
        SILU=silu,
        BLOCK_T=BLOCK_T,
        BLOCK_C=BLOCK_C,
    )
    return y_BCHW, mean_BG, scale_BG


def _moments_of_groups(
    mean_BSC: Tensor, square_BSC: Tensor, rows: int, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Joins the moments of stretches and channels, around one of them: a large mean costs no digits."""
    stretches = mean_BSC.shape[1]
    start_S = STRETCH * torch.arange(stretches, device=mean_BSC.device)
    count_S11 = (rows - start_S).clamp_max(STRETCH).float()[:, None, None]
    mean_BSGc, square_BSGc = mean_BSC.unflatten(2, (groups, -1)), square_BSC.unflatten(2, (groups, -1))
    total = rows * mean_BSGc.shape[3]
    near_B1G1 = mean_BSGc[:, :1, :, :1]
    delta_BSGc = mean_BSGc - near_B1G1
    shift_BG = (delta_BSGc * count_S11).sum((1, 3)) / total
    square_BSGc = square_BSGc + count_S11 * (delta_BSGc - shift_BG[:, None, :, None]).square()
    variance_BG = square_BSGc.sum((1, 3)) / total
    return near_B1G1[:, 0, :, 0] + shift_BG, torch.rsqrt(variance_BG + eps)


@torch.library.custom_op("rqvae::group_norm_backward", mutates_args=())
def _backward_op(
    gradient_BCHW: Tensor,
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    mean_BG: Tensor,
    scale_BG: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the map, of the weight and of the bias."""
    B, C, H, W = x_BCHW.shape
    groups, grid = mean_BG.shape[1], _grid(x_BCHW, STRETCH)
    gradient_BCHW = gradient_BCHW.contiguous(memory_format=torch.channels_last)
    weight_C, bias_C = weight_C.contiguous(), bias_C.contiguous()
    result_BCHW = torch.empty_like(x_BCHW)
    sums = x_BCHW.new_empty((2, B, grid[1], C), dtype=torch.float32)
    given = (x_BCHW, gradient_BCHW, mean_BG, scale_BG, weight_C, bias_C)
    sizes = (H * W, C, groups)
    blocks = {"SILU": silu, "STRETCH": STRETCH, "BLOCK_T": BLOCK_T, "BLOCK_C": BLOCK_C}
    _backward_kernel[grid](*given, sums[0], sums[1], result_BCHW, *sizes, SUMS=True, **blocks)
    sums_2BC = sums.sum(2)
    weighted_2BG = (sums_2BC * weight_C.float()).unflatten(2, (groups, -1)).sum(3) / (H * W * (C // groups))
    _backward_kernel[grid](*given, weighted_2BG[0], weighted_2BG[1], result_BCHW, *sizes, SUMS=False, **blocks)
    bias_gradient_C, weight_gradient_C = sums_2BC[0].sum(0), sums_2BC[1].sum(0)  # apart: results share no memory
    return result_BCHW, weight_gradient_C.to(weight_C.dtype), bias_gradient_C.to(bias_C.dtype)


@_forward_op.register_fake
def _(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool):  # type: ignore[no-untyped-def]  # as above
    moments = [x_BCHW.new_empty((x_BCHW.shape[0], groups), dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(x_BCHW), moments[0], moments[1]


@_backward_op.register_fake
def _(gradient_BCHW, x_BCHW, weight_C, bias_C, mean_BG, scale_BG, silu):  # type: ignore[no-untyped-def]  # as above
    return torch.empty_like(x_BCHW), torch.empty_like(weight_C), torch.empty_like(bias_C)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        y_BCHW, mean_BG, scale_BG = _forward_op(x_BCHW, weight_C, bias_C, groups, eps, silu)
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, mean_BG, scale_BG)
        ctx.silu = silu
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BCHW: Tensor) -> Any:
        return *_backward_op(gradient_BCHW, *ctx.saved_tensors, ctx.silu), None, None, None
