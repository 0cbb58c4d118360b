"""Bottleneck name -> quantizer: one explicit table."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch

from rqstack.quantizers.arithmetic.code_losses import VectorLosses
from rqstack.quantizers.base import NullQuantizer, Quantizer
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.entry_use import RestartRule
from rqstack.quantizers.codebooks.learned import LearningRule
from rqstack.quantizers.methods.binary_mapper import BinaryMapper
from rqstack.quantizers.methods.finite_scalar import FiniteScalarQuantizer
from rqstack.quantizers.methods.latent_quantization import LatentQuantizer
from rqstack.quantizers.methods.lookup_free import LookupFreeQuantizer
from rqstack.quantizers.methods.multi_scale import MultiScaleQuantizer
from rqstack.quantizers.methods.neural_codebook import NeuralResidualQuantizer
from rqstack.quantizers.methods.random_projection import RandomProjectionQuantizer
from rqstack.quantizers.methods.residual_published import ResidualQuantizer
from rqstack.quantizers.methods.residual_stack import residual_fsq, residual_lfq, residual_simvq
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationQuantizer
from rqstack.quantizers.methods.simvq import SimQuantizer
from rqstack.quantizers.methods.vector import VectorQuantizer
from rqstack.quantizers.wrappers.grouped import Grouped
from rqstack.quantizers.wrappers.patches import InPatches
from rqvae.bottleneck_options import LFQOptions, SimLevelOptions
from rqvae.config import QuantizerHParams

Builder = Callable[[QuantizerHParams, int], Quantizer]  # from the config and the size of a vector on the code grid


def _build_residual(config: QuantizerHParams, dim: int) -> Quantizer:
    return ResidualQuantizer(
        config.embed_dim,
        config.code_sizes,
        shared=config.shared_codebook,
        decay=config.decays,
        restart_unused_codes=config.restart_unused_codes,
        codebook_update=config.codebook_update,
        patch=config.patch,
    )


def _build_vector(config: QuantizerHParams, dim: int) -> Quantizer:
    options = _vector_options(config, dataclasses.asdict(config.bottleneck_options))
    return VectorQuantizer(
        dim, config.code_sizes[0], heads=config.depth, separate_codebooks=not config.shared_codebook, **options
    )


def _vector_options(config: QuantizerHParams, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a vector quantizer with their values in the library's types."""
    options["restart"] = _restart_rule(config)
    if options["affine"] is not None:
        options["affine"] = AffineRule(**options["affine"])
    options["losses"] = VectorLosses(**options["losses"])
    options["learning"] = LearningRule(options.pop("sync_nu"), _own_optimizer(options.pop("inplace_lr")))
    return {**options, "decay": config.decays[0]}


def _restart_rule(config: QuantizerHParams) -> RestartRule | None:
    rule = config.bottleneck_options.restart
    if rule is not None:
        return RestartRule(**dataclasses.asdict(rule))
    return RestartRule() if config.restart_unused_codes else None


def _own_optimizer(learning_rate: float | None) -> Callable[..., torch.optim.Optimizer] | None:
    """Plain SGD: it has no state that a checkpoint would have to hold."""
    if learning_rate is None:
        return None
    if learning_rate <= 0:
        raise ValueError(f"bottleneck.inplace_lr must be positive, got {learning_rate}")
    return functools.partial(torch.optim.SGD, lr=learning_rate)


def _build_latent(config: QuantizerHParams, dim: int) -> Quantizer:
    options = dataclasses.asdict(config.bottleneck_options)
    optimizer = _own_optimizer(options.pop("inplace_lr"))
    return LatentQuantizer(dim, num_codebooks=config.depth, in_place_optimizer=optimizer, **options)


def _side_by_side(kind: Callable[..., Quantizer], sized: bool) -> Builder:
    """Builder of D codebooks side by side; `sized`: K comes from n_embed, otherwise from the options."""

    def build(config: QuantizerHParams, dim: int) -> Quantizer:
        options = dataclasses.asdict(config.bottleneck_options)
        if sized:
            options["codebook_size"] = config.code_sizes[0]
        return kind(dim, num_codebooks=config.depth, **options)

    return build


def _residual_stack(kind: Callable[..., Quantizer], level: type | None) -> Builder:
    """Builder of D residual levels, in groups if asked for. level: options dataclass of one level; its K is n_embed."""

    def stack(config: QuantizerHParams, dim: int, levels: slice, options: dict[str, Any]) -> Quantizer:
        if level is not None:
            options["level_options"] = {f.name: options.pop(f.name) for f in dataclasses.fields(level)}
            options["codebook_size"] = config.code_sizes[0]
        return kind(dim, num_quantizers=len(range(config.depth)[levels]), **options)

    return _in_groups(stack)


