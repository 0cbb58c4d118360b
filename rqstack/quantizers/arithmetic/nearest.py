"""Nearest code vectors without an N x K matrix.

Legend: N vectors, E code-vector size, K codebook size; n rows and k codes of one tile.

All searches run over tiles of distances that fit a byte budget, in fp32 and full matmul precision. The squared norm of
x is left out: it is the same for every code and changes neither the minimum nor a softmax. Under `torch.compile` and
`torch.export` a search is one operator, so nothing in it breaks or unrolls a graph.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from rqstack.quantizers.arithmetic.precision import full_precision_matmul
from rqstack.triton_kernels import trial_numbers, use_kernel

CPU_CHUNK_BYTES = 8 * 2**20  # larger temporaries pay page faults at every call
DEVICE_CHUNK_BYTES = 256 * 2**20
CPU_TILE_CODES = 4096  # codes of a tile: matrix products with few rows and many columns are slow
DEVICE_TILE_CODES = 65536
MAX_TILE_ROWS = 65536
MIN_CHUNK_ROWS = 16
LOWEST_EXPONENT = -87.0  # a natural exponent whose power is still a normal fp32 number; powers up to
LOWEST_WEIGHT = 1.7e-38  # this one, which is just above it, count as zero
BLOCK = 128  # codes whose minimum is taken before an index is asked for
# Environment variable: '1' or 'ieee' searches with the Triton kernel where it can run, 'tf32x3' with faster products.
FUSED_SWITCH = "RQVAE_FUSED_SEARCH"
FUSED_PRECISIONS = {"": None, "0": None, "1": "ieee", "ieee": "ieee", "tf32x3": "tf32x3"}


def rows_per_chunk(num_codes: int, device: torch.device) -> int:
    """Rows whose distances to `num_codes` codes fit the byte budget of the device."""
    budget = CPU_CHUNK_BYTES if device.type == "cpu" else DEVICE_CHUNK_BYTES
    return max(MIN_CHUNK_ROWS, budget // (4 * num_codes))


def tile_shape(num_codes: int, device: torch.device) -> tuple[int, int]:
    """Rows and codes of a tile of distances within the byte budget; the codes are spread evenly over the tiles."""
    limit = CPU_TILE_CODES if device.type == "cpu" else DEVICE_TILE_CODES
    codes = num_codes
    if num_codes > limit:
        codes = -(-num_codes // -(-num_codes // limit))
        codes = -(-codes // BLOCK) * BLOCK
    return min(MAX_TILE_ROWS, rows_per_chunk(codes, device)), codes


def squared_norms(weight_KE: Tensor) -> Tensor:
    """|e_k|^2 of every code vector (K,), without a second K x E matrix."""
    parts = weight_KE.split(rows_per_chunk(weight_KE.shape[1], weight_KE.device))
    return torch.cat([part.square().sum(1) for part in parts])


def _norms(weight_KE: Tensor, inner: bool) -> Tensor:
    """What stands beside -2 x.e: |e|^2 for distances, nothing for inner products."""
    return weight_KE.new_zeros(len(weight_KE)) if inner else squared_norms(weight_KE)


def _tiles(x_NE: Tensor, weight_KE: Tensor, inner: bool = False) -> Iterator[tuple[slice, int, Tensor]]:
    """(Rows, first code, squared distances (n, k) up to a constant per row) of all tiles, code by code of few rows.

    The distances lie in scratch memory that the next tile overwrites. inner: minus twice the inner products instead.
    """
    x_NE, weight_KE = x_NE.float(), weight_KE.float()
    norm_K = _norms(weight_KE, inner)
    rows, codes = tile_shape(len(weight_KE), x_NE.device)
    rows = max(1, min(rows, len(x_NE)))
    scratch = x_NE.new_empty(rows * codes)
    for start in range(0, len(x_NE), rows):
        part_nE = x_NE[start : start + rows]
        for first in range(0, len(weight_KE), codes):
            tile_kE = weight_KE[first : first + codes]
            out_nk = scratch[: len(part_nE) * len(tile_kE)].view(len(part_nE), len(tile_kE))
            with full_precision_matmul(x_NE.device):
                torch.addmm(norm_K[first : first + codes], part_nE, tile_kE.T, alpha=-2, out=out_nk)
            yield slice(start, start + rows), first, out_nk


def _search(x_NE: Tensor, weight_KE: Tensor, inner: bool = False) -> Tensor:
    """The code with the lowest score of every row."""
    codes_N = torch.empty(len(x_NE), dtype=torch.int64, device=x_NE.device)
    for rows, first, score_nk in _tiles(x_NE, weight_KE, inner):
        value_n, index_n = _lowest(score_nk)
        found_n = codes_N[rows]
        if first == 0:
            best_n = value_n
            found_n.copy_(index_n)
        else:  # only what is strictly lower replaces a code, so the lowest index stays
            found_n.copy_(torch.where(value_n < best_n, index_n + first, found_n))
            best_n = torch.minimum(value_n, best_n)
    return codes_N


def _lowest(score_nk: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest entry of every row and the first index where it stands.

    On a CPU a minimum without an index is 5 times faster than one with it. So the minimum of every block of codes comes
    first, then the index of a block, then the index inside that block.
    """
    num_codes = score_nk.shape[1]
    whole = num_codes // BLOCK * BLOCK
    if score_nk.device.type != "cpu" or whole < 4 * BLOCK:
        return score_nk.min(1)
    blocks_nbk = score_nk[:, :whole].unflatten(1, (-1, BLOCK))
    value_n, block_n = blocks_nbk.amin(2).min(1)
    inside_nk = blocks_nbk.gather(1, block_n[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    index_n = block_n * BLOCK + inside_nk.argmin(1)
    if whole == num_codes:
        return value_n, index_n
    rest_n, rest_index_n = score_nk[:, whole:].min(1)
    return torch.minimum(value_n, rest_n), torch.where(rest_n < value_n, rest_index_n + whole, index_n)


@torch.no_grad()
def nearest_codes(x_NE: Tensor, weight_KE: Tensor, inner: bool = False) -> Tensor:
    """Index of the nearest code vector of every row (int64, (N,)); the lowest index among equals. # Eq. 1

    inner: the code vector with the largest inner product instead.
    """
    if torch.compiler.is_compiling():
        codes_N: Tensor = _nearest_op(x_NE, weight_KE, inner)
        return codes_N
    return _nearest(x_NE, weight_KE, inner)


def _nearest(x_NE: Tensor, weight_KE: Tensor, inner: bool) -> Tensor:
    precision = _fused_precision(x_NE.device)
    if precision is not None:
        from rqstack.quantizers.arithmetic import nearest_triton

        norm_K = _norms(weight_KE.float(), inner)
        return nearest_triton.fused_nearest_codes(x_NE.float(), weight_KE.float(), norm_K, precision)
    return _search(x_NE, weight_KE, inner=inner)


def wanted_precision() -> str | None:
    """Of the products of the Triton kernel, as the environment asks for it; None: it is not wanted.

    Raises:
        ValueError: for a value of the switch that is none.
    """
    value = os.environ.get(FUSED_SWITCH, "")
    if value not in FUSED_PRECISIONS:
        choices = ", ".join(filter(None, FUSED_PRECISIONS))
        raise ValueError(f"{FUSED_SWITCH}={value[:100]!r} (environment) must be one of {choices}")
    return FUSED_PRECISIONS[value]


def _fused_precision(device: torch.device) -> str | None:
    """`wanted_precision`, where the kernel may serve tensors of this device."""
    precision = wanted_precision()
    return precision if precision is not None and use_kernel(nearest_trial, device) else None


def nearest_trial(device: torch.device) -> bool:
    """Whether the Triton kernel finds the plain search's codes on this device, with products of every precision."""
    from rqstack.quantizers.arithmetic import nearest_triton

    # the nearest code of every vector lies by far closer than the second
    weight_KE = trial_numbers(300, 48, device=device)
    wanted_N = torch.arange(0, 300, 7, device=device)
    x_NE = weight_KE[wanted_N] + 0.1 * trial_numbers(len(wanted_N), 48, device=device, pace=0.41)
    norm_K = squared_norms(weight_KE)
    found = [nearest_triton.fused_nearest_codes(x_NE, weight_KE, norm_K, name) for name in nearest_triton.PRECISIONS]
    return all(torch.equal(codes_N, wanted_N) for codes_N in (_search(x_NE, weight_KE), *found))


@torch.no_grad()
def sampled_codes(x_NE: Tensor, weight_KE: Tensor, temp: float, generator: torch.Generator | None = None) -> Tensor:
    """One draw per row from softmax(-squared distance / temp), without keeping the probabilities. # Eq. 12

    Inversion: one uniform number per row and tile finds the code whose share of the running sum it falls into. Random
    numbers for every code (the Gumbel trick) cost more than the distances, and on a CPU they come from one thread.
    """
    check_temperature(temp)
    if generator is None and torch.compiler.is_compiling():
        codes_N: Tensor = _sampled_op(x_NE, weight_KE, temp)
        return codes_N
    return _sampled(x_NE, weight_KE, temp, generator)


def _sampled(x_NE: Tensor, weight_KE: Tensor, temp: float, generator: torch.Generator | None = None) -> Tensor:
    codes_N = torch.empty(len(x_NE), dtype=torch.int64, device=x_NE.device)
    for rows, first, distance_nk in _tiles(x_NE, weight_KE):
        uniform_2n = torch.rand(2, len(distance_nk), device=x_NE.device, generator=generator)
        log_mass_n, index_n = _draw(distance_nk, temp, uniform_2n[0])
        found_n = codes_N[rows]
        if first == 0:
            log_total_n = log_mass_n
            found_n.copy_(index_n)
        else:  # a later tile takes over with its share of the mass so far
            log_total_n = torch.logaddexp(log_total_n, log_mass_n)
            takes_over_n = uniform_2n[1] < (log_mass_n - log_total_n).exp()
            found_n.copy_(torch.where(takes_over_n, index_n + first, found_n))
    return codes_N


def _draw(distance_nk: Tensor, temp: float, uniform_n: Tensor) -> tuple[Tensor, Tensor]:
    """One draw per row from softmax(-distance / temp), and the logarithm of the sum of exp(-distance / temp).

    The distances are overwritten. First a block of codes is drawn, then a code of it: running sums are slow.
    """
    lowest_n = distance_nk.amin(1)
    # where exp underflows it is 10 to 40 times slower on a CPU, so what comes close is cut off, before and after
    weight_nk = distance_nk.sub_(lowest_n.unsqueeze(1)).mul_(-1.0 / temp).clamp_(min=LOWEST_EXPONENT).exp_()
    weight_nk = torch.threshold_(weight_nk, LOWEST_WEIGHT, 0.0)
    num_codes = weight_nk.shape[1]
    if num_codes % BLOCK or num_codes < 4 * BLOCK:
        sums_nk = weight_nk.cumsum(1)
        total_n = sums_nk[:, -1]
        index_n, _ = _pass(sums_nk, uniform_n * total_n)
    else:
        blocks_nbk = weight_nk.unflatten(1, (-1, BLOCK))
        sums_nb = blocks_nbk.sum(2).cumsum(1)
        total_n = sums_nb[:, -1]
        block_n, rest_n = _pass(sums_nb, uniform_n * total_n)
        inside_nk = blocks_nbk.gather(1, block_n[:, None, None].expand(-1, 1, BLOCK))[:, 0]
        index_n = block_n * BLOCK + _pass(inside_nk.cumsum(1), rest_n)[0]
    return total_n.log() - lowest_n / temp, index_n


def _pass(sums_nm: Tensor, threshold_n: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry whose running sum is above the threshold, and how far the threshold reaches into it.

    Rounding may lift a threshold to the whole sum; it is kept below, so that an entry of no weight is never found.
    """
    last_n = sums_nm[:, -1]
    threshold_n = torch.minimum(threshold_n, torch.nextafter(last_n, torch.zeros_like(last_n)))
    index_n1 = torch.searchsorted(sums_nm, threshold_n.unsqueeze(1), right=True).clamp_(max=sums_nm.shape[1] - 1)
    before_n1 = sums_nm.gather(1, (index_n1 - 1).clamp_(min=0)) * (index_n1 > 0)
    return index_n1.squeeze(1), threshold_n - before_n1.squeeze(1)


@torch.library.custom_op("rqstack::nearest_codes", mutates_args=())
def _nearest_op(x_NE: Tensor, weight_KE: Tensor, inner: bool = False) -> Tensor:
    """The search as one node of a graph. Autocast is off again: a graph does not remember that it was."""
    with torch.autocast(x_NE.device.type, enabled=False):
        return _nearest(x_NE, weight_KE, inner)


@torch.library.custom_op("rqstack::sampled_codes", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _sampled_op(x_NE: Tensor, weight_KE: Tensor, temp: float) -> Tensor:
    with torch.autocast(x_NE.device.type, enabled=False):
        return _sampled(x_NE, weight_KE, temp)


@_nearest_op.register_fake
@_sampled_op.register_fake
def _(x_NE: Tensor, weight_KE: Tensor, setting: float = 1.0) -> Tensor:
    return x_NE.new_empty(len(x_NE), dtype=torch.int64)


@torch.no_grad()
def soft_code_probs(x_NE: Tensor, weight_KE: Tensor, temp: float) -> Tensor:
    """softmax over k of -|x - e_k|^2 / temp, (N, K) fp32. # Eq. 12. The result itself is N x K: for small inputs."""
    check_temperature(temp)
    x_NE, weight_KE = x_NE.float(), weight_KE.float()
    with full_precision_matmul(x_NE.device):
        distance_NK = torch.addmm(squared_norms(weight_KE), x_NE, weight_KE.T, alpha=-2)
    return distance_NK.mul_(-1.0 / temp).softmax(1)


def check_temperature(temp: float) -> None:
    """A soft code needs a positive temperature."""
    if not temp > 0:
        raise ValueError(f"temp must be positive, got {temp}")
