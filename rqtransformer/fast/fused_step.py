"""One new position through a packed stack on a GPU: eight kernels a layer, two of them fused ones.

The arithmetic of `TransformerStack.forward`, where sums of products, bias and residual are rounded once. The fused
kernels are those of `fast.kernels`: attention over the slots that are filled, which writes the new one; and sum, bias,
norm and cast. Not verified on a GPU; tested in Triton's interpreter against the plain forward.

Legend: B batch, C width, A attention heads, K heads of keys and values, F features per attention head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rqstack.triton_kernels import alike, trial_numbers
from rqtransformer.attention import Block, LayerNorm, has_exact_gelu, slopes_on
from rqtransformer.fast.packing import PackedLinear
from rqtransformer.kv_cache import KVCache


def layers_trial(device: torch.device) -> bool:
    """Whether the kernels give what attention and norms by their definitions give on this device."""
    return all(
        _attends(device, dtype, tolerance) and _normalises(device, dtype, tolerance)
        for dtype, tolerance in ((torch.float32, 1e-2), (torch.bfloat16, 3e-2))  # products may be TF32
    )


def _attends(device: torch.device, dtype: torch.dtype, tolerance: float) -> bool:
    from rqtransformer.fast.kernels import attention_triton

    heads, kv_heads, features, filled = 4, 2, 64, 37
    query, key, value = (
        2 * trial_numbers(3, count, 1, features, device=device, dtype=dtype, pace=pace)
        for count, pace in ((heads, 0.31), (kv_heads, 0.53), (kv_heads, 0.71))
    )
    stored_2BKSF = trial_numbers(2, 3, kv_heads, 64, features, device=device, dtype=dtype)
    whole_2BKSF = torch.cat((stored_2BKSF[:, :, :, :filled], torch.stack((key, value))), dim=3)
    keys, values = whole_2BKSF.double().repeat_interleave(heads // kv_heads, dim=2)
    slopes_A = slopes_on(device, heads)
    fall_AS = -slopes_A.double().unsqueeze(1) * torch.arange(filled, -1, -1, device=device)
    scores = query.double() @ keys.transpose(2, 3) * features**-0.5 + fall_AS.unsqueeze(1)
    index = torch.full((1,), filled, device=device)
    found = attention_triton.attend(query, key, value, stored_2BKSF, index, slopes_A)
    written = torch.equal(stored_2BKSF[:, :, :, : filled + 1], whole_2BKSF)
    return written and alike(found, scores.softmax(dim=-1) @ values, tolerance)


def _normalises(device: torch.device, dtype: torch.dtype, tolerance: float) -> bool:
    from rqtransformer.fast.kernels import norm_triton

    x_RC, residual_RC = (trial_numbers(5, 192, device=device, dtype=dtype, pace=pace) for pace in (0.29, 0.47))
    bias_C, weight_C, shift_C = trial_numbers(3, 192, device=device, dtype=dtype)
    for centred in (True, False):
        shift = shift_C if centred else None
        found = norm_triton.add_and_norm(
            x_RC, residual_RC, bias_C, weight_C, shift, dtype, epsilon=1e-5, centred=centred
        )
        sum_RC = x_RC.double() + bias_C.double() + residual_RC.double()
        if centred:
            normed_RC = F.layer_norm(sum_RC, (192,), weight_C.double(), shift_C.double(), 1e-5)
        else:
            normed_RC = F.rms_norm(sum_RC, (192,), weight_C.double(), 1e-5)
        if not (alike(found.sum, sum_RC, tolerance) and alike(found.normed, normed_RC, tolerance)):
            return False
    return True


class FusedStep:
    """A step with fused kernels.

    Everything that it reads is a parameter, a packed weight or the cache: a recording outlives the step.

    Args:
        blocks: those that `packed_step.knows_blocks`.
        maps: joint query-key-value, output, up and down map of every block, in the plain layout.
    """

    def __init__(self, blocks: Sequence[Block], maps: Sequence[Sequence[PackedLinear]]):
        first = blocks[0]
        self._blocks, self._maps = list(blocks), [list(four) for four in maps]
        self._heads = first.attn.num_heads, first.attn.kv_heads, first.attn.head_dim
        self._alibi = first.attn.slopes is not None
        self._exact_gelu, self._activation = has_exact_gelu(first.mlp), first.mlp[1]

    def fits(self, cache: KVCache, x_B1C: Tensor) -> bool:
        """Whether the kernels know this input and this cache."""
        from rqtransformer.fast.kernels import attention_triton, norm_triton

        if type(cache) is not KVCache or x_B1C.shape[1] != 1:
            return False
        heads, kv_heads, features = self._heads
        dtype, x_BC = self._maps[0][0].dtype, x_B1C.squeeze(1).contiguous()
        row_BC = x_BC.new_empty(len(x_BC), heads * features, dtype=dtype).view(len(x_BC), heads, 1, features)
        slopes_A = slopes_on(x_BC.device, heads) if self._alibi else None
        new = row_BC, row_BC[:, :kv_heads], row_BC[:, :kv_heads]
        return attention_triton.serves(*new, cache.layer(0), cache.filled(), slopes_A) and all(
            norm_triton.serves(x_BC, None, None, *_weights_of(norm), dtype)
            for block in self._blocks
            for norm in (block.ln1, block.ln2)
        )

    def __call__(self, x_BC: Tensor, cache: KVCache) -> Tensor:
        """One position (B, C) through all layers; the cache takes its keys and values and moves on."""
        index = cache.filled()
        slopes_A = slopes_on(x_BC.device, self._heads[0]) if self._alibi else None
        norms = [norm for block in self._blocks for norm in (block.ln1, block.ln2)]
        x_BC, normed_BC = self._add(x_BC.contiguous(), None, None, norms[0])
        for number, (joint, proj, up, down) in enumerate(self._maps):
            out_BC = self._attend(joint(normed_BC), cache.layer(number), index, slopes_A)
            x_BC, normed_BC = self._add(proj.product(out_BC.to(proj.dtype)), x_BC, proj.bias, norms[2 * number + 1])
            hidden = up(normed_BC, gelu=self._exact_gelu)
            out_BC = down.product(hidden if self._exact_gelu else self._activation(hidden))
            if number + 1 < len(self._maps):
                x_BC, normed_BC = self._add(out_BC, x_BC, down.bias, norms[2 * number + 2])
            else:
                x_BC = x_BC + (out_BC if down.bias is None else out_BC + down.bias)
        cache.advance(1)
        return x_BC

    def _attend(self, joint: Tensor, stored_2BKSF: Tensor, index: Tensor, slopes_A: Tensor | None) -> Tensor:
        """Joint query, key and value row of every image -> attention output (B, A*F)."""
        from rqtransformer.fast.kernels import attention_triton

        heads, kv_heads, features = self._heads
        parts = joint.split((heads * features, kv_heads * features, kv_heads * features), dim=-1)
        query, key, value = (part.unflatten(-1, (-1, features)).unsqueeze(2) for part in parts)
        out_BA1F = attention_triton.attend(query, key, value, stored_2BKSF, index, slopes_A)
        return out_BA1F.transpose(1, 2).flatten(1)

    def _add(self, x_BC: Tensor, residual_BC: Tensor | None, bias_C: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
        """(x + bias + residual, its norm in the type of the products)."""
        from rqtransformer.fast.kernels import norm_triton

        epsilon = torch.finfo(norm.weight.dtype).eps if norm.eps is None else norm.eps
        return norm_triton.add_and_norm(
            x_BC,
            residual_BC,
            bias_C,
            *_weights_of(norm),
            self._maps[0][0].dtype,
            epsilon=epsilon,
            centred=isinstance(norm, LayerNorm),
        )


def _weights_of(norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and shift."""
    return norm.weight.detach(), norm.bias.detach() if isinstance(norm, LayerNorm) else None
