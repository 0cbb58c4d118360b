"""The published stage-1 architectures at full size, on the meta device: parameter counts, names and shapes."""

import itertools
import math
import re

import pytest
import torch

from rqvae import RQVAE, RQVAEConfig
from rqvae.model import count_parameters
from tests.rqvae.published_state import published_state

NAMES = ("imagenet256", "ffhq", "lsun-church", "lsun-cat", "lsun-bedroom")


def expand(pattern):
    """'a.{0,2}.b.{0..1}' -> all names the pattern stands for."""
    choices = []
    for part in re.split(r"(\{[^}]*\})", pattern):
        if not part.startswith("{"):
            choices.append([part])
            continue
        numbers = []
        for item in part[1:-1].split(","):
            first, _, last = item.partition("..")
            numbers += range(int(first), int(last or first) + 1)
        choices.append([str(number) for number in numbers])
    return ["".join(combination) for combination in itertools.product(*choices)]


def published_arch(name):
    ffhq = name == "ffhq"
    return {
        "type": "rq-vae",
        "code_hier": 1,
        "hparams": {
            "bottleneck_type": "rq",
            "embed_dim": 256,
            "n_embed": 2048 if ffhq else 16384,
            "latent_shape": [8, 8, 256],
            "code_shape": [8, 8, 4],
            "shared_codebook": True,
            "decay": 0.99,
            "restart_unused_codes": True,
            "loss_type": "mse",
            "latent_loss_weight": 0.25,
        },
        "ddconfig": {
            "double_z": False,
            "z_channels": 256,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": [1, 1, 2, 2, 4, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [16 if ffhq else 8],
            "dropout": 0.0,
        },
        "checkpointing": True,
    }


@pytest.mark.parametrize("name", NAMES)
def test_counts_names_and_shapes(name, golden_keys):
    (expected,) = [entry for key, entry in golden_keys.items() if key.startswith(f"{name} stage 1")]
    with torch.device("meta"):
        model = RQVAE(RQVAEConfig.from_mapping(published_arch(name)))
    assert count_parameters(model) == expected["parameters"]
    assert sum(p.numel() for p in model.parameters()) == expected["trainable"]
    published = published_state(model)
    shapes = {key: shape for pattern, shape, *_ in expected["keys"] for key in expand(pattern)}
    assert len(published) == len(shapes) == expected["entries"]
    assert {key: list(tensor.shape) for key, tensor in published.items()} == shapes
    for part in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
        assert count_parameters(model.get_submodule(part)) == expected["parts"][part]
    assert count_parameters(model.quantizer) == expected["parts"]["quantizer"]
    assert math.prod(model.codebook(3).shape) == expected["parts"]["quantizer"] - 256
