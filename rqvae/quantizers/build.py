"""Bottleneck name -> quantizer: one explicit table."""

from __future__ import annotations

import dataclasses

from rqvae.config import QuantizerHParams
from rqvae.quantizers.base import NullQuantizer, Quantizer
from rqvae.quantizers.finite_scalar import FiniteScalarQuantizer
from rqvae.quantizers.lookup_free import LookupFreeQuantizer
from rqvae.quantizers.residual import ResidualQuantizer


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


def _build_finite_scalar(config: QuantizerHParams) -> Quantizer:
    options = dataclasses.asdict(config.bottleneck_options)
    return FiniteScalarQuantizer(config.embed_dim, num_codebooks=config.depth, **options)


def _build_lookup_free(config: QuantizerHParams) -> Quantizer:
    options = dataclasses.asdict(config.bottleneck_options)
    return LookupFreeQuantizer(config.embed_dim, config.code_sizes[0], num_codebooks=config.depth, **options)


QUANTIZERS = {
    "rq": _build_residual,
    "none": lambda config: NullQuantizer(),
    "fsq": _build_finite_scalar,
    "lfq": _build_lookup_free,
}


def build_quantizer(config: QuantizerHParams) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names."""
    if config.bottleneck_type not in QUANTIZERS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(QUANTIZERS)}")
    quantizer = QUANTIZERS[config.bottleneck_type](config)
    if quantizer.num_codes and config.n_embed is not None and quantizer.num_codes != config.code_sizes:
        raise ValueError(f"n_embed {config.n_embed} does not fit: the bottleneck has {quantizer.num_codes[0]} codes")
    return quantizer
