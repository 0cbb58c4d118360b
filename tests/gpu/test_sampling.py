"""Drawing codes and pixels on fake CUDA tensors, every position recorded as a GPU would, and the nested transformer.

Legend: B batch, P given positions, H W grid, D code depth.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.decoding import sample
from rqvae import RQVAE, RQVAEConfig
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.training.tiny_runs import STAGE1, changed

# What may wait for the device, all of it before the first position is drawn.
REQUEST = {"rqtransformer/decoding/sampling_request.py:check_request": "ids out of range are an error, told at once"}
GUIDANCE = {"rqtransformer/decoding/code_sampling.py:__init__": "the scales of all positions, brought over once"}


def arch(**changes: Any) -> dict[str, Any]:
    block = {"n_head": 4, **changes.pop("block", {})}
    return {
        "block_size": [2, 2, 3],
        "embed_dim": 16,
        "input_embed_dim": 32,
        "vocab_size": [16, 12, 8],
        "input_emb_vqvae": True,
        "head_emb_vqvae": True,
        "cumsum_depth_ctx": True,
        "vocab_size_cond": 8,
        "cond_drop_prob": 0.1,
        "body": {"n_layer": 1, "block": block},
        "head": {"n_layer": 1, "block": block},
        **changes,
    }


def models(**changes: Any) -> tuple[RQTransformer, RQVAE]:
    """Both on the device, in eval mode."""
    hparams = {"arch.hparams.n_embed": [16, 12, 8], "arch.hparams.shared_codebook": False}
    tokenizer = RQVAE(RQVAEConfig.from_mapping(changed(STAGE1, hparams)["arch"]))
    model = RQTransformer(RQTransformerConfig.from_mapping(arch(**changes)))
    return model.to(CUDA).eval(), tokenizer.to(CUDA).eval()


def codes(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.long, device=CUDA)


TEXT = {"vocab_size_cond": 20, "block_size_cond": 4}
GROUPED = {"block": {"n_kv_head": 2, "norm": "rms", "gelu": "v2"}}
ALIBI = {"block": {"alibi": True}}
TABLES = {"input_emb_vqvae": False, "head_emb_vqvae": False, "cumsum_depth_ctx": False, "shared_tok_emb": False}
# changes of the model, arguments of `sample`, what may wait
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "plain, bf16": ({}, {"amp_dtype": torch.bfloat16}, {}),
    "settings per depth": ({}, {"top_k": [5, 3, None], "top_p": [0.9, None, 0.5], "temperature": [1.0, 0.7, 2.0]}, {}),
    "guided": ({}, {"cfg_scale": "linear:4", "top_k": 4}, GUIDANCE),
    "prefix": ({}, {"prefix": (2, 1, 3)}, {}),
    "in-painting": ({}, {"known": (2, 2, 2, 3)}, {}),
    "grouped queries, RMS norm": (GROUPED, {}, {}),
    "ALiBi": (ALIBI, {}, {}),
    "text": (TEXT, {}, {}),
    "tables of its own": (TABLES, {}, {}),
    "int8": ({}, {"weights": "int8"}, {}),
}


@pytest.mark.parametrize("graphs", [None, False], ids=["recorded", "as it is"])
@pytest.mark.parametrize("case", CASES)
def test_sampling(gpu, case, graphs):
    changes, arguments, legal = CASES[case]
    model, tokenizer = models(**changes)
    arguments = dict(arguments)
    if "prefix" in arguments:
        arguments["prefix"] = codes(*arguments["prefix"])
    if "known" in arguments:
        known = codes(*arguments["known"])
        arguments["known"] = (known == 1, known)
    cond = codes(2, 4) if changes is TEXT else codes(2)
    with no_host_sync({**REQUEST, **legal}):
        drawn = sample(model, tokenizer, cond, graphs=graphs, **arguments)
    assert drawn.is_cuda and drawn.shape == (2, 2, 2, 3)
