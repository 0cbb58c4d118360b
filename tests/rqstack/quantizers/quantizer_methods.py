"""Every quantizer of the library in a few settings, for the tests of what all have in common.

A new method or setting is one line in METHODS. All take vectors of size DIM.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rqstack.quantizers import (
    BinaryMapper,
    FiniteScalarQuantizer,
    Grouped,
    LatentQuantizer,
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    RandomProjectionQuantizer,
    ResidualQuantizer,
    ResidualStack,
    ResidualVectorQuantizer,
    RestartRule,
    SimQuantizer,
    VectorLosses,
    VectorQuantizer,
    residual_fsq,
    residual_lfq,
    residual_simvq,
)
from rqstack.quantizers.codebooks.affine import AffineRule
from rqstack.quantizers.codebooks.learned import LearningRule
from rqstack.quantizers.methods.neural_codebook import NeuralResidualQuantizer
from rqstack.quantizers.methods.scalar_perturbation import ScalarPerturbationQuantizer

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


def vq(**settings) -> Method:
    drawn = settings.get("sample_temp") is not None
    noisy = settings.get("estimator") == "directional"
    return Method(lambda: VectorQuantizer(DIM, 20, **settings), random=drawn, noisy=noisy)


def rvq(**settings) -> Method:
    settings = {"num_codes": 20, "num_quantizers": 3, **settings}
    return Method(
        lambda: ResidualVectorQuantizer(DIM, **settings),
        random="sample_temp" in settings.get("level_options", {}),
        drops=settings.get("quantize_dropout", False),
        nearest=settings.get("beam_width", 1) == 1,
    )


def neural(num_codes, **settings) -> Quantizer:
    """With transforms that do something: they start as the identity."""
    quantizer = NeuralResidualQuantizer(DIM, num_codes, hidden=8, depth=2, **settings)
    for parameter in quantizer.transforms.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return quantizer


SGD = LearningRule(inplace=lambda parameters: torch.optim.SGD(parameters, 0.1))
METHODS = {
    "rq, shared, restart": Method(lambda: ResidualQuantizer(DIM, (20, 20, 20), shared=True, restart_unused_codes=True)),
    "rq": Method(lambda: ResidualQuantizer(DIM, (20, 12), decay=0.8)),
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
    "vq, learned in turns": vq(codebook="learned", learning=SGD, heads=2, separate_codebooks=True),
    "vq, learned, synchronised": vq(codebook="learned", learning=LearningRule(sync_nu=0.5)),
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
    "residual vq, shared, restart": rvq(shared=True, level_options={"restart": RestartRule()}),
    "residual vq, sizes, weights": rvq(num_codes=[20, 12, 7], num_quantizers=3, loss_weights=[1.0, 0.5, 0.25]),
    "residual vq, projected": rvq(codebook_dim=4, level_options={"kmeans_init": True}),
    "residual vq, cosine": rvq(level_options={"distance": "cosine"}),
    "residual vq, learned": rvq(level_options={"codebook": "learned"}, estimator="rotation"),
    "residual vq, dropout": rvq(quantize_dropout=True, dropout_multiple=2),
    "residual vq, drawn": rvq(level_options={"sample_temp": 0.5}),
    "residual vq, beam": rvq(beam_width=3),
    "grouped residual vq": Method(
        lambda: Grouped(DIM, [ResidualVectorQuantizer(3, 16, 2, level_options={"kmeans_init": True}) for _ in "12"])
    ),
    "residual of vq with heads": Method(
        lambda: ResidualStack(DIM, [VectorQuantizer(DIM, 16, heads=2), VectorQuantizer(DIM, 9, heads=2)])
    ),
    "neural residual vq": Method(lambda: neural([20, 12, 7]), nearest=False),
    "neural residual vq, beam, dropout": Method(
        lambda: neural([20, 20, 20], codebook_dim=4, beam_width=2, quantize_dropout=True), drops=True, nearest=False
    ),
    "fsq": Method(lambda: FiniteScalarQuantizer(DIM, [8, 5, 4, 3, 2, 7])),
    "fsq symmetric": Method(lambda: FiniteScalarQuantizer(DIM, [8, 5, 4], num_codebooks=2, preserve_symmetry=True)),
    "fsq projected, noise": Method(
        lambda: FiniteScalarQuantizer(DIM, [8, 5, 5, 5], num_codebooks=3, noise_dropout=0.5), random=True
    ),
    "fsp": Method(lambda: ScalarPerturbationQuantizer(DIM, [8, 5, 4], num_codebooks=2), random=True, moves=True),
    "fsp, bins only": Method(lambda: ScalarPerturbationQuantizer(DIM, [8, 5, 4], quantize_rate=1.0, invert=True)),
    "lfq": Method(lambda: LookupFreeQuantizer(DIM, 64)),
    "lfq spherical": Method(lambda: LookupFreeQuantizer(DIM, 8, num_codebooks=2, spherical=True, joint_bits=2)),
    "lfq projected": Method(lambda: LookupFreeQuantizer(DIM, 2**18, num_codebooks=2)),
    "latent": Method(lambda: LatentQuantizer(DIM, [5, 4, 3], num_codebooks=2)),
    "latent projected": Method(lambda: LatentQuantizer(DIM, [5, 4])),
    "latent in turns": Method(lambda: LatentQuantizer(DIM, [5, 4, 3], num_codebooks=2, in_place_optimizer=SGD.inplace)),
    "simvq": Method(lambda: SimQuantizer(DIM, 40)),
    "simvq, 2 parts": Method(lambda: SimQuantizer(DIM, 40, num_codebooks=2, codebook_dim=2, estimator="rotation")),
    "random projection": Method(lambda: RandomProjectionQuantizer(DIM, 30, 4, num_codebooks=3)),
    "random projection, raw": Method(lambda: RandomProjectionQuantizer(DIM, 30, 3, normalize=False)),
    "binary": Method(lambda: BinaryMapper(DIM, 2**DIM), random=True),
    "binary projected": Method(lambda: BinaryMapper(DIM, 16, num_codebooks=2, free_nats=0.0), random=True),
    "residual fsq": Method(lambda: residual_fsq(DIM, [8, 5, 4, 3, 2, 7], 3)),
    "residual fsq projected": Method(lambda: residual_fsq(DIM, [8, 5, 5], 4, preserve_symmetry=True)),
    "residual fsq, dropout": Method(lambda: residual_fsq(DIM, [8, 5, 5], 4, quantize_dropout=True), drops=True),
    "residual lfq": Method(lambda: residual_lfq(DIM, 64, 4)),
    "residual lfq projected": Method(lambda: residual_lfq(DIM, 16, 2, level_options={"spherical": True})),
    "residual simvq": Method(lambda: residual_simvq(DIM, 30, 3)),
    "residual simvq, shared": Method(lambda: residual_simvq(DIM, 30, 3, shared=True, code_dim=4)),
    "grouped residual fsq": Method(lambda: Grouped(DIM, [residual_fsq(3, [5, 4, 3], 2) for _ in range(2)])),
    "grouped residual lfq": Method(lambda: Grouped(DIM, [residual_lfq(2, 16, 2) for _ in range(3)])),
    "grouped residual simvq, dropout": Method(
        lambda: Grouped(DIM, [residual_simvq(3, 20, 2, quantize_dropout=True) for _ in range(2)]), drops=True
    ),
}


def multiscale(**settings) -> Method:
    drops = settings.get("scale_dropout", 0) > 0
    return Method(lambda: MultiScaleQuantizer(DIM, 16, (1, 2, 5), grid_dims=1, **settings), drops=drops)


# Those of whole maps (B, N, DIM) with one stack of codes (B, 1, D) per map; see also `test_multi_scale.py`.
OF_MAPS = {
    "multi-scale": multiscale(),
    "multi-scale, k-means start, restart": multiscale(kmeans_init=True, restart=RestartRule(0.5, relative=True)),
    "multi-scale, apart, k-means start": multiscale(shared=False, kmeans_init=True, codebook="learned"),
    "multi-scale, apart, restart": multiscale(shared=False, codebook="both", restart=RestartRule()),
    "multi-scale, learned in turns": multiscale(codebook="learned", learning=SGD),
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
