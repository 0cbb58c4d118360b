"""Bottleneck name -> quantizer: one explicit table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rqvae.config import QuantizerHParams
from rqvae.quantizers.base import NullQuantizer, Quantizer
from rqvae.quantizers.binary_mapper import BinaryMapper
from rqvae.quantizers.finite_scalar import FiniteScalarQuantizer
from rqvae.quantizers.latent import LatentQuantizer
from rqvae.quantizers.lookup_free import LookupFreeQuantizer
from rqvae.quantizers.random_projection import RandomProjectionQuantizer
from rqvae.quantizers.residual import ResidualQuantizer
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


QUANTIZERS = {
    "rq": _build_residual,
    "none": lambda config: NullQuantizer(),
    "fsq": _side_by_side(FiniteScalarQuantizer, sized=False),
    "lfq": _side_by_side(LookupFreeQuantizer, sized=True),
    "latent": _side_by_side(LatentQuantizer, sized=False),
    "simvq": _side_by_side(SimQuantizer, sized=True),
    "random_projection": _side_by_side(RandomProjectionQuantizer, sized=True),
    "binary": _side_by_side(BinaryMapper, sized=True),
}


def build_quantizer(config: QuantizerHParams) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names."""
    if config.bottleneck_type not in QUANTIZERS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(QUANTIZERS)}")
    quantizer = QUANTIZERS[config.bottleneck_type](config)
    if quantizer.num_codes and config.n_embed is not None and quantizer.num_codes != config.code_sizes:
        raise ValueError(f"n_embed {config.n_embed} does not fit: the bottleneck has {quantizer.num_codes[0]} codes")
    return quantizer
