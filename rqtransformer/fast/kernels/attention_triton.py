"""Attention of one new position over a `KVCache` in one GPU kernel, which writes the position's key and value as well.

The length is read on the device, and only the slots it fills are read from the cache: the plain form reads all
`max_length` slots and hides what is not filled. Scores, softmax (online: Milakov and Gimelshein, 2018) and sums are
fp32; the plain form rounds ALiBi's falling scores, and in some of its kernels the weights, to the type of the cache.

One program serves the queries that share a head of keys, for one image: the rows of a code map are short (64 or 256
slots and the condition), so the slots are not split among programs. With batch 1 that leaves most of a GPU idle, but
such a step waits for the weights of the products.

Legend: B batch, A heads of queries, K heads of keys and values, S slots of the cache, F features per head;
g the queries of a program, s a block of slots, f the features, padded to powers of two.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KNOWN_TYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})
MAX_FEATURES = 256
MAX_QUERY_NUMBERS = 1024  # queries of a program times features, as padded
NUMBERS_PER_STEP = 4096  # products of queries and keys that a program keeps at a time
MIN_SLOTS, MAX_SLOTS = 16, 64


@triton.jit  # type: ignore[untyped-decorator]  # Triton carries no types
def _attend_kernel(
    query_ptr: tl.tensor,
    key_ptr: tl.tensor,
    value_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    values_ptr: tl.tensor,
    index_ptr: tl.tensor,
    slopes_ptr: tl.tensor,
    out_ptr: tl.tensor,
    query_image: tl.tensor,
    query_head: tl.tensor,
    key_image: tl.tensor,
    key_head: tl.tensor,
    value_image: tl.tensor,
    value_head: tl.tensor,
    kv_heads: tl.tensor,
    slots: tl.tensor,
    features: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    ALIBI: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
) -> None:
    """One program: one image and one head of keys. Strides are of images and of heads."""
    image, kv_head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    index = tl.load(index_ptr)
    member_g = tl.arange(0, BLOCK_G)
    head_g = kv_head * GROUP + member_g
    feature_f = tl.arange(0, BLOCK_F)
    inside_f = feature_f < features
    inside_gf = (member_g < GROUP)[:, None] & inside_f[None, :]
    stored = keys_ptr.dtype.element_ty

    query_place_gf = image * query_image + head_g[:, None] * query_head + feature_f[None, :]
    query_gf = tl.load(query_ptr + query_place_gf, mask=inside_gf, other=0.0).to(stored).to(tl.float32) * scale
    key_place_f = image * key_image + kv_head * key_head + feature_f
    value_place_f = image * value_image + kv_head * value_head + feature_f
    key_f = tl.load(key_ptr + key_place_f, mask=inside_f, other=0.0).to(stored)
    value_f = tl.load(value_ptr + value_place_f, mask=inside_f, other=0.0).to(stored)
    row = (image * kv_heads + kv_head) * slots
    new_f = (row + index) * features + feature_f
    written_f = feature_f < tl.where(index < slots, features, 0)
    tl.store(keys_ptr + new_f, key_f, mask=written_f)
    tl.store(values_ptr + new_f, value_f, mask=written_f)

    # The new position sees itself, from registers; its distance is 0.
    best_g = tl.sum(query_gf * key_f.to(tl.float32)[None, :], axis=1)
    mass_g = tl.full((BLOCK_G,), 1.0, tl.float32)
    out_gf = tl.zeros((BLOCK_G, BLOCK_F), tl.float32) + value_f.to(tl.float32)[None, :]
    if ALIBI:
        slope_g = tl.load(slopes_ptr + head_g, mask=member_g < GROUP, other=0.0)
    for start in range(0, index, BLOCK_S):
        slot_s = start + tl.arange(0, BLOCK_S)
        filled_s = slot_s < index
        place_sf = (row + slot_s)[:, None] * features + feature_f[None, :]
        mask_sf = filled_s[:, None] & inside_f[None, :]
        keys_sf = tl.load(keys_ptr + place_sf, mask=mask_sf, other=0.0).to(tl.float32)
        values_sf = tl.load(values_ptr + place_sf, mask=mask_sf, other=0.0).to(tl.float32)
        score_gs = tl.sum(query_gf[:, None, :] * keys_sf[None, :, :], axis=2)
        if ALIBI:
            score_gs -= slope_g[:, None] * (index - slot_s).to(tl.float32)[None, :]
        score_gs = tl.where(filled_s[None, :], score_gs, float("-inf"))
        higher_g = tl.maximum(best_g, tl.max(score_gs, axis=1))
        weight_gs = tl.exp(score_gs - higher_g[:, None])
        shrink_g = tl.exp(best_g - higher_g)
        mass_g = mass_g * shrink_g + tl.sum(weight_gs, axis=1)
        out_gf = out_gf * shrink_g[:, None] + tl.sum(weight_gs[:, :, None] * values_sf[None, :, :], axis=1)
        best_g = higher_g
    out_gf = out_gf / mass_g[:, None]
    out_place_gf = (image * kv_heads * GROUP + head_g[:, None]) * features + feature_f[None, :]
    tl.store(out_ptr + out_place_gf, out_gf.to(stored), mask=inside_gf)


def blocks(group: int, features: int) -> tuple[int, int, int]:
    """Queries, slots and features of a program's step."""
    block_g, block_f = triton.next_power_of_2(group), triton.next_power_of_2(features)
    return block_g, min(MAX_SLOTS, max(MIN_SLOTS, NUMBERS_PER_STEP // (block_g * block_f))), block_f


def serves(
    query_BA1F: Tensor,
    key_BK1F: Tensor,
    value_BK1F: Tensor,
    stored_2BKSF: Tensor,
    index: Tensor,
    slopes_A: Tensor | None = None,
) -> bool:
    """Whether `attend` knows these arguments; where it runs is `use_kernel`'s to say."""
    new = (query_BA1F, key_BK1F, value_BK1F)
    tensors = (*new, stored_2BKSF, index, *(() if slopes_A is None else (slopes_A,)))
    if not all(type(tensor) is Tensor and tensor.device == stored_2BKSF.device for tensor in tensors):
        return False
    if any(tensor.dim() != 4 or tensor.dtype not in KNOWN_TYPES for tensor in new) or stored_2BKSF.dim() != 5:
        return False
    batch, heads, one, features = query_BA1F.shape
    two, _, kv_heads, slots, _ = stored_2BKSF.shape
    return (
        two == 2
        and stored_2BKSF.shape == (2, batch, kv_heads, slots, features)
        and key_BK1F.shape == value_BK1F.shape == (batch, kv_heads, one, features)
        and one == 1
        and 1 <= features <= MAX_FEATURES
        and kv_heads >= 1
        and heads % kv_heads == 0
        and heads >= kv_heads
        and triton.next_power_of_2(heads // kv_heads) * triton.next_power_of_2(features) <= MAX_QUERY_NUMBERS
        and stored_2BKSF.dtype in KNOWN_TYPES
        and stored_2BKSF.is_contiguous()
        and all(tensor.stride(3) == 1 or features == 1 for tensor in new)
        and index.dtype == torch.int64
        and index.shape == (1,)
        and (
            slopes_A is None
            or (slopes_A.dtype == torch.float32 and slopes_A.shape == (heads,) and slopes_A.is_contiguous())
        )
    )


def attend(
    query_BA1F: Tensor,
    key_BK1F: Tensor,
    value_BK1F: Tensor,
    stored_2BKSF: Tensor,
    index: Tensor,
    slopes_A: Tensor | None = None,
) -> Tensor:
    """Writes the new key and value into their slot, attends over the filled slots -> (B, A, 1, F) in the cache's type.

    What `SelfAttention` does for one position with a cache whose length is on the device, and never waits for it. The
    result's transpose to (B, 1, A, F) is contiguous.

    Args:
        query_BA1F, key_BK1F, value_BK1F: of the new position; features are neighbours. A is a multiple of K.
        stored_2BKSF: one layer of the cache, contiguous.
        index: (1,), int64: how many slots are filled, which is where the new position goes. It must be below S.
        slopes_A: of ALiBi, fp32.
    """
    batch, heads, _, features = query_BA1F.shape
    kv_heads, slots = stored_2BKSF.shape[2:4]
    out_B1AF = torch.empty(batch, 1, heads, features, dtype=stored_2BKSF.dtype, device=stored_2BKSF.device)
    if batch:
        block_g, block_s, block_f = blocks(heads // kv_heads, features)
        _attend_kernel[(batch, kv_heads)](
            query_BA1F,
            key_BK1F,
            value_BK1F,
            stored_2BKSF[0],
            stored_2BKSF[1],
            index,
            index if slopes_A is None else slopes_A,
            out_B1AF,
            *query_BA1F.stride()[:2],
            *key_BK1F.stride()[:2],
            *value_BK1F.stride()[:2],
            kv_heads,
            slots,
            features,
            features**-0.5,
            GROUP=heads // kv_heads,
            ALIBI=slopes_A is not None,
            BLOCK_G=block_g,
            BLOCK_S=block_s,
            BLOCK_F=block_f,
            num_warps=4,
        )
    return out_B1AF.transpose(1, 2)
