"""What the residual quantizers share: the methods of one, code vectors of all levels, and groups of channels.

Legend: B batch, C scalars of a code vector, q levels, g groups.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rqstack.module_list import ModuleList
from rqstack.quantizers.compat.vector_quantize_pytorch.errors import check_sizes, require
from rqstack.quantizers.compat.vector_quantize_pytorch.level_dropout import DropsLevels, draw_seed


class ResidualLevels(DropsLevels, abc.ABC):
    """A residual quantizer, as `GroupedLevels` needs it."""

    @property
    @abc.abstractmethod
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The code vectors of all levels (q, K, C); a tuple of (K, C) where sizes differ."""

    @abc.abstractmethod
    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> the code vectors of every level (q, B, ..., C)."""

    @abc.abstractmethod
    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """Indices (B, ..., q) -> what `forward` returned with them."""


class FindsVectors(Protocol):
    """A level, as `all_level_vectors` needs it."""

    def indices_to_vectors(self, indices: Tensor) -> Tensor:
        """Indices (...) -> code vectors (..., C)."""


def added_up(levels: Sequence[Tensor] | Tensor) -> Tensor:
    """The sum over levels, in their order."""
    return sum(levels, torch.zeros_like(levels[0]))


def all_level_vectors(indices: Tensor, layers: Iterable[FindsVectors]) -> list[Tensor]:
    """Indices (B, ..., q) -> the vectors (B, ..., C) of every level, by its `indices_to_vectors`; zero for -1."""
    parts = indices.unbind(-1)
    found = [layer.indices_to_vectors(part.clamp(min=0)) for layer, part in zip(layers, parts, strict=True)]
    return [torch.where(part[..., None] >= 0, vectors, 0.0) for part, vectors in zip(parts, found, strict=True)]


R = TypeVar("R", bound=ResidualLevels)


class GroupedLevels(nn.Module, Generic[R]):
    """Channels split evenly over `groups` residual modules, made by `make` from their size.

    accept_image_fmap: channels come second. moved: the groups take channels second themselves; otherwise they get them
    last.
    """

    def __init__(self, dim: int, groups: int, accept_image_fmap: bool, make: Callable[[int], R], moved: bool):
        super().__init__()
        check_sizes(dim=dim, groups=groups)
        require(dim % groups == 0, f"dim {dim} does not split evenly over {groups} groups")
        self.dim, self.groups, self.accept_image_fmap, self.moved = dim, groups, accept_image_fmap, moved
        self.rvqs = ModuleList(make(dim // groups) for _ in range(groups))

    @property
    def codebooks(self) -> Tensor | tuple[Tensor | tuple[Tensor, ...], ...]:
        """The code vectors of all groups and levels (g, q, K, C); a tuple over groups where sizes differ."""
        books = tuple(rvq.codebooks for rvq in self.rvqs)
        of_one_size = [book for book in books if isinstance(book, Tensor)]
        return torch.stack(of_one_size) if of_one_size else books

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

    def _forward_groups(
        self, x: Tensor, of_each: Sequence[Mapping[str, Any]] | None = None, **options: Any
    ) -> list[tuple[Tensor, ...]]:
        """What every group returns. of_each: keywords of one group; options: of all."""
        require(
            x.shape[self.split_dim] == self.dim,
            f"dim {self.split_dim} of the input has {x.shape[self.split_dim]} channels, the quantizer takes {self.dim}",
        )
        seed = draw_seed(x.device) if self.training else None
        x = x.movedim(1, -1) if self._moves else x
        parts = x.chunk(self.groups, -1 if self._moves else self.split_dim)
        options["rand_quantize_dropout_fixed_seed"] = seed
        of_each = [{}] * self.groups if of_each is None else of_each
        return [rvq(part, **own, **options) for rvq, part, own in zip(self.rvqs, parts, of_each, strict=True)]

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        if self._moves:
            return torch.cat(list(parts), -1).movedim(-1, 1)
        return torch.cat(list(parts), self.split_dim)

    @property
    def _moves(self) -> bool:
        return self.accept_image_fmap and not self.moved
