"""What the residual scalar quantizers share: code vectors of all levels, and groups of channels.

Legend: B batch, C scalars of a code vector, q levels, g groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rqstack.quantizers.compat.vector_quantize_pytorch.errors import require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_dropout import draw_seed


def all_level_vectors(indices: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """Indices (B, ..., q) -> the vectors (B, ..., C) of every level, by its `indices_to_vectors`; zero for -1."""
    parts = indices.unbind(-1)
    found = [layer.indices_to_vectors(part.clamp(min=0)) for layer, part in zip(layers, parts, strict=True)]
    return [torch.where(part[..., None] >= 0, vectors, 0.0) for part, vectors in zip(parts, found, strict=True)]


class GroupedLevels(nn.Module):
    """Channels split evenly over `groups` residual modules, made by `make` from their size.

    accept_image_fmap: channels come second. moved: the groups take channels second themselves; otherwise they get them
    last.
    """

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool, make: Callable[[int], nn.Module], moved: bool):
        super().__init__()
        require(dim % groups == 0, f"dim {dim} does not split evenly over {groups} groups")
        self.dim, self.groups, self.accept_image_fmap, self.moved = dim, groups, accept_image_fmap, moved
        self.rvqs = nn.ModuleList(make(dim // groups) for _ in range(groups))

    @property
    def codebooks(self) -> Tensor:
        """The code vectors of all groups and levels (g, q, K, C)."""
        return torch.stack([rvq.codebooks for rvq in self.rvqs])

    @property
    def split_dim(self) -> int:
        """The dim of the channels."""
        return 1 if self.accept_image_fmap else -1

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (g, B, ...) -> the code vectors of every group and level (g, q, B, ..., C)."""
        return torch.stack([rvq.get_codes_from_indices(part) for rvq, part in zip(self.rvqs, indices, strict=True)])

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (g, B, ...) -> what `forward` returned with them, in the same layout."""
        return self._joined([rvq.get_output_from_indices(part) for rvq, part in zip(self.rvqs, indices, strict=True)])

    def _forward_groups(self, x: Tensor, **options: object) -> list[tuple]:
        require(
            x.shape[self.split_dim] == self.dim,
            f"dim {self.split_dim} of the input has {x.shape[self.split_dim]} channels, the quantizer takes {self.dim}",
        )
        seed = draw_seed(x.device) if self.training else None
        x = x.movedim(1, -1) if self._moves else x
        parts = x.chunk(self.groups, -1 if self._moves else self.split_dim)
        options["rand_quantize_dropout_fixed_seed"] = seed
        return [rvq(part, **options) for rvq, part in zip(self.rvqs, parts, strict=True)]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if self._moves:
            return torch.cat(list(parts), -1).movedim(-1, 1)
        return torch.cat(list(parts), self.split_dim)

    @property
    def _moves(self) -> bool:
        return self.accept_image_fmap and not self.moved
