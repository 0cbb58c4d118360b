"""A small model and a stand-in for the stage-1 model, for tests that need no reference numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.native import calls

CODE_DIM = 6


class TableTokenizer:
    """The part of `ImageTokenizer` that codes need: one random codebook per depth."""

    def __init__(self, sizes: list[int], code_dim: int = CODE_DIM):
        generator = torch.Generator().manual_seed(7)
        self.books = [torch.randn(size, code_dim, generator=generator) for size in sizes]

    def codebook(self, depth: int) -> Tensor:
        return self.books[depth]

    def embed_code_with_depth(self, codes_BHWD: Tensor) -> Tensor:
        return torch.stack([book[codes_BHWD[..., d]] for d, book in enumerate(self.books)], dim=-2)


def small_arch(**changes: Any) -> dict[str, Any]:
    block = {"n_head": 2}
    arch = {
        "block_size": [2, 3, 3],
        "embed_dim": 16,
        "input_embed_dim": CODE_DIM,
        "vocab_size": 11,
        "shared_tok_emb": True,
        "shared_cls_emb": True,
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 5,
        "block_size_cond": 1,
        "body": {"n_layer": 2, "block": block},
        "head": {"n_layer": 2, "block": dict(block)},
    }
    return {**arch, **changes}


@pytest.fixture
def arch() -> Callable[..., dict[str, Any]]:
    """`arch(key=value, ...)`: the mapping of a small model."""
    return small_arch


@pytest.fixture
def build() -> Callable[..., tuple[RQTransformer, TableTokenizer]]:
    """`build(key=value, ...)` -> (small model in eval mode, tokenizer with its vocabulary sizes)."""

    def make(**changes: Any) -> tuple[RQTransformer, TableTokenizer]:
        config = RQTransformerConfig.from_mapping(small_arch(**changes))
        torch.manual_seed(1)
        model = RQTransformer(config).eval()
        return model, TableTokenizer(config.vocab_sizes, config.code_dim)

    return make


@pytest.fixture(params=["as it is", "without a compiler"])
def either_path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test twice: with compiled code where this machine has a compiler, and without it."""
    if request.param == "without a compiler":
        monkeypatch.setattr(calls, "library", lambda: None)
    return request.param


@pytest.fixture
def random_codes() -> Callable[..., Tensor]:
    """`random_codes(model, batch_size)`: valid codes (B, H, W, D)."""

    def make(model: RQTransformer, batch_size: int = 2) -> Tensor:
        height, width, _ = model.config.block_size
        columns = [torch.randint(0, size, (batch_size, height, width)) for size in model.config.vocab_sizes]
        return torch.stack(columns, dim=-1)

    return make
