"""The packed step against the general forward, for every kind of block, compiled and not."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch

from rqtransformer.config import BlockConfig, StackConfig
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.stack import TransformerStack

BLOCKS = {
    "published": {},
    "fast gelu, no biases": {"gelu": "v2", "attn_bias": False, "mlp_bias": False},
    "rms norm": {"norm": "rms"},
    "wide heads": {"head_dim": 32},
    "one key head": {"n_kv_head": 1},
    "shared key heads, wide": {"n_kv_head": 2, "head_dim": 12, "mlp_ratio": 2},
    "alibi": {"alibi": True},
    "alibi, shared key heads": {"alibi": True, "n_kv_head": 2, "norm": "rms"},
}


def build_stack(changes: dict) -> TransformerStack:
    torch.manual_seed(0)
    stack = TransformerStack(32, StackConfig(n_layer=2, block=BlockConfig(n_head=4, **changes))).eval()
    for parameter in stack.parameters():
        parameter.requires_grad_(False).add_(torch.randn_like(parameter) * 0.1)
    return stack


def counted(stack: TransformerStack) -> list[int]:
    """Counts the steps of a packed stack."""
    calls, step = [], stack.packed_step
    stack.packed_step = Mock(side_effect=lambda *given: calls.append(1) or step(*given), fits=step.fits)
    return calls


@pytest.mark.parametrize("changes", BLOCKS.values(), ids=BLOCKS.keys())
def test_steps_equal_the_forward_without_a_cache(changes, either_path):
    stack, x_BLC = build_stack(changes), torch.randn(3, 9, 32)
    expected = stack(x_BLC)
    stack.pack(WeightFormat())
    calls = counted(stack)
    cache = stack.new_cache(3, 9, torch.float32, "cpu")
    for given in (0, 4):
        cache.reset()
        pieces = [stack(x_BLC[:, :given], cache)] if given else []
        pieces += [stack(piece, cache) for piece in x_BLC[:, given:].split(1, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-5)
    assert len(calls) == 9 + 5
    with pytest.raises(AssertionError, match="cache of 9 positions cannot take 10"):
        stack(x_BLC[:, :1], cache)


@pytest.mark.parametrize("changes", BLOCKS.values(), ids=BLOCKS.keys())
def test_a_row_is_the_same_bits_in_any_batch(changes, either_path):
    stack, x_BLC = build_stack(changes), torch.randn(64, 3, 32)
    stack.pack(WeightFormat())

    def run(rows: torch.Tensor) -> torch.Tensor:
        cache = stack.new_cache(len(rows), 3, torch.float32, "cpu")
        return torch.cat([stack(piece, cache) for piece in rows.split(1, dim=1)], dim=1)

    together = run(x_BLC)
    for size in (1, 2, 7, 16, 33):
        assert torch.equal(torch.cat([run(part) for part in x_BLC.split(size)]), together)
