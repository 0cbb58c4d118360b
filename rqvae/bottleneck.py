"""Bottleneck name -> options and quantizer: one explicit table.

A new quantizer is its own file in `rqstack.quantizers.methods` and one row of BOTTLENECKS.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from rqstack.quantizers import (
    BinaryMapper,
    BinaryOptions,
    FiniteScalarOptions,
    FiniteScalarQuantizer,
    Grouped,
    InPatches,
    LatentOptions,
    LatentQuantizer,
    LookupFreeOptions,
    LookupFreeQuantizer,
    MultiScaleOptions,
    MultiScaleQuantizer,
    NeuralResidualOptions,
    NeuralResidualQuantizer,
    NullQuantizer,
    Quantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    ResidualFiniteScalarOptions,
    ResidualLookupFreeOptions,
    ResidualQuantizer,
    ResidualSimOptions,
    ResidualVectorOptions,
    ResidualVectorQuantizer,
    RestartRule,
    ScalarPerturbationOptions,
    ScalarPerturbationQuantizer,
    SimOptions,
    SimQuantizer,
    StackOptions,
    VectorOptions,
    VectorQuantizer,
    residual_fsq,
    residual_lfq,
    residual_simvq,
)


class Sizes(Protocol):
    """What a bottleneck takes from the published keys of a config (see `QuantizerHParams`), its own options apart."""

    embed_dim: int
    latent_shape: list[int]
    code_shape: list[int]
    shared_codebook: bool
    restart_unused_codes: bool
    codebook_update: str

    @property
    def depth(self) -> int:
        """D, the number of codes per position."""

    @property
    def code_sizes(self) -> tuple[int, ...]:
        """K of every depth."""

    @property
    def decays(self) -> tuple[float, ...]:
        """Decay of the moving averages of every depth."""

    @property
    def patch(self) -> tuple[int, int]:
        """Latent rows and columns that share one stack of codes."""


class BottleneckConfig(Sizes, Protocol):
    """Sizes, and which bottleneck it is."""

    bottleneck_type: str
    n_embed: Any

    @property
    def bottleneck_options(self) -> Any:
        """The typed options of `bottleneck_type`."""


Options = TypeVar("Options")
Stacked = TypeVar("Stacked", bound=StackOptions)


@dataclass(frozen=True)
class Bottleneck(Generic[Options]):
    """One row of the table.

    options: what may stand under `hparams.bottleneck`; None, nothing. build: from the config, the size of a vector on
    the code grid and the options. joins_patches: it takes whole maps and needs no `InPatches` around it.
    size_per_depth: n_embed may be a list. size_in_options: K follows from the options, and n_embed may be left out.
    """

    options: type[Options] | None
    build: Callable[[Sizes, int, Options], Quantizer]
    joins_patches: bool = False
    size_per_depth: bool = False
    size_in_options: bool = False


def _residual(sizes: Sizes, dim: int, options: None) -> Quantizer:
    return ResidualQuantizer(
        sizes.embed_dim,
        sizes.code_sizes,
        shared=sizes.shared_codebook,
        decay=sizes.decays,
        restart_unused_codes=sizes.restart_unused_codes,
        codebook_update=sizes.codebook_update,
        patch=sizes.patch,
    )


def _vector(sizes: Sizes, dim: int, options: VectorOptions) -> Quantizer:
    return VectorQuantizer(
        dim,
        sizes.code_sizes[0],
        _with_restart(sizes, options),
        heads=sizes.depth,
        separate_codebooks=not sizes.shared_codebook,
        decay=sizes.decays[0],
    )


def _with_restart(sizes: Sizes, options: Any) -> Any:
    """The options of code vectors, where `restart_unused_codes` stands for the published rule."""
    if options.restart is None and sizes.restart_unused_codes:
        return dataclasses.replace(options, restart=RestartRule())
    return options


def _residual_vector(sizes: Sizes, dim: int, num_codes: Sequence[int], options: ResidualVectorOptions) -> Quantizer:
    options, shared = _with_restart(sizes, options), sizes.shared_codebook
    return ResidualVectorQuantizer(dim, num_codes, None, options, shared=shared, decay=sizes.decays[0])


def _in_groups(
    stack: Callable[[Sizes, int, Sequence[int], Stacked], Quantizer], sized: bool = True
) -> Callable[[Sizes, int, Stacked], Quantizer]:
    """Builder of `groups` stacks of D / groups levels, each on its share of the channels.

    stack: from the config, the size of a vector, K of every level (`sized`; otherwise one 0 per level) and the options.
    """

    def build(sizes: Sizes, dim: int, options: Stacked) -> Quantizer:
        groups = options.groups
        if groups < 1 or sizes.depth % groups or dim % groups:
            raise ValueError(
                f"bottleneck.groups {groups} does not divide code depth {sizes.depth} and vectors of size {dim}"
            )
        depth, options = sizes.depth // groups, dataclasses.replace(options, groups=1)
        num_codes = sizes.code_sizes if sized else (0,) * sizes.depth
        starts = range(0, sizes.depth, depth)
        stacks = [stack(sizes, dim // groups, num_codes[start : start + depth], options) for start in starts]
        return Grouped(dim, stacks) if groups > 1 else stacks[0]

    return build


def _multi_scale(sizes: Sizes, dim: int, options: MultiScaleOptions) -> Quantizer:
    options, shared = _with_restart(sizes, options), sizes.shared_codebook
    quantizer = MultiScaleQuantizer(sizes.embed_dim, sizes.code_sizes[0], options, shared=shared, decay=sizes.decays[0])
    finest, latent = list(quantizer.shapes[-1]), list(sizes.latent_shape[:2])
    wanted = [1, 1, len(quantizer.num_codes)]
    if list(sizes.code_shape) != wanted:
        raise ValueError(f"bottleneck.scales have {wanted[2]} positions: code_shape must be {wanted}")
    if finest != latent:
        raise ValueError(f"the last of bottleneck.scales, {finest}, must be the grid of latent_shape, {latent}")
    return quantizer


BOTTLENECKS: dict[str, Bottleneck[Any]] = {
    "rq": Bottleneck(None, _residual, joins_patches=True, size_per_depth=True),
    "none": Bottleneck(None, lambda sizes, dim, options: NullQuantizer(), joins_patches=True),
    "vq": Bottleneck(VectorOptions, _vector),
    "fsq": Bottleneck(
        FiniteScalarOptions,
        lambda sizes, dim, options: FiniteScalarQuantizer(dim, options, num_codebooks=sizes.depth),
        size_in_options=True,
    ),
    "fsp": Bottleneck(
        ScalarPerturbationOptions,
        lambda sizes, dim, options: ScalarPerturbationQuantizer(dim, options, num_codebooks=sizes.depth),
        size_in_options=True,
    ),
    "lfq": Bottleneck(
        LookupFreeOptions,
        lambda sizes, dim, options: LookupFreeQuantizer(dim, sizes.code_sizes[0], options, num_codebooks=sizes.depth),
    ),
    "latent": Bottleneck(
        LatentOptions,
        lambda sizes, dim, options: LatentQuantizer(dim, options, num_codebooks=sizes.depth),
        size_in_options=True,
    ),
    "simvq": Bottleneck(
        SimOptions,
        lambda sizes, dim, options: SimQuantizer(dim, sizes.code_sizes[0], options, num_codebooks=sizes.depth),
    ),
    "random_projection": Bottleneck(
        RandomProjectionOptions,
        lambda sizes, dim, options: RandomProjectionQuantizer(
            dim, sizes.code_sizes[0], options, num_codebooks=sizes.depth
        ),
    ),
    "binary": Bottleneck(
        BinaryOptions,
        lambda sizes, dim, options: BinaryMapper(dim, sizes.code_sizes[0], options, num_codebooks=sizes.depth),
    ),
    "residual_vq": Bottleneck(ResidualVectorOptions, _in_groups(_residual_vector), size_per_depth=True),
    "implicit_residual_vq": Bottleneck(
        NeuralResidualOptions,
        _in_groups(lambda sizes, dim, num_codes, options: NeuralResidualQuantizer(dim, num_codes, None, options)),
        size_per_depth=True,
    ),
    "residual_fsq": Bottleneck(
        ResidualFiniteScalarOptions,
        _in_groups(lambda sizes, dim, num_codes, options: residual_fsq(dim, len(num_codes), options), sized=False),
        size_in_options=True,
    ),
    "residual_lfq": Bottleneck(
        ResidualLookupFreeOptions,
        _in_groups(lambda sizes, dim, num_codes, options: residual_lfq(dim, num_codes[0], len(num_codes), options)),
    ),
    "residual_simvq": Bottleneck(
        ResidualSimOptions,
        _in_groups(lambda sizes, dim, num_codes, options: residual_simvq(dim, num_codes[0], len(num_codes), options)),
    ),
    "hierarchical": Bottleneck(MultiScaleOptions, _multi_scale, joins_patches=True),
}


def build_quantizer(config: BottleneckConfig) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names, on the code grid of the config."""
    if config.bottleneck_type not in BOTTLENECKS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(BOTTLENECKS)}")
    row, (rows, columns) = BOTTLENECKS[config.bottleneck_type], config.patch
    quantizer = row.build(config, config.embed_dim * rows * columns, config.bottleneck_options)
    if quantizer.num_codes and config.n_embed is not None and quantizer.num_codes != config.code_sizes:
        raise ValueError(f"n_embed {config.n_embed} does not fit: the bottleneck has {quantizer.num_codes[0]} codes")
    joined = rows * columns > 1 and not row.joins_patches
    return InPatches(quantizer, (rows, columns)) if joined else quantizer
