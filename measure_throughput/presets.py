"""The published sizes: tokenizers f8, f16 and f32 at 256 x 256, transformers from 90M to 1.4B.

Figure 4 of Lee et al., Autoregressive Image Generation using Residual Quantization, CVPR 2022.
"""

from __future__ import annotations

from typing import NamedTuple

from rqtransformer import RQTransformerConfig
from rqvae.config import RQVAEConfig

RESOLUTION = 256
CODE_DIM = 256
NUM_CLASSES = 1000
CHANNEL_MULTIPLIERS = {8: [1, 2, 2, 4], 16: [1, 1, 2, 2, 4], 32: [1, 1, 2, 2, 4, 4]}


class Sizes(NamedTuple):
    """Width, attention heads, layers of body and head for stacks of codes, body layers where there is one code."""

    width: int
    num_heads: int
    body: int
    head: int
    body_alone: int


TRANSFORMERS = {
    "small": Sizes(512, 8, 24, 4, 28),
    "medium": Sizes(1024, 16, 24, 4, 28),
    "large": Sizes(1536, 24, 24, 4, 28),
    "huge": Sizes(1536, 24, 42, 6, 48),
    "vqgan_large": Sizes(1664, 16, 24, 0, 24),
    "vqgan_huge": Sizes(1536, 24, 48, 0, 48),
}
# The two VQ-GAN models exist for one code shape and codebook each.
ONLY_WITH = {"vqgan_large": (16, 1, 1024), "vqgan_huge": (16, 1, 16384)}


def check(factor: int, depth: int, num_codes: int, model: str) -> None:
    """ValueError in one line for sizes that are no preset."""
    if factor not in CHANNEL_MULTIPLIERS:
        raise ValueError(f"f={factor} is not one of {', '.join(map(str, CHANNEL_MULTIPLIERS))}")
    if model not in TRANSFORMERS:
        raise ValueError(f"model={model!r} is not one of {', '.join(TRANSFORMERS)}")
    if min(depth, num_codes) < 1:
        raise ValueError(f"d={depth} and c={num_codes} must be at least 1")
    only = ONLY_WITH.get(model)
    if only not in (None, (factor, depth, num_codes)):
        raise ValueError(
            f"model={model} exists for f={only[0]} d={only[1]} c={only[2]} only, not f={factor} d={depth} c={num_codes}"
        )


def tokenizer_config(factor: int, depth: int, num_codes: int) -> RQVAEConfig:
    """RQ-VAE whose code map is 256 / factor on a side, `depth` codes deep."""
    side = RESOLUTION // factor
    return RQVAEConfig.from_mapping(
        {
            "embed_dim": CODE_DIM,
            "n_embed": num_codes,
            "latent_shape": [side, side, CODE_DIM],
            "code_shape": [side, side, depth],
            "shared_codebook": True,
            "restart_unused_codes": True,
            "loss_type": "mse",
            "ddconfig": {
                "z_channels": CODE_DIM,
                "resolution": RESOLUTION,
                "ch": 128,
                "ch_mult": CHANNEL_MULTIPLIERS[factor],
                "num_res_blocks": 2,
                "attn_resolutions": [side],
            },
        }
    )


def transformer_config(model: str, code_shape: tuple[int, int, int], num_codes: int) -> RQTransformerConfig:
    """Class-conditional RQ-Transformer for code maps (H, W, D); with one code per position there is no head."""
    sizes = TRANSFORMERS[model]
    alone = code_shape[2] == 1
    block = {"n_head": sizes.num_heads}
    return RQTransformerConfig.from_mapping(
        {
            "block_size": list(code_shape),
            "vocab_size": num_codes,
            "vocab_size_cond": NUM_CLASSES,
            "embed_dim": sizes.width,
            "input_embed_dim": CODE_DIM,
            "shared_tok_emb": True,
            "shared_cls_emb": True,
            "input_emb_vqvae": True,
            "head_emb_vqvae": True,
            "cumsum_depth_ctx": True,
            "body": {"n_layer": sizes.body_alone if alone else sizes.body, "block": block},
            "head": {"n_layer": 0 if alone else sizes.head, "block": block},
        }
    )