def _residual_vector_stack(config: QuantizerHParams, dim: int, levels: slice, options: dict[str, Any]) -> Quantizer:
    own = ("codebook_dim", "estimator", "loss_weights", "beam_width", "eval_beam_width")
    dropout = ("quantize_dropout", "dropout_cutoff", "dropout_multiple")
    of_stack = {name: options.pop(name) for name in (*own, *dropout)}
    level_options = _vector_options(config, options)
    sizes, shared = config.code_sizes[levels], config.shared_codebook
    return ResidualVectorQuantizer(dim, sizes, shared=shared, level_options=level_options, **of_stack)


def _implicit_stack(config: QuantizerHParams, dim: int, levels: slice, options: dict[str, Any]) -> Quantizer:
    losses = VectorLosses(**options.pop("losses"))
    level_options = {"losses": losses, "kmeans_init": options.pop("kmeans_init")}
    return NeuralResidualQuantizer(dim, config.code_sizes[levels], level_options=level_options, **options)


def _in_groups(stack: Callable[[QuantizerHParams, int, slice, dict[str, Any]], Quantizer]) -> Builder:
    """Builder of `groups` stacks of D / groups levels (the slice of the depths), each on its share of the channels."""

    def build(config: QuantizerHParams, dim: int) -> Quantizer:
        groups = config.bottleneck_options.groups
        if groups < 1 or config.depth % groups or dim % groups:
            raise ValueError(
                f"bottleneck.groups {groups} does not divide code depth {config.depth} and vectors of size {dim}"
            )
        depth, stacks = config.depth // groups, []
        for start in range(0, config.depth, depth):
            options = dataclasses.asdict(config.bottleneck_options)
            del options["groups"]
            stacks.append(stack(config, dim // groups, slice(start, start + depth), options))
        return Grouped(dim, stacks) if groups > 1 else stacks[0]

    return build


def _build_hierarchical(config: QuantizerHParams, dim: int) -> Quantizer:
    options = dataclasses.asdict(config.bottleneck_options)
    options |= {"restart": _restart_rule(config), "decay": config.decays[0], "shared": config.shared_codebook}
    quantizer = MultiScaleQuantizer(config.embed_dim, config.code_sizes[0], **options)
    finest, latent = list(quantizer.shapes[-1]), list(config.latent_shape[:2])
    wanted = [1, 1, len(quantizer.num_codes)]
    if list(config.code_shape) != wanted:
        raise ValueError(f"bottleneck.scales have {wanted[2]} positions: code_shape must be {wanted}")
    if finest != latent:
        raise ValueError(f"the last of bottleneck.scales, {finest}, must be the grid of latent_shape, {latent}")
    return quantizer


QUANTIZERS: dict[str, Builder] = {
    "rq": _build_residual,
    "none": lambda config, dim: NullQuantizer(),
    "vq": _build_vector,
    "fsq": _side_by_side(FiniteScalarQuantizer, sized=False),
    "fsp": _side_by_side(ScalarPerturbationQuantizer, sized=False),
    "lfq": _side_by_side(LookupFreeQuantizer, sized=True),
    "latent": _build_latent,
    "simvq": _side_by_side(SimQuantizer, sized=True),
    "random_projection": _side_by_side(RandomProjectionQuantizer, sized=True),
    "binary": _side_by_side(BinaryMapper, sized=True),
    "residual_vq": _in_groups(_residual_vector_stack),
    "implicit_residual_vq": _in_groups(_implicit_stack),
    "residual_fsq": _residual_stack(residual_fsq, None),
    "residual_lfq": _residual_stack(residual_lfq, LFQOptions),
    "residual_simvq": _residual_stack(residual_simvq, SimLevelOptions),
    "hierarchical": _build_hierarchical,
}
JOIN_PATCHES = ("rq", "none", "hierarchical")  # those that need no `InPatches` around them: they take whole maps


def build_quantizer(config: QuantizerHParams) -> Quantizer:
    """The quantizer that `config.bottleneck_type` names, on the code grid of the config."""
    if config.bottleneck_type not in QUANTIZERS:
        raise ValueError(f"bottleneck_type {config.bottleneck_type!r} is not one of {', '.join(QUANTIZERS)}")
    rows, columns = config.patch
    quantizer = QUANTIZERS[config.bottleneck_type](config, config.embed_dim * rows * columns)
    if quantizer.num_codes and config.n_embed is not None and quantizer.num_codes != config.code_sizes:
        raise ValueError(f"n_embed {config.n_embed} does not fit: the bottleneck has {quantizer.num_codes[0]} codes")
    joined = rows * columns > 1 and config.bottleneck_type not in JOIN_PATCHES
    return InPatches(quantizer, (rows, columns)) if joined else quantizer
