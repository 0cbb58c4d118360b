"""Multi-scale quantization: a map as the sum of quantized maps from coarse to fine.

Legend: B batch, E code-vector size, K codebook size, L scales, S positions of all scales, "..." grid of 1 to 3 dims.

Tian et al., Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction, arXiv 2404.02905,
Algorithms 1 (encoding) and 2 (decoding).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rqstack.arguments import check_counts
from rqstack.module_list import ModuleList
from rqstack.quantizers.arithmetic import sync
from rqstack.quantizers.arithmetic.code_losses import VectorLosses, mean_square
from rqstack.quantizers.arithmetic.given_tensors import checked_input
from rqstack.quantizers.arithmetic.gradient import straight_through
from rqstack.quantizers.arithmetic.map_scales import BlendedConv, conv_of_scale, pool_to, resize_to, scale_shapes
from rqstack.quantizers.arithmetic.precision import full_precision
from rqstack.quantizers.arithmetic.signatures import checks_arguments
from rqstack.quantizers.base import Quantizer, QuantizerOutput
from rqstack.quantizers.codebooks.alternating import OptimizerMaker
from rqstack.quantizers.codebooks.entry_use import RestartRule
from rqstack.quantizers.methods.vector import VectorQuantizer
from rqstack.quantizers.methods.vector_options import VectorOptions


@checks_arguments
@dataclass(frozen=True)
class MultiScaleOptions:
    """Settings of multi-scale quantization.

    Attributes:
        scales: grids, coarse to fine, numbers or [rows, columns].
        distance, codebook, restart, restart_dead, kmeans_init: as of `VectorOptions`.
        blend: share of the convolution after interpolation.
        num_convs: how many the scales share.
        scale_dropout: probability in train mode that a random number of fine scales is dropped.
        kept_scales: the first ones, which never are.
        commitment_weight, codebook_weight: of the terms, see `MultiScaleQuantizer`.
    """

    scales: list[Any]
    distance: str = "euclidean"
    codebook: str = "ema"
    restart: RestartRule | None = None
    restart_dead: bool = True
    kmeans_init: bool = True
    blend: float = 0.5
    num_convs: int = 1
    scale_dropout: float = 0.0
    kept_scales: int = 1
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0

    def of_scale(self, index: int) -> VectorOptions:
        """Only codes and code vectors are taken of a scale: it has no losses, and this module starts it."""
        return VectorOptions(
            distance=self.distance,
            codebook=self.codebook,
            restart=self.restart,
            restart_dead=self.restart_dead,
            kmeans_init=False,
            seed=index,
            losses=VectorLosses(commitment=0.0, codebook=0.0),  # the terms of the scales together take their place
        )


@checks_arguments
class MultiScaleQuantizer(Quantizer):
    """Every scale quantizes what the coarser scales left over, pooled to its grid, and adds it back interpolated.

    Input (B, ..., dim) with a grid of `grid_dims` dims. A whole map is one stack of codes (B, 1, ..., 1, S), a code
    grid of one cell: those of the coarsest scale first, row by row, then those of the next; `num_codes` and
    `codebook(depth)` go by position. `split` and `join` lead to and from one grid of codes per scale. Fewer positions
    decode to a coarser map; negative codes decode to zero, as dropped scales.

    codebook_size: K, or one per scale where they are not `shared`. decay, in_place_optimizer: see `VectorQuantizer`.
    Terms, means over the scales of the mean squared distance between the input and the sum of the scales so far:
    commitment, times commitment_weight, pulls the input; codebook, times codebook_weight, pulls the convolutions and
    learned code vectors.
    """

    initialized: Tensor
    drops_levels = True

    def __init__(
        self,
        dim: int,
        codebook_size: int | Sequence[int],
        options: MultiScaleOptions,
        *,
        grid_dims: int = 2,
        shared: bool = True,
        decay: float = 0.99,
        in_place_optimizer: OptimizerMaker | None = None,
    ):
        super().__init__()
        self.dim, self.shapes, self.shared = dim, scale_shapes(options.scales, grid_dims), shared
        self.options, num_scales = options, len(self.shapes)
        one_size = isinstance(codebook_size, int)
        sizes = check_counts("codebook_size", [codebook_size] * num_scales if one_size else codebook_size)
        if len(sizes) != num_scales or (shared and len(set(sizes)) > 1):
            raise ValueError(
                f"codebook sizes {list(sizes)} do not fit {num_scales} scales{' of one codebook' * shared}"
            )
        _check_counts(options, num_scales)
        self.lengths = [math.prod(shape) for shape in self.shapes]
        self.num_codes = tuple(size for size, length in zip(sizes, self.lengths) for _ in range(length))
        self.books = ModuleList(
            VectorQuantizer(dim, k, options.of_scale(i), decay=decay, in_place_optimizer=in_place_optimizer)
            for i, k in enumerate(sizes[: 1 if shared else None])
        )
        self._watch_from_outside(*self.books)
        self.convs = ModuleList(BlendedConv(dim, grid_dims, options.blend) for _ in range(options.num_convs))
        self.register_buffer("initialized", torch.tensor(not options.kmeans_init))
        self._known_initialized = not options.kmeans_init
        self._warm_grid: torch.Size | None = None

    def forward(self, z: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        """Quantize maps z (B, ..., E). mask (B, ...): False positions take part in no mean, loss or codebook."""
        z = self._checked_map(z, mask)
        self._before_gathering(z)
        with full_precision(z.device):
            target = z.movedim(-1, 1).float()
            if self.training and not self._is_initialized():
                self._start(target, mask, "kmeans", 0)
            codes, partial = self._quantize(target, mask, self._scales_kept(z.device))
            total = straight_through(target, partial[-1])
            terms = self._terms(target, partial, mask)
            loss = sum(terms.values(), torch.zeros((), device=z.device))
        codes = F.pad(codes, (0, len(self.num_codes) - codes.shape[-1]), value=-1)
        return QuantizerOutput(total.movedim(1, -1).to(z.dtype), codes, loss, terms)

    def decode(self, codes: Tensor, grid: Sequence[int] | None = None) -> Tensor:
        """Codes (B, ..., S), or the first of them -> maps (B, *grid, E); by default on the grid of the finest scale."""
        grid = self.shapes[-1] if grid is None else tuple(grid)
        grids = self.split(codes)
        with full_precision(codes.device):
            parts = [self._part(codes_of, scale, grid) for scale, codes_of in enumerate(grids)]
            total = sum(parts, torch.zeros_like(parts[0]))
        return total.movedim(1, -1)

    def embed_with_depth(self, codes: Tensor) -> Tensor:
        """Codes (..., S) -> the code vector of every position of every scale (..., S, E), before interpolation."""
        vectors = [self._vectors(one, scale).flatten(1, -2) for scale, one in enumerate(self.split(codes))]
        return torch.cat(vectors, 1)[:, : codes.shape[-1]].reshape(*codes.shape, self.dim)

    def decode_depth(self, codes: Tensor, depth: int) -> Tensor:
        """Codes (B, ..., S) -> what position `depth` alone decodes to, with its scale's convolution."""
        codes = self._checked(codes)
        alone = torch.full_like(codes, -1)
        alone[..., depth] = codes[..., depth]
        return self.decode(alone)

    @torch.no_grad()
    def targets(
        self,
        z: Tensor,
        temp: float = 1.0,
        stochastic: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The vectors searched with (B, 1, ..., S, E) fp32 and their codes (B, 1, ..., S), nearest or drawn."""
        z = self._checked_map(z)
        with full_precision(z.device):
            target = z.movedim(-1, 1).float()
            total, searched, codes = torch.zeros_like(target), [], []
            for scale in range(len(self.shapes)):
                rows, _ = self._pooled(target - total, scale, None)
                found, drawn = self._book(scale).targets(rows, temp, stochastic, generator)
                searched.append(found.reshape(len(z), -1, self.dim))
                codes.append(drawn[..., 0])
                total = total + self._part(codes[-1], scale, target.shape[2:])
        joined = self.join(codes)
        return torch.cat(searched, 1).reshape(*joined.shape, self.dim), joined

    def codebook(self, depth: int) -> Tensor:
        """The (K, E) code vectors that position `depth` of the stack searches, fp32."""
        scale = next(scale for scale in range(len(self.lengths)) if depth < sum(self.lengths[: scale + 1]))
        return self._book(scale).codebook(0)

    def split(self, codes: Tensor) -> list[Tensor]:
        """Codes (B, ..., S), or the first of them -> one grid of codes (B, *shape) per scale that has any.

        What a scale lacks is -1.
        """
        codes = self._checked(codes)
        ends = list(itertools.accumulate(self.lengths))
        number = next(index for index, end in enumerate(ends) if codes.shape[-1] <= end) + 1
        codes = F.pad(codes.reshape(-1, codes.shape[-1]), (0, ends[number - 1] - codes.shape[-1]), value=-1)
        parts = codes.split(self.lengths[:number], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes)]

    def join(self, grids: Sequence[Tensor]) -> Tensor:
        """One grid of codes per scale -> codes (B, 1, ..., 1, S)."""
        codes = torch.cat([grid.flatten(1) for grid in grids], 1)
        return codes.view(len(codes), *[1] * len(self.shapes[0]), -1)

    def warmup_rows(self, z: Tensor) -> Tensor:
        """Maps as rows, for `initialize_codebook`; all maps must have one grid."""
        z = self._checked_map(z)
        self._warm_grid = z.shape[1:]
        return z.flatten(1)

    @torch.no_grad()
    def initialize_codebook(self, z: Tensor, method: str = "kmeans", seed: int = 0) -> None:
        """Start the codebooks from maps (B, ..., E), or from the rows of `warmup_rows`, of all processes.

        Scale by scale on the residuals each will see; a shared codebook first on the pooled maps, then on the residuals
        of all scales. method: 'kmeans' or 'data'.
        """
        z = z.unflatten(1, self._warm_grid) if z.ndim == 2 else z
        with full_precision(z.device):
            self._start(z.movedim(-1, 1).float(), None, method, seed)

    def update_codebook(self) -> None:
        """Apply what the scales have gathered."""
        for book in self.books:
            book.update_codebook()

    def discard_codebook_update(self) -> None:
        """Forget what the scales have gathered."""
        for book in self.books:
            book.discard_codebook_update()

    def _has_gathered(self) -> bool:
        return any(book._has_gathered() for book in self.books)

    def restart_counts(self) -> Tensor:
        """Entries restarted since construction, int64 (S,): those of a scale at its first position."""
        counts = [F.pad(self._book(scale).restart_counts(), (0, n - 1)) for scale, n in enumerate(self.lengths)]
        return torch.cat(counts)

    @property
    def uses_all_parameters(self) -> bool:
        """Not where scales are dropped, nor where the convolutions have no share."""
        return self.options.scale_dropout == 0 and all(conv.ratio > 1e-8 for conv in self.convs)

    def _checked_map(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        z = checked_input(z, mask, self.dim)
        if z.ndim != len(self.shapes[0]) + 2:
            raise ValueError(
                f"input must be maps (B, ..., {self.dim}) with {len(self.shapes[0])} grid dims, got {tuple(z.shape)}"
            )
        return z

    def _is_initialized(self) -> bool:
        """Reads the buffer until it is True, so that the host waits for the device only then."""
        self._known_initialized = self._known_initialized or bool(self.initialized)
        return self._known_initialized

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._known_initialized = False
        super()._load_from_state_dict(*args, **kwargs)

    def _book(self, scale: int) -> VectorQuantizer:
        return self.books[0 if self.shared else scale]

    def _vectors(self, codes: Tensor, scale: int) -> Tensor:
        vectors = F.embedding(codes.clamp(min=0), self._book(scale).codebook(0))
        return torch.where(codes[..., None] >= 0, vectors, 0.0)

    def _part(self, codes: Tensor, scale: int, grid: Sequence[int]) -> Tensor:
        """What a scale adds to the map (B, E, *grid)."""
        conv = self.convs[conv_of_scale(scale, len(self.shapes), len(self.convs))]
        vectors = self._vectors(codes, scale).movedim(-1, 1)
        dropped = (codes < 0).flatten(1).all(1).view(-1, *[1] * (vectors.ndim - 1))  # the convolution has a bias
        return torch.where(dropped, 0.0, conv(resize_to(vectors, grid)))

    def _quantize(self, target: Tensor, mask: Tensor | None, num_scales: int) -> tuple[Tensor, list[Tensor]]:
        """Codes of the first scales, and the sums up to each scale (B, E, ...), differentiable."""
        total, codes, partial = torch.zeros_like(target), [], []
        for scale in range(num_scales):
            rows, counted = self._pooled(target - total.detach(), scale, mask)
            with torch.no_grad():
                codes.append(self._book(scale)(rows, counted).codes[..., 0])
            total = total + self._part(codes[-1], scale, target.shape[2:])
            partial.append(total)
        return self.join(codes), partial

    def _pooled(self, residual: Tensor, scale: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        means, counted = pool_to(residual.detach(), self.shapes[scale], mask)
        return means.movedim(1, -1), counted

    def _terms(self, target: Tensor, partial: list[Tensor], mask: Tensor | None) -> dict[str, Tensor]:
        mask_N, rows = None if mask is None else mask.flatten(), target.movedim(1, -1).reshape(-1, self.dim)
        sums = [total.movedim(1, -1).reshape(-1, self.dim) for total in partial]
        commitment = torch.stack([mean_square(rows, total.detach(), mask_N) for total in sums]).mean()
        terms = {"commitment": self.options.commitment_weight * commitment}
        if sums[-1].requires_grad:
            fit = torch.stack([mean_square(total, rows.detach(), mask_N) for total in sums]).mean()
            terms["codebook"] = self.options.codebook_weight * fit
        return terms

    def _scales_kept(self, device: torch.device) -> int:
        """All, or with dropout in train mode a random number; the same on all processes."""
        num_scales = len(self.shapes)
        if not (self.training and self.options.scale_dropout > 0 and self.options.kept_scales < num_scales):
            return num_scales
        drop = bool(torch.rand(()) < self.options.scale_dropout)
        kept = int(torch.randint(self.options.kept_scales, num_scales, ())) if drop else num_scales
        return sync.from_first_rank(kept, device)

    @torch.no_grad()
    def _start(self, target: Tensor, mask: Tensor | None, method: str, seed: int) -> None:
        """Sets the codebooks; see `initialize_codebook`."""
        if self.shared:
            pooled = [self._pooled(target, scale, mask) for scale in range(len(self.shapes))]
            self._start_book(0, pooled, method, seed)
        total, seen = torch.zeros_like(target), []
        for scale, shape in enumerate(self.shapes):
            seen.append(self._pooled(target - total, scale, mask))
            if not self.shared:
                self._start_book(scale, seen[-1:], method, seed + scale)
            codes_N = self._book(scale).codebook_at(0).nearest(seen[-1][0].reshape(-1, self.dim))
            total = total + self._part(codes_N.view(-1, *shape), scale, target.shape[2:])
        if self.shared:
            self._start_book(0, seen, method, seed + 1)
        self.initialized.fill_(True)

    def _start_book(self, index: int, maps: list[tuple[Tensor, Tensor | None]], method: str, seed: int) -> None:
        # the scales of a map side by side: the same order for every split of the maps over processes
        rows = torch.cat([means.flatten(1, -2) for means, _ in maps], 1)
        counted = [valid.flatten(1) for _, valid in maps if valid is not None]
        self.books[index].initialize_codebook(rows, torch.cat(counted, 1) if counted else None, method, seed)


def _check_counts(options: MultiScaleOptions, num_scales: int) -> None:
    dropout, kept, convs = options.scale_dropout, options.kept_scales, options.num_convs
    if not 0 <= dropout <= 1 or not 1 <= kept <= num_scales or not 1 <= convs <= num_scales:
        raise ValueError(
            f"scale_dropout must be in [0, 1], kept_scales and num_convs in 1 .. {num_scales}, "
            f"got {dropout}, {kept} and {convs}"
        )
