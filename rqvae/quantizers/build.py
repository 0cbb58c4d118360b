"""Bottleneck name -> quantizer: one explicit table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rqvae.bottlenecks import LFQOptions, SimOptions
from rqvae.config import QuantizerHParams
from rqvae.quantizers.base import NullQuantizer, Quantizer
from rqvae.quantizers.binary_mapper import BinaryMapper
from rqvae.quantizers.finite_scalar import FiniteScalarQuantizer
from rqvae.quantizers.grouped_of import GroupedOf
from rqvae.quantizers.latent import LatentQuantizer
from rqvae.quantizers.lookup_free import LookupFreeQuantizer
from rqvae.quantizers.random_projection import RandomProjectionQuantizer
from rqvae.quantizers.residual import ResidualQuantizer
from rqvae.quantizers.residual_of import residual_fsq, residual_lfq, residual_simvq
from rqvae.quantizers.sim import SimQuantizer


def _build_residual(config: QuantizerHParams) -> Quantizer:
    return ResidualQuantizer(
        config.embed_dim,
        config.code_sizes,
        shared=config.shared_codebook,
        decay=config.decays,
        restart_unused_codes=config.restart_unused_codes,
        codebook_update=config.codebook_update,
        patch=config.patch,
    )


def _side_by_side(kind: Callable[..., Quantizer], sized: bool) -> Callable[[QuantizerHParams], Quantizer]:
    """Builder of D codebooks side by side; `sized`: K comes from n_embed, otherwise from the options."""

    def build(config: QuantizerHParams) -> Quantizer:
        options = dataclasses.asdict(config.bottleneck_options)
        if sized:
            options["codebook_size"] = config.code_sizes[0]
        return kind(config.embed_dim, num_codebooks=config.depth, **options)

    return build


def _residual_stack(kind: Callable[..., Quantizer], level: type | None) -> Callable[[QuantizerHParams], Quantizer]:
    """Builder of D residual levels, in groups if asked for. level: options dataclass of one level; its K is n_embed."""

    def build(config: QuantizerHParams) -> Quantizer:
        options = dataclasses.asdict(config.bottleneck_options)
        groups = options.pop("groups")
        if groups < 1 or config.depth % groups or config.embed_dim % groups:
            raise ValueError(
                f"bottleneck.groups {groups} does not divide code depth {config.depth} and embed_dim {config.embed_dim}"
            )
        if level is not None:
            options["level_options"] = {f.name: options.pop(f.name) for f in dataclasses.fields(level)}
            options["codebook_size"] = config.code_sizes[0]
        stack = [
            kind(config.embed_dim // groups, num_quantizers=config.depth // groups, **options) for _ in range(groups)
        ]
        return GroupedOf(config.embed_dim, stack) if groups > 1 else stack[0]

    return build


QUANTIZERS = {
    "rq": _build_residual,
    "none": lambda config: NullQuantizer(),
    "fsq": _side_by_side(FiniteScalarQuantizer, sized=False),
    "lfq": _side_by_side(LookupFreeQuantizer, sized=True),
    "latent": _side_by_side(LatentQuantizer, sized=False),
    "simvq": _side_by_side(SimQuantizer, sized=True),
    "random_projection": _side_by_side(RandomProjectionQuantizer, sized=True),
    "binary": _side_by_side(BinaryMapper, sized=True),
    "residual_fsq": _residual_stack(residual_fsq, None),
    "residual_lfq": _residual_stack(residual_lfq, LFQOptions),
    "residual_simvq": _residual_stack(residual_simvq, SimOptions),
}


def build_quantizer(config: QuantizerHParams) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names."""
    if config.bottleneck_type not in QUANTIZERS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(QUANTIZERS)}")
    quantizer = QUANTIZERS[config.bottleneck_type](config)
    if quantizer.num_codes and config.n_embed is not None and quantizer.num_codes != config.code_sizes:
        raise ValueError(f"n_embed {config.n_embed} does not fit: the bottleneck has {quantizer.num_codes[0]} codes")
    return quantizer
