"""How codes become vectors: the stage-1 model as seen from here, the token tables and the classifiers.

Legend: B batch, C width (or image channels in BCHW), H W grid, D code depth, E code-vector size, K codebook size,
V vocabulary; `...` any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rqtransformer.fast.packing import PackedLinear, PackedSlot
from rqtransformer.fast.served import is_plain
from rqtransformer.fast.weight_format import WeightFormat


@runtime_checkable
class ImageTokenizer(Protocol):
    """All that stage 2 needs of stage 1. `rqvae.RQVAE` is one; so is anything else with these methods."""

    def get_codes(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] -> hard codes (B, H, W, D), int64."""
        ...

    def get_soft_codes(self, image_BCHW: Tensor, temp: float, stochastic: bool) -> tuple[Tensor, Tensor]:
        """Images -> (probabilities of every code (B, H, W, D, K), codes (B, H, W, D))."""
        ...

    def get_latent_targets(self, image_BCHW: Tensor, temp: float, stochastic: bool) -> tuple[Tensor, Tensor]:
        """Images -> (what was left to quantize at each depth (B, H, W, D, E), codes (B, H, W, D))."""
        ...

    def embed_code_with_depth(self, codes_BHWD: Tensor) -> Tensor:
        """Codes -> their code vectors (B, H, W, D, E), neither summed nor cumulated."""
        ...

    def decode_code(self, codes_BHWD: Tensor) -> Tensor:
        """Codes -> images in [-1, 1]."""
        ...

    def codebook(self, depth: int) -> Tensor:
        """The code vectors (K, E) of one depth."""
        ...


class SharedTokenEmbedding(nn.Embedding):
    """One table for all depths."""

    def table(self, depth: int) -> Tensor:
        """Rows that the codes of this depth select."""
        return self.weight


class DepthTokenEmbedding(nn.Module):
    """One table per depth, kept as slices of one weight."""

    def __init__(self, vocab_sizes: Sequence[int], embed_dim: int):
        super().__init__()
        self.vocab_sizes = list(vocab_sizes)
        self._starts = [sum(self.vocab_sizes[:depth]) for depth in range(len(self.vocab_sizes))]
        self.weight = nn.Parameter(torch.empty(sum(self.vocab_sizes), embed_dim))
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(self._starts))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the table, and sets where each depth's rows start."""
        nn.init.normal_(self.weight, std=0.02)
        self.offsets = torch.tensor(self._starts, device=self.offsets.device)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (..., D) -> vectors (..., D, C)."""
        return F.embedding(codes + self.offsets, self.weight)

    def table(self, depth: int) -> Tensor:
        """Rows that the codes of this depth select."""
        return self.weight[self._starts[depth] : self._starts[depth] + self.vocab_sizes[depth]]


class CodeClassifier(nn.Module):
    """Head outputs -> logits: a layer norm, then one linear map for all depths or one per depth.

    Logits beyond a depth's own vocabulary are very low but finite: probability 0, no gradient, and no NaN in a loss.
    """

    def __init__(self, embed_dim: int, vocab_sizes: Sequence[int], shared: bool):
        super().__init__()
        self.vocab_sizes, self.shared = list(vocab_sizes), shared
        self._largest = max(vocab_sizes)
        self.layer_norm = nn.LayerNorm(embed_dim)
        self.linear: nn.Linear | DepthLinear
        if shared:
            self.linear = nn.Linear(embed_dim, self._largest)
        else:
            self.linear = DepthLinear(len(self.vocab_sizes), embed_dim, self._largest)
        self.slots = [PackedSlot() for _ in range(1 if shared else len(self.vocab_sizes))]

    def forward(self, x: Tensor) -> Tensor:
        """All depths: (..., D, C) -> (..., D, V)."""
        logits = self.linear(self.layer_norm(x))
        for depth, size in enumerate(self.vocab_sizes):
            if size < self._largest:
                logits[..., depth, size:] = _impossible(logits.dtype)
        return logits

    def at_depth(self, x_BC: Tensor, depth: int) -> Tensor:
        """One depth: (B, C) -> (B, V)."""
        x_BC = self.layer_norm(x_BC)
        packed = self.packed_at(depth)
        if packed is not None:
            logits = packed(x_BC)
        else:
            linear = self.linear
            logits = linear.at_depth(x_BC, depth) if isinstance(linear, DepthLinear) else linear(x_BC)
        if self.vocab_sizes[depth] < self._largest:
            logits[..., self.vocab_sizes[depth] :].fill_(_impossible(logits.dtype))
        return logits

    def packed_at(self, depth: int) -> PackedLinear | None:
        """The packed map of one depth, while there is one."""
        return self.slots[0 if self.shared else depth].active

    def pack(self, form: WeightFormat) -> None:
        """Packed weights for `at_depth`, until `unpack`."""
        linear = self.linear
        if not isinstance(linear, DepthLinear):
            self.slots[0].fill_from((linear,), form)
        elif is_plain(linear, DepthLinear):
            for slot, weight_CV, bias_V in zip(self.slots, linear.weight, linear.bias):
                slot.fill([weight_CV.T], [bias_V], form)
        else:
            self.unpack(keep=False)

    def unpack(self, keep: bool) -> None:
        """Back to the parameters; `keep` leaves the packed copies for the next time."""
        for slot in self.slots:
            slot.unpack(keep)


def _impossible(dtype: torch.dtype) -> float:
    # Half of the lowest number, so that rounding to bfloat16 or dividing by a temperature does not make it infinite.
    return torch.finfo(dtype).min / 2


class DepthLinear(nn.Module):
    """A linear map per depth: weight (D, C, V), bias (D, V)."""

    def __init__(self, depth: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(depth, in_features, out_features))
        self.bias = nn.Parameter(torch.empty(depth, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights; the biases start at 0."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D, C) -> (..., D, V)."""
        x_DNC = x.flatten(0, -3).transpose(0, 1)
        out_DNV = torch.baddbmm(self.bias.unsqueeze(1), x_DNC, self.weight)
        return out_DNV.transpose(0, 1).unflatten(0, x.shape[:-2])

    def at_depth(self, x_BC: Tensor, depth: int) -> Tensor:
        """(B, C) -> (B, V) with the map of one depth."""
        return torch.addmm(self.bias[depth], x_BC, self.weight[depth])
