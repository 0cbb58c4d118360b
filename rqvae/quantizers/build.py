"""Bottleneck name -> quantizer: one explicit table."""

from __future__ import annotations

from rqvae.config import QuantizerHParams
from rqvae.quantizers.base import NullQuantizer, Quantizer
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


QUANTIZERS = {
    "rq": _build_residual,
    "none": lambda config: NullQuantizer(),
}


def build_quantizer(config: QuantizerHParams) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names."""
    if config.bottleneck_type not in QUANTIZERS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(QUANTIZERS)}")
    return QUANTIZERS[config.bottleneck_type](config)
