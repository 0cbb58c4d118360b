"""Drawing codes and pixels on fake CUDA tensors, every position recorded as a GPU would, and the nested transformer.

Legend: B batch, P given positions, H W grid, D code depth.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rqtransformer import RQTransformer, RQTransformerConfig, hierarchical
from rqtransformer.decoding import sample, sample_batches, sample_stream
from rqtransformer.decoding.pixel_decoding import decode_in_batches
from rqtransformer.hierarchical import HierarchicalTransformer
from rqtransformer.hierarchical_config import HierarchicalConfig
from rqvae import RQVAE, RQVAEConfig
from tests.gpu.fake_cuda import CUDA, no_host_sync
from tests.training.tiny_runs import STAGE1, changed

# What may wait for the device, all of it before the first position is drawn.
FILE = "rqtransformer/decoding/sampling_request.py"
RANGE = {f"{FILE}:_condition": "condition ids out of range are an error, told at once"}
CODES = {"rqtransformer/given_values.py:check_codes_below": "so are given codes"}
KNOWN = CODES | {f"{FILE}:check_request": "how many positions are given from the start"}


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
GROUPED = {"block": {"n_kv_head": 2, "norm": "rms", "gelu": "v2", "alibi": True}}
TABLES = {"input_emb_vqvae": False, "head_emb_vqvae": False, "cumsum_depth_ctx": False, "shared_tok_emb": False}
# changes of the model, arguments of `sample`; the last ones only in the long suite
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "settings per depth, bf16": (
        {},
        {"amp_dtype": torch.bfloat16, "top_k": [5, 3, None], "top_p": [0.9, None, 0.5], "temperature": [1.0, 0.7, 2.0]},
    ),
    "guided": ({}, {"cfg_scale": "linear:4", "top_k": 4}),
    "in-painting": ({}, {"known": (2, 2, 2, 3)}),
    "grouped queries, RMS norm, ALiBi": (GROUPED, {}),
    "text": (TEXT, {}),
    "tables of its own": (TABLES, {}),
    "prefix": ({}, {"prefix": (2, 1, 3)}),
    "int8": ({}, {"weights": "int8"}),
}


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with codes in the place of their shapes."""
    made = dict(arguments)
    if "prefix" in made:
        made["prefix"] = codes(*made["prefix"])
    if "known" in made:
        known = codes(*made["known"])
        made["known"] = (known == 1, known)
    return made


def legal(arguments: dict[str, Any]) -> dict[str, str]:
    return RANGE | (KNOWN if "known" in arguments else CODES if "prefix" in arguments else {})


QUICK = ("settings per depth, bf16", "guided", "in-painting", "grouped queries, RMS norm, ALiBi")
MARKED = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", MARKED)
def test_a_position_is_recorded_once_and_copies_nothing(gpu, case):
    changes, arguments = CASES[case]
    model, tokenizer = models(**changes)
    cond = codes(2, 4) if changes is TEXT else codes(2)
    with no_host_sync(legal(arguments)) as watch:
        for _ in range(2):
            drawn = sample(model, tokenizer, cond, checked=False, **given(arguments))
    assert drawn.is_cuda and drawn.shape == (2, 2, 2, 3)
    assert watch.recordings == 1


@pytest.mark.parametrize("case", ["settings per depth, bf16", "guided", "in-painting"])
def test_sampling_without_a_recording(gpu, case):
    changes, arguments = CASES[case]
    model, tokenizer = models(**changes)
    with no_host_sync(legal(arguments)) as watch:
        for partial in sample_stream(model, tokenizer, codes(2), graphs=False, checked=False, **given(arguments)):
            assert partial.codes.is_cuda
    assert watch.recordings == 0


def test_batches_and_their_pixels(gpu):
    model, tokenizer = models()
    with no_host_sync({**RANGE, f"{FILE}:check_request": "indices of samples come as numbers"}):
        for batch in sample_batches(model, tokenizer, [0, 1, 2], batch_size=2, checked=False):
            for image_BCHW in decode_in_batches(tokenizer, batch.codes):
                assert image_BCHW.is_cuda


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "concatenated, padded": {"merge": "concat", "pad_id": 3},
    "grouped queries, RMS norm, ALiBi alone": {
        "norm": "rms",
        "kv_heads": 1,
        "alibi": True,
        "absolute_positions": False,
    },
}


@pytest.mark.parametrize("case", OPTIONS)
def test_the_nested_transformer(gpu, case, monkeypatch):
    config = HierarchicalConfig(11, 16, depth=(1, 1), max_seq_len=(2, 3), heads=2, dim_head=8, **OPTIONS[case])
    model = HierarchicalTransformer(config).to(CUDA)
    with no_host_sync():
        model.loss(codes(2, 2, 3)).backward()
        assert model.start.grad is not None and model.start.grad.is_cuda
    monkeypatch.setattr(hierarchical, "check_drawn", lambda codes, model: codes)  # waits once, at the end
    with no_host_sync(CODES):
        assert model.generate(batch_size=2, top_k=5).is_cuda
        assert model.generate(codes(2, 4), top_p=0.9).shape == (2, 2, 3)
