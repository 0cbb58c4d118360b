"""What `quantizer_speed` measures: quantizers of ours, the settings of the same in the peer, inputs and floors."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rqstack.quantizers import (
    FiniteScalarOptions,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    RandomProjectionOptions,
    RandomProjectionQuantizer,
    ResidualFiniteScalarOptions,
    ResidualQuantizer,
    ResidualVectorOptions,
    VectorOptions,
    VectorQuantizer,
    residual_fsq,
    residual_lfq,
)
from rqstack.quantizers.methods.residual_vector import ResidualVectorQuantizer

LEVELS = [8, 5, 5, 5]


@dataclass(frozen=True)
class Case:
    """One quantizer and input: N vectors of size `dim`.

    floor: (searches, size of a vector, K) of the matrix products that no method gets by without; None: the method needs
    none, and only times are reported. passes: what is timed of 'eval', 'forward' and 'train'. peer_image: (B, H, W)
    with N = B x H x W where the peer takes images (B, dim, H, W).
    """

    name: str
    num_vectors: int
    dim: int
    make: Callable[[], nn.Module]
    peer: dict[str, Any]
    floor: tuple[int, int, int] | None = None
    passes: tuple[str, ...] = ("eval", "forward", "train")
    peer_image: tuple[int, int, int] | None = None

    def peer_input(self, x_1NE: torch.Tensor) -> torch.Tensor:
        """The same vectors in the layout that the peer takes."""
        if self.peer_image is None:
            return x_1NE
        return x_1NE.view(*self.peer_image, self.dim).permute(0, 3, 1, 2).contiguous()


PLAIN = VectorOptions(kmeans_init=False, restart_dead=False)


def _vector(name: str, num_vectors: int, num_codes: int, options: VectorOptions = PLAIN, heads: int = 1) -> Case:
    peer: dict[str, Any] = {
        "class": "VectorQuantize",
        "dim": 256,
        "codebook_size": num_codes,
        "rotation_trick": options.estimator == "rotation",
    }
    if options.distance == "cosine":
        peer["use_cosine_sim"] = True
    if heads > 1:
        peer |= {"heads": heads, "codebook_dim": 256 // heads, "separate_codebook_per_head": True}
    return Case(
        name,
        num_vectors,
        256,
        lambda: VectorQuantizer(256, num_codes, options, heads=heads, separate_codebooks=heads > 1),
        peer,
        floor=(heads, 256 // heads, num_codes),
    )


def _residual(name: str, num_vectors: int, num_codes: int, levels: int, beam: int | None = None) -> Case:
    peer = {
        "class": "ResidualVQ",
        "dim": 256,
        "codebook_size": num_codes,
        "num_quantizers": levels,
        "shared_codebook": True,
        "rotation_trick": False,
    }

    def make() -> Quantizer:
        if beam is None:
            return ResidualQuantizer(256, (num_codes,) * levels, shared=True, restart_unused_codes=False)
        return ResidualVectorQuantizer(
            256,
            num_codes,
            levels,
            ResidualVectorOptions(beam_width=beam, kmeans_init=False, restart_dead=False),
            shared=True,
        )

    passes: tuple[str, ...] = ("eval", "forward", "train")
    if beam is not None:
        peer |= {"beam_size": beam}
        passes = ("forward", "train")  # the peer's beam search fails in eval
    return Case(name, num_vectors, 256, make, peer, floor=(levels, 256, num_codes), passes=passes)


class _CodesOnly(nn.Module):
    """A random-projection quantizer that gives its codes alone, as the peer's does."""

    def __init__(self, quantizer: RandomProjectionQuantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.quantizer.indices(x)


_LFQ = Case(
    "lfq-65536-8x32x32",
    8 * 32 * 32,
    16,
    lambda: LookupFreeQuantizer(16, 65536),
    {"class": "LFQ", "dim": 16, "codebook_size": 65536, "entropy_loss_weight": 0.1, "commitment_loss_weight": 0.25},
    peer_image=(8, 32, 32),
)
_RANDOM_PROJECTION = Case(
    "random-projection-readme",
    1024,
    512,
    lambda: _CodesOnly(RandomProjectionQuantizer(512, 1024, RandomProjectionOptions(256), num_codebooks=16)),
    {"class": "RandomProjectionQuantizer", "dim": 512, "num_codebooks": 16, "codebook_dim": 256, "codebook_size": 1024},
    floor=(16, 256, 1024),
    passes=("eval",),
)

CASES = [
    _vector("vq-16384-n2048", 2048, 16384),
    _vector("vq-16384-n8192", 8192, 16384),
    _vector("vq-1024-n8192", 8192, 1024),
    _vector("vq-1024-n8192-rotation", 8192, 1024, dataclasses.replace(PLAIN, estimator="rotation")),
    _vector("cosine-16384-n2048", 2048, 16384, dataclasses.replace(PLAIN, distance="cosine")),
    _vector("heads-8x8196-n1024", 1024, 8196, heads=8),
    _residual("residual-4x16384-n2048", 2048, 16384, 4),
    _residual("residual-8x1024-n2048", 2048, 1024, 8),
    _residual("residual-beam4-8x1024-n2048", 2048, 1024, 8, beam=4),
    _LFQ,
    _RANDOM_PROJECTION,
    Case(
        "fsq-n65536",
        65536,
        4,
        lambda: FiniteScalarQuantizer(4, FiniteScalarOptions(LEVELS)),
        {"class": "FSQ", "levels": LEVELS},
    ),
    Case(
        "fsq-projected-n8192",
        8192,
        256,
        lambda: FiniteScalarQuantizer(256, FiniteScalarOptions(LEVELS)),
        {"class": "FSQ", "levels": LEVELS, "dim": 256},
    ),
    Case(
        "residual-fsq-8-n8192",
        8192,
        256,
        lambda: residual_fsq(256, 8, ResidualFiniteScalarOptions(levels=LEVELS)),
        {"class": "ResidualFSQ", "levels": LEVELS, "num_quantizers": 8, "dim": 256},
    ),
    Case(
        "residual-lfq-8x256-n8192",
        8192,
        256,
        lambda: residual_lfq(256, 256, 8),
        {"class": "ResidualLFQ", "dim": 256, "codebook_size": 256, "num_quantizers": 8},
    ),
]


def floor_of(case: Case, device: torch.device) -> Callable[[], None] | None:
    """The searches alone, each on its whole N x K matrix."""
    if case.floor is None:
        return None
    number, size, num_codes = case.floor
    x_NE = torch.randn(case.num_vectors, size, device=device)
    weight_KE = torch.randn(num_codes, size, device=device)

    def run() -> None:
        for _ in range(number):
            (x_NE @ weight_KE.T).argmin(1)

    return run
