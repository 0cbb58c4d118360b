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


class BottleneckConfig(Protocol):
    """What a bottleneck takes from a config; `QuantizerHParams` says what the published keys mean."""

    bottleneck_type: str
    embed_dim: int
    n_embed: Any
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

    @property
    def bottleneck_options(self) -> Any:
        """The typed options of `bottleneck_type`."""


Options = TypeVar("Options")
Stacked = TypeVar("Stacked", bound=StackOptions)
CodeVectors = TypeVar("CodeVectors", VectorOptions, ResidualVectorOptions, MultiScaleOptions)


@dataclass(frozen=True)
class Bottleneck(Generic[Options]):
    """One row of the table.

    options: what may stand under `hparams.bottleneck`; None, nothing. build: from the config, the size of a vector on
    the code grid and the options. joins_patches: it takes whole maps and needs no `InPatches` around it.
    size_per_depth: n_embed may be a list. size_in_options: K follows from the options, and n_embed may be left out.
    """

    options: type[Options] | None
    build: Callable[[BottleneckConfig, int, Options], Quantizer]
    joins_patches: bool = False
    size_per_depth: bool = False
    size_in_options: bool = False


def _residual(config: BottleneckConfig, dim: int, options: None) -> Quantizer:
    return ResidualQuantizer(
        config.embed_dim,
        config.code_sizes,
        shared=config.shared_codebook,
        decay=config.decays,
        restart_unused_codes=config.restart_unused_codes,
        codebook_update=config.codebook_update,
        patch=config.patch,
    )


def _vector(config: BottleneckConfig, dim: int, options: VectorOptions) -> Quantizer:
    return VectorQuantizer(
        dim,
        config.code_sizes[0],
        _with_restart(config, options),
        heads=config.depth,
        separate_codebooks=not config.shared_codebook,
        decay=config.decays[0],
    )


def _with_restart(config: BottleneckConfig, options: CodeVectors) -> CodeVectors:
    """The options of code vectors, where `restart_unused_codes` stands for the published rule."""
    if options.restart is None and config.restart_unused_codes:
        return dataclasses.replace(options, restart=RestartRule())
    return options


def _residual_vector(
    config: BottleneckConfig, dim: int, num_codes: Sequence[int], options: ResidualVectorOptions
) -> Quantizer:
    options, shared = _with_restart(config, options), config.shared_codebook
    return ResidualVectorQuantizer(dim, num_codes, None, options, shared=shared, decay=config.decays[0])


def _in_groups(
    stack: Callable[[BottleneckConfig, int, Sequence[int], Stacked], Quantizer], sized: bool = True
) -> Callable[[BottleneckConfig, int, Stacked], Quantizer]:
    """Builder of `groups` stacks of D / groups levels, each on its share of the channels.

    stack: from the config, the size of a vector, K of every level (`sized`; otherwise one 0 per level) and the options.
    """

    def build(config: BottleneckConfig, dim: int, options: Stacked) -> Quantizer:
        groups = options.groups
        if groups < 1 or config.depth % groups or dim % groups:
            raise ValueError(
                f"bottleneck.groups {groups} does not divide code depth {config.depth} and vectors of size {dim}"
            )
        depth, options = config.depth // groups, dataclasses.replace(options, groups=1)
        num_codes = config.code_sizes if sized else (0,) * config.depth
        starts = range(0, config.depth, depth)
        stacks = [stack(config, dim // groups, num_codes[start : start + depth], options) for start in starts]
        return Grouped(dim, stacks) if groups > 1 else stacks[0]

    return build


def _multi_scale(config: BottleneckConfig, dim: int, options: MultiScaleOptions) -> Quantizer:
    options, shared = _with_restart(config, options), config.shared_codebook
    quantizer = MultiScaleQuantizer(
        config.embed_dim, config.code_sizes[0], options, shared=shared, decay=config.decays[0]
    )
    finest, latent = list(quantizer.shapes[-1]), list(config.latent_shape[:2])
    wanted = [1, 1, len(quantizer.num_codes)]
    if list(config.code_shape) != wanted:
        raise ValueError(f"bottleneck.scales have {wanted[2]} positions: code_shape must be {wanted}")
    if finest != latent:
        raise ValueError(f"the last of bottleneck.scales, {finest}, must be the grid of latent_shape, {latent}")
    return quantizer


BOTTLENECKS: dict[str, Bottleneck[Any]] = {
    "rq": Bottleneck(None, _residual, joins_patches=True, size_per_depth=True),
    "none": Bottleneck(None, lambda config, dim, options: NullQuantizer(), joins_patches=True),
    "vq": Bottleneck(VectorOptions, _vector),
    "fsq": Bottleneck(
        FiniteScalarOptions,
        lambda config, dim, options: FiniteScalarQuantizer(dim, options, num_codebooks=config.depth),
        size_in_options=True,
    ),
    "fsp": Bottleneck(
        ScalarPerturbationOptions,
        lambda config, dim, options: ScalarPerturbationQuantizer(dim, options, num_codebooks=config.depth),
        size_in_options=True,
    ),
    "lfq": Bottleneck(
        LookupFreeOptions,
        lambda config, dim, options: LookupFreeQuantizer(
            dim, config.code_sizes[0], options, num_codebooks=config.depth
        ),
    ),
    "latent": Bottleneck(
        LatentOptions,
        lambda config, dim, options: LatentQuantizer(dim, options, num_codebooks=config.depth),
        size_in_options=True,
    ),
    "simvq": Bottleneck(
        SimOptions,
        lambda config, dim, options: SimQuantizer(dim, config.code_sizes[0], options, num_codebooks=config.depth),
    ),
    "random_projection": Bottleneck(
        RandomProjectionOptions,
        lambda config, dim, options: RandomProjectionQuantizer(
            dim, config.code_sizes[0], options, num_codebooks=config.depth
        ),
    ),
    "binary": Bottleneck(
        BinaryOptions,
        lambda config, dim, options: BinaryMapper(dim, config.code_sizes[0], options, num_codebooks=config.depth),
    ),
    "residual_vq": Bottleneck(ResidualVectorOptions, _in_groups(_residual_vector), size_per_depth=True),
    "implicit_residual_vq": Bottleneck(
        NeuralResidualOptions,
        _in_groups(lambda config, dim, num_codes, options: NeuralResidualQuantizer(dim, num_codes, None, options)),
        size_per_depth=True,
    ),
    "residual_fsq": Bottleneck(
        ResidualFiniteScalarOptions,
        _in_groups(lambda config, dim, num_codes, options: residual_fsq(dim, len(num_codes), options), sized=False),
        size_in_options=True,
    ),
    "residual_lfq": Bottleneck(
        ResidualLookupFreeOptions,
        _in_groups(lambda config, dim, num_codes, options: residual_lfq(dim, num_codes[0], len(num_codes), options)),
    ),
    "residual_simvq": Bottleneck(
        ResidualSimOptions,
        _in_groups(lambda config, dim, num_codes, options: residual_simvq(dim, num_codes[0], len(num_codes), options)),
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
