"""Calls of the two models with what they do not take: a short line, ValueError or TypeError, that our own code raised.

Every argument of every call is replaced by values of wrong types, empty, null, negative, huge and not finite ones. A
value that a call can work with may pass.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rqtransformer import (
    HierarchicalConfig,
    HierarchicalTransformer,
    RQTransformer,
    RQTransformerConfig,
    compat,
    decode_in_batches,
    load_rqtransformer,
    sample,
)
from rqvae import RQVAE, RQVAEConfig, load_rqvae
from tests.repository import ROOT
from tests.training.tiny_runs import STAGE1, STAGE2

WRONG: dict[str, Any] = {
    "None": None,
    "0": 0,
    "-1": -1,
    "2**70": 2**70,
    "-2**70": -(2**70),
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "text": "x",
    "empty text": "",
    "bytes": b"1",
    "True": True,
    "complex": 3j,
    "object": object(),
    "empty list": [],
    "list": [4],
    "list of None": [None],
    "list of text": ["x"],
    "mapping": {"a": 1},
    "array": np.zeros((2, 2)),
    "tensor": torch.zeros(2, 3),
    "number in a tensor": torch.tensor(3),
    "truth values": torch.ones(2, 3).bool(),
    "no rows": torch.zeros(0, 8),
    "huge codes": torch.full((1, 2, 2, 3), 2**62),
    "codes of floats": torch.zeros(1, 2, 2, 3),
}
ARCH1: dict[str, Any] = STAGE1["arch"]
ARCH2: dict[str, Any] = STAGE2["arch"] | {"vocab_size": 16, "cond_drop_prob": 0.1}
LEVELS = HierarchicalConfig(7, 16, (1, 1), (3, 2), heads=2, dim_head=8)
OTHER = {"num_tokens": 7, "dim": 16, "dim_head": 8, "heads": 2, "attn_dropout": 0.0, "ff_mult": 4, "pad_id": None}
CODES, IMAGE, LATENT = torch.zeros(1, 2, 2, 3, dtype=torch.long), torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 4, 8)
IDS = torch.zeros(2, 6, dtype=torch.long)
ONE = RQVAE(RQVAEConfig.from_mapping(ARCH1)).eval()
TWO = RQTransformer(RQTransformerConfig.from_mapping(ARCH2)).eval()
MANY = HierarchicalTransformer(LEVELS).eval()
THEIRS = compat.RQTransformer(**OTHER, max_spatial_seq_len=3, depth_seq_len=2, spatial_layers=1, depth_layers=1).eval()
DRAWS = {"temperature": 1.0, "top_k": 2, "top_p": 0.9, "seed": 0, "start_index": 0}


def of(call: Callable[..., Any], **arguments: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    return call, arguments


def section(build: Callable[[dict[str, Any]], Any], whole: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    return lambda **changes: build(whole | changes), whole


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "RQVAE": of(RQVAE, config=ONE.config),
    "RQVAEConfig.from_mapping": of(RQVAEConfig.from_mapping, mapping=ARCH1),
    "hparams": section(lambda it: RQVAE(RQVAEConfig.from_mapping(ARCH1 | {"hparams": it})), ARCH1["hparams"]),
    "ddconfig": section(lambda it: RQVAE(RQVAEConfig.from_mapping(ARCH1 | {"ddconfig": it})), ARCH1["ddconfig"]),
    "forward": of(ONE, image_BCHW=IMAGE),
    "encode": of(ONE.encode, image_BCHW=IMAGE),
    "quantize": of(ONE.quantize, z_BHWE=LATENT),
    "decode": of(ONE.decode, z_BHWE=LATENT),
    "get_codes": of(ONE.get_codes, image_BCHW=IMAGE),
    "get_soft_codes": of(ONE.get_soft_codes, image_BCHW=IMAGE, temp=1.0, stochastic=False),
    "get_latent_targets": of(ONE.get_latent_targets, image_BCHW=IMAGE, temp=1.0, stochastic=True),
    "embed_code": of(ONE.embed_code, codes_BhwD=CODES),
    "embed_code_with_depth": of(ONE.embed_code_with_depth, codes_BhwD=CODES),
    "codebook": of(ONE.codebook, depth=0),
    "decode_code": of(ONE.decode_code, codes_BhwD=CODES),
    "decode_partial_code": of(ONE.decode_partial_code, codes_BhwD=CODES, code_idx=1, decode_type="select"),
    "load_rqvae": of(load_rqvae, path=ROOT / "none"),
    "load_rqtransformer": of(load_rqtransformer, path=ROOT / "none"),
    "from_pretrained": of(RQVAE.from_pretrained, source=ROOT / "none"),
    "RQTransformer": of(RQTransformer, config=TWO.config),
    "RQTransformerConfig.from_mapping": of(RQTransformerConfig.from_mapping, mapping=ARCH2),
    "arch": section(lambda it: RQTransformer(RQTransformerConfig.from_mapping(it)), ARCH2),
    "logits": of(TWO, codes_BHWD=CODES, tokenizer=ONE, cond=torch.tensor([1])),
    "sample": of(sample, model=TWO, tokenizer=ONE, cond=[1], num_samples=1, cfg_scale=2.0, indices=[0], **DRAWS),
    "sample of settings": of(
        lambda **it: sample(TWO, ONE, [1], **it), prefix=None, known=None, amp_dtype=None, weights="dense", graphs=False
    ),
    "decode_in_batches": of(
        lambda **it: list(decode_in_batches(**it)), tokenizer=ONE, codes_BHWD=CODES, memory_budget=2**20, batch_size=1
    ),
    "HierarchicalTransformer": of(HierarchicalTransformer, config=LEVELS),
    "HierarchicalConfig": section(lambda it: HierarchicalTransformer(HierarchicalConfig(**it)), vars(LEVELS)),
    "hierarchical loss": of(MANY.loss, ids=IDS),
    "hierarchical logits": of(MANY, ids=IDS),
    "generate": of(MANY.generate, prime=None, batch_size=1, num_blocks=1, **DRAWS),
    "compat.HierarchicalCausalTransformer": of(
        compat.HierarchicalCausalTransformer, **OTHER, depth=(1, 1), max_seq_len=(3, 2), rel_pos_bias=True
    ),
    "compat.RQTransformer": of(
        compat.RQTransformer, **OTHER, max_spatial_seq_len=3, depth_seq_len=2, spatial_layers=1, depth_layers=1
    ),
    "compat forward": of(THEIRS, ids=IDS, return_loss=False),
    "compat generate": of(THEIRS.generate, prime=None, filter_thres=0.9, temperature=1.0, default_batch_size=1, seed=0),
}


def assert_clear(error: Exception) -> None:
    message, last = str(error), traceback.extract_tb(error.__traceback__)[-1]
    assert isinstance(error, (ValueError, TypeError, FileNotFoundError)), repr(error)
    assert message and "\n" not in message and len(message) < 300 and " at 0x" not in message
    assert last.filename.startswith(str(ROOT)) and "raise" in str(last.line), f"{last.filename}:{last.lineno} {message}"


@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(("load_", "from_pre"))])
def test_the_right_arguments_are_taken(name):
    call, arguments = CALLS[name]
    call(**arguments)


@pytest.mark.parametrize("name", CALLS)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_a_wrong_argument_is_a_line_of_our_own(name, data):
    call, arguments = CALLS[name]
    changed = data.draw(st.sampled_from(sorted(arguments)))
    kind = data.draw(st.sampled_from(sorted(WRONG)))
    try:
        call(**arguments | {changed: WRONG[kind]})
    except Exception as error:
        assert_clear(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_wrong_argument_is_a_line_of_our_own(name):
    call, arguments = CALLS[name]
    for changed in arguments:
        for wrong in WRONG.values():
            try:
                call(**arguments | {changed: wrong})
            except Exception as error:
                assert_clear(error)
