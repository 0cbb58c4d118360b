"""Run by test_group_norm_triton.py with TRITON_INTERPRET=1: largest differences from fp64, one JSON line.

The interpreter cuts numbers off where they become bf16; a GPU rounds them.
"""

import json

import torch
import torch.nn.functional as F

from rqvae.group_norm_triton import group_norm, serves

# images, channels, rows, columns, type, mean of the map, SiLU
CASES = [
    (2, 64, 5, 7, torch.float32, 0.0, True),
    (1, 96, 4, 4, torch.float32, 0.0, True),
    (1, 64, 1, 1, torch.float32, 0.0, True),
    (3, 64, 1, 1, torch.float32, 0.0, False),
    (1, 160, 17, 16, torch.float32, 0.0, False),
    (2, 64, 18, 18, torch.float32, 1000.0, True),
    (2, 64, 9, 6, torch.bfloat16, 0.0, True),
    (1, 128, 3, 3, torch.bfloat16, 3.0, False),
]


def differences(B: int, C: int, H: int, W: int, dtype: torch.dtype, offset: float, silu: bool) -> dict:
    """Values and gradients against fp64, as shares of the largest one, beside those of PyTorch's own in fp32."""
    norm = torch.nn.GroupNorm(32, C, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    map_BCHW = (torch.randn(B, C, H, W) + offset).to(dtype).contiguous(memory_format=torch.channels_last)
    upstream_BCHW = torch.randn(B, C, H, W).to(dtype)

    def run(work, kind: torch.dtype) -> list[torch.Tensor]:
        given = [value.detach().to(kind).requires_grad_() for value in (map_BCHW, norm.weight, norm.bias)]
        result = work(*given)
        gradients = torch.autograd.grad(result, given, upstream_BCHW.to(result.dtype))
        return [value.detach().double() for value in (result, *gradients)]

    def plain(x, weight, bias):
        result = F.group_norm(x, 32, weight, bias, 1e-6)
        return F.silu(result) if silu else result

    assert serves(norm, map_BCHW)
    entry = map_BCHW.detach().requires_grad_()
    result = group_norm(norm, entry, silu)
    gradients = torch.autograd.grad(result, [entry, norm.weight, norm.bias], upstream_BCHW)
    ours = [value.detach().double() for value in (result, *gradients)]
    exact, usual = run(plain, torch.float64), run(plain, torch.float32)

    def shares(found: list[torch.Tensor]) -> list[float]:
        return [float((a - b).abs().max() / (b.abs().max() + 1e-3)) for a, b in zip(found, exact, strict=True)]

    kept = result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    return {"case": [B, C, H, W, str(dtype), offset, silu], "kept": kept, "ours": shares(ours), "usual": shares(usual)}


def main() -> None:
    torch.manual_seed(0)
    print(json.dumps([differences(*case) for case in CASES]))


if __name__ == "__main__":
    main()
