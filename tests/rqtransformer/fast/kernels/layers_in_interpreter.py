"""Run by test_layer_kernels.py with TRITON_INTERPRET=1: largest differences from the plain forms, one JSON line.

The interpreter cuts numbers off where they become bf16; a GPU rounds them.
"""

import json

import torch
import torch.nn.functional as F
from torch import Tensor

from rqtransformer.attention import SelfAttention
from rqtransformer.config import BlockConfig
from rqtransformer.fast.kernels.attention_triton import attend
from rqtransformer.fast.kernels.attention_triton import serves as attention_serves
from rqtransformer.fast.kernels.norm_triton import add_and_norm
from rqtransformer.fast.kernels.norm_triton import serves as norm_serves
from rqtransformer.kv_cache import KVCache

SLOTS = 40
# heads, heads of keys, features, ALiBi, type of the cache, filled slots
ATTENTION = [
    (4, 4, 8, False, torch.float32, [0, 1, 39]),
    (6, 2, 5, True, torch.float32, [0, 20]),
    (8, 1, 64, True, torch.float32, [17]),
    (2, 2, 256, False, torch.float32, [33]),
    (4, 2, 16, True, torch.bfloat16, [7]),
]
# width, type of x, of the residual, of the result; residual, bias, shift, centred
NORMS = [
    (1, torch.float32, torch.float32, torch.float32, True, True, True, False),
    (48, torch.float32, torch.float32, torch.float32, True, True, True, True),
    (100, torch.float32, torch.float32, torch.float32, True, False, False, False),
    (64, torch.bfloat16, torch.float32, torch.bfloat16, True, True, True, True),
    (64, torch.bfloat16, torch.bfloat16, torch.bfloat16, True, True, False, False),
    (64, torch.float32, torch.float32, torch.bfloat16, False, False, True, True),
    (64, torch.bfloat16, torch.float32, torch.float32, False, True, True, True),
]


def attention_difference(
    heads: int, kv_heads: int, features: int, alibi: bool, dtype: torch.dtype, filled: int
) -> dict:
    """Against the attention of the model, with a cache whose length is on the device; the caches must be equal."""
    config = BlockConfig(embed_dim=heads * features, n_head=heads, n_kv_head=kv_heads, head_dim=features, alibi=alibi)
    plain = SelfAttention(heads * features, config)
    cache = KVCache(2, 3, kv_heads, SLOTS, features, dtype=dtype, device="cpu", on_device=True)
    cache.memory.normal_()
    cache.advance(filled)
    mine = cache.memory[1].clone()
    mine[:, :, :, filled:] = float("nan")  # what is not filled is not looked at
    joint = torch.randn(3, 1, (heads + 2 * kv_heads) * features).to(dtype)
    parts = joint.split((heads * features, kv_heads * features, kv_heads * features), dim=-1)
    query, key, value = (part.unflatten(-1, (-1, features)).transpose(1, 2) for part in parts)
    slopes = None if plain.slopes is None else torch.tensor(plain.slopes)
    assert attention_serves(query, key, value, mine, cache.index, slopes)
    out = attend(query, key, value, mine, cache.index, slopes)
    keys, values = cache.write(1, torch.stack((key, value)))
    expected = plain._attend(query.to(dtype), keys, values, filled, cache.mask())
    same = torch.equal(mine[:, :, :, : filled + 1], cache.memory[1][:, :, :, : filled + 1])
    return {
        "case": f"{heads} {kv_heads} {features} {alibi} {dtype} {filled}",
        "cache": same and bool(mine[:, :, :, filled + 1 :].isnan().all()),
        "layout": out.transpose(1, 2).is_contiguous() and out.dtype == expected.dtype and out.shape == expected.shape,
        "difference": float((out.double() - expected.double()).abs().max()),
        "allowed": 2e-6 if dtype == torch.float32 else 3e-2,
    }


def plain_norm(total: Tensor, weight: Tensor, shift: Tensor | None, centred: bool) -> Tensor:
    """In fp32."""
    if centred:
        return F.layer_norm(total.float(), total.shape[1:], weight.float(), None if shift is None else shift.float())
    normed = F.rms_norm(total.float(), total.shape[1:], weight.float(), 1e-5)
    return normed if shift is None else normed + shift.float()


def norm_difference(
    width: int,
    x_type: torch.dtype,
    residual_type: torch.dtype,
    out_type: torch.dtype,
    has_residual: bool,
    has_bias: bool,
    has_shift: bool,
    centred: bool,
) -> dict:
    """Against the sum in fp32 and torch's norms."""
    x, residual = torch.randn(5, width).to(x_type), (torch.randn(5, width) * 3 + 1).to(residual_type)
    bias, weight, shift = torch.randn(3, width).to(x_type).unbind(0)
    given = (residual if has_residual else None, bias if has_bias else None, weight, shift if has_shift else None)
    assert norm_serves(x, *given, out_type)
    total, normed = add_and_norm(x, *given, out_type, epsilon=1e-5, centred=centred)
    expected = x.float() + (bias.float() if has_bias else 0) + (residual.float() if has_residual else 0)
    expected = expected.to(residual_type if has_residual else x_type)
    last_place = 0.0 if expected.dtype == torch.float32 else 2.0**-7
    difference = (normed.float() - plain_norm(total, weight, given[3], centred)).abs().max()
    return {
        "case": f"{width} {x_type} {residual_type} {out_type} {has_residual} {has_bias} {has_shift} {centred}",
        "sum": torch.allclose(total.float(), expected.float(), rtol=last_place, atol=0.0) and normed.dtype == out_type,
        "difference": float(difference),
        "allowed": 1e-5 if out_type == torch.float32 else 3e-2,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    attention = [attention_difference(*case, filled) for *case, lengths in ATTENTION for filled in lengths]
    print(json.dumps({"attention": attention, "norm": [norm_difference(*case) for case in NORMS]}))
