"""All published stage-2 architectures on the meta device: parameter counts, state-dict names and shapes."""

from __future__ import annotations

import itertools
import re

import pytest
import torch

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.model import count_parameters

#            name:             embed, vocab, cond, cond length, body layers, head layers, heads
PUBLISHED = {
    "imagenet256 480M": (1536, 16384, 1000, 1, 12, 4, 24),
    "imagenet256 800M": (1536, 16384, 1000, 1, 24, 4, 24),
    "imagenet256 1400M": (1536, 16384, 1000, 1, 42, 6, 24),
    "imagenet256 3800M": (2560, 16384, 1000, 1, 42, 6, 40),
    "cc3m 650M": (1280, 16384, 16384, 32, 26, 4, 20),
    "ffhq 350M": (1024, 2048, 1, 1, 24, 4, 16),
    "lsun-church 350M": (1024, 16384, 1, 1, 24, 4, 16),
    "lsun-cat 600M": (1280, 16384, 1, 1, 26, 4, 20),
    "lsun-bedroom 600M": (1280, 16384, 1, 1, 26, 4, 20),
}
PARTS = {"pos_emb_*": r"pos_emb_\w+"}


def published_config(name: str) -> RQTransformerConfig:
    embed_dim, vocab_size, cond, cond_length, body, head, heads = PUBLISHED[name]
    switches = ["shared_tok_emb", "shared_cls_emb", "input_emb_vqvae", "head_emb_vqvae", "cumsum_depth_ctx"]
    mapping = {
        "type": "rq-transformer",
        "block_size": [8, 8, 4],
        "embed_dim": embed_dim,
        "input_embed_dim": 256,
        "vocab_size_cond": cond,
        "block_size_cond": cond_length,
        **dict.fromkeys(switches, True),
        "body": {"n_layer": body, "block": {"n_head": heads}},
        "head": {"n_layer": head, "block": {"n_head": heads}},
    }
    return RQTransformerConfig.from_mapping(mapping, vocab_size=vocab_size)


def expand(pattern: str) -> list[str]:
    """`a.{0..2}.{b,c}` -> all names it stands for."""
    pieces = re.split(r"\{([^}]*)\}", pattern)
    choices = []
    for index, piece in enumerate(pieces):
        options = []
        for part in piece.split(",") if index % 2 else [piece]:
            first, _, last = part.partition("..")
            options += [str(i) for i in range(int(first), int(last) + 1)] if index % 2 and last else [part]
        choices.append(options)
    return ["".join(combination) for combination in itertools.product(*choices)]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture(name, golden_keys):
    expected = golden_keys[name]
    with torch.device("meta"):
        model = RQTransformer(published_config(name))
    assert count_parameters(model) == expected["parameters"]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected["trainable"]
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    wanted = {key: shape for pattern, shape, _, _ in expected["keys"] for key in expand(pattern)}
    assert shapes == wanted
    assert len(shapes) == expected["entries"]
    for part, count in expected["parts"].items():
        matches = re.compile(PARTS.get(part, re.escape(part)) + r"(\.|$)").match
        assert sum(p.numel() for key, p in model.named_parameters() if matches(key)) == count, part


def test_every_published_stage2_configuration_is_covered(golden_keys):
    assert set(PUBLISHED) == {name for name, entry in golden_keys.items() if entry["kind"] == "rq-transformer"}
