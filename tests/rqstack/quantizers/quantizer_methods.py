"""Every quantizer of the library in a few settings, for the tests of what all have in common.

A new method or setting is one line in METHODS. All take vectors of size DIM.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rqstack.quantizers import (
    AffineRule,
    BinaryMapper,
    BinaryOptions,
    FiniteScalarOptions,
    FiniteScalarQuantizer,
    Grouped,
    LatentOptions,
    LatentQuantizer,
    LookupFreeOptions,
    LookupFreeQuantizer,
    MultiScaleOptions,
    MultiScaleQuantizer,
    NeuralResidualOptions,
    NeuralResidualQuantizer,
    Quantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    ResidualFiniteScalarOptions,
    ResidualLookupFreeOptions,
    ResidualQuantizer,
    ResidualSimOptions,
    ResidualStack,
    ResidualVectorOptions,
    ResidualVectorQuantizer,
    RestartRule,
    ScalarPerturbationOptions,
    ScalarPerturbationQuantizer,
    SimOptions,
    SimQuantizer,
    VectorLosses,
    VectorOptions,
    VectorQuantizer,
    residual_fsq,
    residual_lfq,
    residual_simvq,
)

DIM = 6


@dataclass(frozen=True)
class Method:
    """make: a new quantizer. random: draws codes in train mode. noisy: draws in the backward pass only. drops: gives
    code -1 in train mode. moves: its output in train mode is not what the codes decode to. nearest: every depth takes
    the nearest code of `codebook`."""

    make: Callable[[], Quantizer]
    random: bool = False
    noisy: bool = False
    drops: bool = False
    moves: bool = False
    nearest: bool = True


def made(kind: Callable[..., Quantizer], options: type, *args, **settings) -> Quantizer:
    """`kind(*args, options=options(...), ...)` of settings by name: those that are fields of the options go there.

    Code vectors start at random and nothing restarts unless a setting says so: the plain case, which can be computed
    by hand. What users get by default is tested in `test_defaults.py`.
    """
    plain = {"kmeans_init": False, "restart_dead": False}
    known = {field.name for field in dataclasses.fields(options)}
    settings = {name: value for name, value in plain.items() if name in known} | settings
    own = {field.name: settings.pop(field.name) for field in dataclasses.fields(options) if field.name in settings}
    return kind(*args, options=options(**own), **settings)


def vq(**settings) -> Method:
    drawn = settings.get("sample_temp") is not None
    noisy = settings.get("estimator") == "directional"
    settings = {"num_codes": 20, **settings}
    return Method(lambda: made(VectorQuantizer, VectorOptions, DIM, **settings), random=drawn, noisy=noisy)


def rvq(**settings) -> Method:
    settings = {"dim": DIM, "num_codes": 20, "num_quantizers": 3, **settings}
    return Method(
        lambda: made(ResidualVectorQuantizer, ResidualVectorOptions, **settings),
        random="sample_temp" in settings,
        drops=settings.get("quantize_dropout", False),
        nearest=settings.get("beam_width", 1) == 1,
    )


def neural(num_codes, **settings) -> Quantizer:
    """With transforms that do something: they start as the identity."""
    quantizer = NeuralResidualQuantizer(DIM, num_codes, options=NeuralResidualOptions(hidden=8, depth=2, **settings))
    for parameter in quantizer.transforms.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return quantizer


SGD = functools.partial(torch.optim.SGD, lr=0.1)
METHODS = {
    "rq, shared, restart": Method(lambda: ResidualQuantizer(DIM, (20, 20, 20), shared=True, restart_unused_codes=True)),
    "rq": Method(lambda: ResidualQuantizer(DIM, (20, 12), decay=0.8, restart_unused_codes=False)),
    "vq": vq(),
    "vq, restart": vq(restart=RestartRule()),
    "vq, relative restart, grace": vq(restart=RestartRule(0.5, relative=True, grace=1), decay=0.5),
    "vq, restart of long unused": vq(restart=RestartRule(unused_for=1)),
    "vq, k-means start": vq(kmeans_init=True),
    "vq, 2 heads, restart": vq(heads=2, restart=RestartRule(0.5, relative=True), decay=0.5),
    "vq, 3 heads apart": vq(heads=3, separate_codebooks=True, kmeans_init=True),
    "vq, cosine, restart": vq(distance="cosine", restart=RestartRule(0.5, relative=True), decay=0.5),
    "vq, cosine, projected heads": vq(distance="cosine", codebook_dim=4, heads=2),
    "vq, projected": vq(codebook_dim=3),
    "vq, learned": vq(codebook="learned"),
    "vq, learned, restart": vq(codebook="learned", restart=RestartRule(unused_for=1)),
    "vq, learned cosine": vq(codebook="learned", distance="cosine", losses=VectorLosses(orthogonal=1.0)),
    "vq, learned in turns": vq(codebook="learned", in_place_optimizer=SGD, heads=2, separate_codebooks=True),
    "vq, learned, synchronised": vq(codebook="learned", sync_nu=0.5),
    "vq, averaged and learned": vq(codebook="both"),
    "vq, a parameter that averages alone move": vq(codebook="both", losses=VectorLosses(codebook=0.0)),
    "vq, learned by the estimator": vq(
        codebook="learned", estimator="directional", losses=VectorLosses(codebook=0.0, commitment=0.5)
    ),
    "vq, learned affine": vq(codebook="learned", affine=AffineRule("learned", groups=2)),
    "vq, running affine": vq(affine=AffineRule("running")),
    "vq, rotation": vq(estimator="rotation"),
    "vq, directional": vq(estimator="directional"),
    "vq, drawn": vq(sample_temp=0.5),
    "vq, gumbel": vq(estimator="gumbel", sample_temp=0.5, codebook="learned"),
    "vq, soft losses": vq(losses=VectorLosses(commitment=0.25, cross_entropy=0.1, diversity=0.1)),
    "residual vq": rvq(),
    "residual vq, shared, restart": rvq(shared=True, restart=RestartRule()),
    "residual vq, sizes, weights": rvq(num_codes=[20, 12, 7], num_quantizers=3, loss_weights=[1.0, 0.5, 0.25]),
    "residual vq, projected": rvq(codebook_dim=4, kmeans_init=True),
    "residual vq, cosine": rvq(distance="cosine"),
    "residual vq, learned": rvq(codebook="learned", estimator="rotation"),
    "residual vq, dropout": rvq(quantize_dropout=True, dropout_multiple=2),
    "residual vq, drawn": rvq(sample_temp=0.5),
    "residual vq, beam": rvq(beam_width=3),
    "grouped residual vq": Method(
        lambda: Grouped(DIM, [rvq(dim=3, num_codes=16, num_quantizers=2, kmeans_init=True).make() for _ in "12"])
    ),
    "residual of vq with heads": Method(
        lambda: ResidualStack(DIM, [vq(num_codes=size, heads=2).make() for size in (16, 9)])
    ),
    "neural residual vq": Method(lambda: neural([20, 12, 7]), nearest=False),
    "neural residual vq, beam, dropout": Method(
        lambda: neural([20, 20, 20], codebook_dim=4, beam_width=2, quantize_dropout=True), drops=True, nearest=False
    ),
    "fsq": Method(lambda: FiniteScalarQuantizer(DIM, FiniteScalarOptions([8, 5, 4, 3, 3, 7]))),
    "fsq symmetric": Method(
        lambda: FiniteScalarQuantizer(DIM, FiniteScalarOptions([8, 5, 4], preserve_symmetry=True), num_codebooks=2)
    ),
    "fsq projected, noise": Method(
        lambda: FiniteScalarQuantizer(DIM, FiniteScalarOptions([8, 5, 5, 5], noise_dropout=0.5), num_codebooks=3),
        random=True,
    ),
    "fsp": Method(
        lambda: ScalarPerturbationQuantizer(DIM, ScalarPerturbationOptions([8, 5, 4]), num_codebooks=2),
        random=True,
        moves=True,
    ),
    "fsp, bins only": Method(
        lambda: ScalarPerturbationQuantizer(DIM, ScalarPerturbationOptions([8, 5, 4], quantize_rate=1.0, invert=True))
    ),
    "lfq": Method(lambda: LookupFreeQuantizer(DIM, 64)),
    "lfq spherical": Method(
        lambda: LookupFreeQuantizer(DIM, 8, LookupFreeOptions(spherical=True, joint_bits=2), num_codebooks=2)
    ),
    "lfq projected": Method(lambda: LookupFreeQuantizer(DIM, 2**18, num_codebooks=2)),
    "latent": Method(lambda: LatentQuantizer(DIM, LatentOptions([5, 4, 3]), num_codebooks=2)),
    "latent projected": Method(lambda: LatentQuantizer(DIM, LatentOptions([5, 4]))),
    "latent in turns": Method(
        lambda: LatentQuantizer(DIM, LatentOptions([5, 4, 3]), num_codebooks=2, in_place_optimizer=SGD)
    ),
    "simvq": Method(lambda: SimQuantizer(DIM, 40)),
    "simvq, 2 parts": Method(
        lambda: SimQuantizer(DIM, 40, SimOptions(codebook_dim=2, estimator="rotation"), num_codebooks=2)
    ),
    "random projection": Method(
        lambda: RandomProjectionQuantizer(DIM, 30, RandomProjectionOptions(4), num_codebooks=3)
    ),
    "random projection, raw": Method(
        lambda: RandomProjectionQuantizer(DIM, 30, RandomProjectionOptions(3, normalize=False))
    ),
    "binary": Method(lambda: BinaryMapper(DIM, 2**DIM), random=True),
    "binary projected": Method(
        lambda: BinaryMapper(DIM, 16, BinaryOptions(free_nats=0.0), num_codebooks=2), random=True
    ),
    "residual fsq": Method(lambda: residual_fsq(DIM, 3, ResidualFiniteScalarOptions(levels=[8, 5, 4, 3, 3, 7]))),
    "residual fsq projected": Method(
        lambda: residual_fsq(DIM, 4, ResidualFiniteScalarOptions(levels=[8, 5, 5], preserve_symmetry=True))
    ),
    "residual fsq, dropout": Method(
        lambda: residual_fsq(DIM, 4, ResidualFiniteScalarOptions(levels=[8, 5, 5], quantize_dropout=True)), drops=True
    ),
    "residual lfq": Method(lambda: residual_lfq(DIM, 64, 4)),
    "residual lfq projected": Method(lambda: residual_lfq(DIM, 16, 2, ResidualLookupFreeOptions(spherical=True))),
    "residual simvq": Method(lambda: residual_simvq(DIM, 30, 3)),
    "residual simvq, shared": Method(lambda: residual_simvq(DIM, 30, 3, ResidualSimOptions(shared=True), code_dim=4)),
    "grouped residual fsq": Method(
        lambda: Grouped(DIM, [residual_fsq(3, 2, ResidualFiniteScalarOptions(levels=[5, 4, 3])) for _ in range(2)])
    ),
    "grouped residual lfq": Method(lambda: Grouped(DIM, [residual_lfq(2, 16, 2) for _ in range(3)])),
    "grouped residual simvq, dropout": Method(
        lambda: Grouped(DIM, [residual_simvq(3, 20, 2, ResidualSimOptions(quantize_dropout=True)) for _ in range(2)]),
        drops=True,
    ),
}


def multiscale(**settings) -> Method:
    drops = settings.get("scale_dropout", 0) > 0
    settings = {"scales": [1, 2, 5], "grid_dims": 1, **settings}
    return Method(lambda: made(MultiScaleQuantizer, MultiScaleOptions, DIM, 16, **settings), drops=drops)


# Those of whole maps (B, N, DIM) with one stack of codes (B, 1, D) per map; see also `test_multi_scale.py`.
OF_MAPS = {
    "multi-scale": multiscale(),
    "multi-scale, k-means start, restart": multiscale(kmeans_init=True, restart=RestartRule(0.5, relative=True)),
    "multi-scale, apart, k-means start": multiscale(shared=False, kmeans_init=True, codebook="learned"),
    "multi-scale, apart, restart": multiscale(shared=False, codebook="both", restart=RestartRule()),
    "multi-scale, learned in turns": multiscale(codebook="learned", in_place_optimizer=SGD),
    "multi-scale, dropout": multiscale(scale_dropout=0.5, num_convs=2),
}


def make(name: str, seed: int = 0) -> Quantizer:
    """A new quantizer, in train mode, whose random weights and codes follow from the seed."""
    torch.manual_seed(seed)
    return (METHODS | OF_MAPS)[name].make()


def forward(quantizer: torch.nn.Module, *args, seed: int = 1, **kwargs):
    """A forward whose random draws follow from the seed."""
    torch.manual_seed(seed)
    return quantizer(*args, **kwargs)


def code_limits(quantizer: Quantizer) -> torch.Tensor:
    """The codebook size of every depth."""
    return torch.tensor(quantizer.num_codes)
