"""Every quantizer on fake CUDA tensors: forward, backward, codebook update, codes and targets, without a wait.

Legend: B batch, H W latent grid, N vectors, E size of a vector.
"""

from __future__ import annotations

import pytest
import torch

from rqstack.quantizers import MultiScaleQuantizer, Quantizer, VectorQuantizer
from rqvae.bottleneck import BOTTLENECKS, build_quantizer
from rqvae.config import RQVAEConfig
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.rqstack.quantizers.quantizer_methods import DIM, METHODS, OF_MAPS
from tests.rqvae.bottleneck_configs import CONFIGS

BOTTLENECK_CASES = {
    **{name: configs[0] for name, configs in CONFIGS.items()},
    "rq, published update": {"n_embed": 16, "codebook_update": "per_depth", "shared_codebook": True},
    "hierarchical": {"n_embed": 16, "code_shape": [1, 1, 21], "bottleneck": {"scales": [1, 2, 4]}},
    "none": {"n_embed": 16},
}
# What may wait for the device, and why. Everything else runs a training step without.
START = "whether a codebook has started from data is read until it has: the buffer may come from a checkpoint"
ONCE = "a codebook starts from data once"
OWN_OPTIMIZER = "without any row the optimizer takes no step, and only the host can leave out one of any kind"


def legal(quantizer: Quantizer) -> dict[str, str]:
    """The places in which this quantizer may wait."""
    options = [module.options for module in quantizer.modules() if hasattr(module, "options")]
    places = {}
    if any(getattr(option, "kmeans_init", False) for option in options):
        file = "multi_scale" if isinstance(quantizer, MultiScaleQuantizer) else "vector"
        places[f"rqstack/quantizers/methods/{file}.py:_is_initialized"] = START
        places["rqstack/quantizers/codebooks/kmeans.py:draw_vectors"] = ONCE
    books = [module for module in quantizer.modules() if isinstance(module, VectorQuantizer)]
    if any(book.inplace_optimizer is not None for book in books):
        places["rqstack/quantizers/codebooks/alternating.py:alternating_step"] = OWN_OPTIMIZER
    return places


def drive(quantizer: Quantizer, z: torch.Tensor) -> None:
    """A training step, then what stage 2 and the decoder ask for."""
    out = quantizer(z)
    assert out.quantized.is_cuda and out.codes.is_cuda and out.loss.is_cuda
    (out.quantized.square().mean() + out.loss).backward()
    assert z.grad is not None and z.grad.is_cuda
    quantizer.update_codebook()
    quantizer.restart_counts()
    quantizer.eval()
    if quantizer.num_codes:
        codes = quantizer.targets(z.detach())[1]
        quantizer.decode(codes)


def test_every_bottleneck_is_driven():
    assert {case.split(",")[0] for case in BOTTLENECK_CASES} == set(BOTTLENECKS)


@pytest.mark.parametrize("case", BOTTLENECK_CASES)
def test_bottlenecks(gpu, case: str):
    hparams = {
        "bottleneck_type": case.split(",")[0],
        "embed_dim": 8,
        "latent_shape": [4, 4, 8],
        "code_shape": [4, 4, 2],
    }
    arch = {"ddconfig": {"z_channels": 8, "resolution": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1}}
    arch["hparams"] = {**hparams, **BOTTLENECK_CASES[case]}
    quantizer = build_quantizer(RQVAEConfig.from_mapping(arch)).to(CUDA).train()
    with no_host_sync(legal(quantizer)):
        drive(quantizer, torch.randn(2, 4, 4, 8, device=CUDA, requires_grad=True))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*METHODS, *OF_MAPS])
def test_quantizers(gpu, case: str):
    with torch.device(CUDA if "in turns" in case else "cpu"):  # fake parameters cannot be moved under an optimizer
        quantizer = (METHODS | OF_MAPS)[case].make().to(CUDA).train()
    with no_host_sync(legal(quantizer)):
        drive(quantizer, torch.randn(2, 5, DIM, device=CUDA, requires_grad=True))
