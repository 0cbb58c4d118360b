"""What users give to the samplers: what can be read is read, everything else is a ValueError of one short line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rqtransformer import HierarchicalConfig, HierarchicalTransformer, compat, sample, sample_stream
from rqtransformer.decoding import sample_batches

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "prefix code V": ({"prefix": torch.full((2, 1, 3), 11)}, r"prefix: code 11 of depth 0 must lie in 0\.\.10"),
    "negative prefix": ({"prefix": torch.full((2, 1, 3), -1)}, "code -1 of depth 0"),
    "float prefix": ({"prefix": torch.zeros(2, 1, 3)}, r"prefix is of type torch.float32 .*prefix.long\(\)"),
    "prefix of half a row": ({"prefix": torch.zeros(2, 1, 2, 3).long()}, "whole rows of a code map"),
    "prefix of another type": ({"prefix": "codes"}, "prefix must be whole numbers"),
    "codes above V": ({"known": (torch.ones(2, 3).bool(), torch.full((2, 2, 3, 3), 11))}, "known: code 11 of depth 0"),
    "half a known": ({"known": torch.ones(2, 3).bool()}, r"known must be \(mask, codes\)"),
    "a mask of words": ({"known": ("all", torch.zeros(2, 2, 3, 3))}, "mask of known"),
    "class V": (
        {"cond": [0, 6]},
        r"condition ids must lie in 0\.\.4 \(5 is the null condition of guidance\), not 0\.\.6",
    ),
    "negative class": ({"cond": [0, -1]}, r"not -1\.\.0"),
    "float labels": ({"cond": torch.zeros(2)}, r"cond is of type torch.float32 .*cond.long\(\)"),
    "truth values": ({"cond": [True, False]}, "cond is of type torch.bool"),
    "class names": ({"cond": ["cat", "dog"]}, "cond must be whole numbers in a tensor, an array or lists"),
    "ragged": ({"cond": [[0, 1], [0]]}, "of equal length"),
    "one class": ({"cond": 3}, "cond=3 must have one entry per sample"),
    "no class": ({"cond": []}, "agree on one positive number"),
    "huge class": ({"cond": [2**70, 0]}, "cond must be whole numbers"),
    "half a sample": ({"num_samples": 1.5}, "num_samples=1.5 must be a whole number"),
    "number in words": ({"num_samples": "2"}, "num_samples='2' must be a whole number"),
    "true samples": ({"num_samples": True}, "num_samples=True must be a whole number"),
    "no sample": ({"num_samples": 0}, "agree on one positive number"),
    "indices of words": ({"indices": ["a", "b"]}, "indices must be whole numbers"),
    "huge start": ({"start_index": 2**63 - 1}, "start_index=.* must leave room"),
    "huge seed": ({"seed": 2**80}, "seed=.* must be a whole number"),
    "float seed": ({"seed": 0.5}, "seed=0.5 must be a whole number"),
    "temperature in words": ({"temperature": "hot"}, "temperature='hot' must be above 0"),
    "NaN": ({"temperature": float("nan")}, "temperature=nan must be above 0"),
    "top_k of half a code": ({"top_k": 2.5}, "top_k=2.5 must be a whole number"),
    "true top_k": ({"top_k": True}, "top_k=True must be a whole number"),
    "top_p in words": ({"top_p": "0.9"}, "top_p='0.9' must be above 0"),
    "many temperatures": ({"temperature": [1.0] * 5000}, r"one value or one per depth \(3\)"),
    "guidance in a dictionary": ({"cfg_scale": {"scale": 2}}, "cfg_scale=.* must be a number"),
    "guidance of words": ({"cfg_scale": ["a"] * 6}, "cfg_scale=.* must be a number"),
    "amp in words": ({"amp_dtype": "bf16"}, "amp_dtype='bf16' must be None or torch.float32"),
    "amp of integers": ({"amp_dtype": torch.int8}, "amp_dtype=torch.int8 must be"),
    "weights": ({"weights": "fp8"}, "weights='fp8' must be one of dense, int8"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("draw", [sample, lambda *given, **named: list(sample_stream(*given, **named))])
def test_wrong_values_are_one_short_line(case, draw, build):
    model, tokenizer = build(cond_drop_prob=0.1)
    arguments, message = WRONG[case]
    if not arguments.keys() & {"cond", "prefix", "known", "indices"}:
        arguments = {"cond": [0, 1]} | arguments
    with pytest.raises(ValueError, match=message) as error:
        draw(model, tokenizer, **arguments)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value) and "0x" not in str(error.value)


def test_ids_may_come_in_lists_and_arrays(build):
    model, tokenizer = build()
    expected = sample(model, tokenizer, torch.tensor([1, 2]))
    for cond in ([1, 2], (1, 2), np.array([1, 2]), np.array([1, 2], dtype=np.uint8), torch.tensor([1, 2]).int()):
        assert torch.equal(sample(model, tokenizer, cond), expected)
    for indices in ([0, 1], range(2), np.arange(2), torch.arange(2)):
        assert torch.equal(sample(model, tokenizer, [1, 2], indices=indices), expected)
    prefix = expected.flatten(1, 2)[:, :2]
    assert torch.equal(sample(model, tokenizer, [1, 2], prefix=prefix.numpy()), expected)


def test_settings_may_come_in_arrays_and_be_huge(build, either_path):
    model, tokenizer = build()
    expected = sample(model, tokenizer, [1, 2], temperature=[0.5, 1.0, 2.0], top_k=3)
    for temperature in (np.array([0.5, 1.0, 2.0]), torch.tensor([0.5, 1.0, 2.0])):
        assert torch.equal(sample(model, tokenizer, [1, 2], temperature=temperature, top_k=np.int64(3)), expected)
    plain = sample(model, tokenizer, [1, 2])
    assert torch.equal(sample(model, tokenizer, [1, 2], top_k=10**30), plain)
    assert not torch.equal(sample(model, tokenizer, [1, 2], seed=-3), plain)


def test_a_prefix_may_be_whole_rows_of_a_code_map(build):
    model, tokenizer = build()
    codes = sample(model, tokenizer, [1, 2], seed=5)
    continued = sample(model, tokenizer, [1, 2], seed=7, prefix=codes[:, :1])
    assert torch.equal(continued[:, :1], codes[:, :1])
    assert torch.equal(continued, sample(model, tokenizer, [1, 2], seed=7, prefix=codes[:, :1].flatten(1, 2)))
    assert torch.equal(sample(model, tokenizer, [1, 2], prefix=codes), codes)


def test_models_that_are_missing_exchanged_or_do_not_fit(build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="must be an RQTransformer"):
        sample(tokenizer, model, [1])
    with pytest.raises(ValueError, match="give the stage-1 model"):
        sample(model, None, [1])
    with pytest.raises(ValueError, match="the tokenizer must be a stage-1 model"):
        sample(model, "stage1", [1])
    other, small = build(vocab_size=5)
    with pytest.raises(ValueError, match="code vectors of depth 0, .5, 6., do not fit a model of 11 codes"):
        sample(model, small, [1])
    with pytest.raises(TypeError, match="no argument is called top_q; the draw has temperature, top_k, top_p"):
        sample(model, tokenizer, [1], top_q=0.5)


def test_batches_of_wrong_conditions(build):
    model, tokenizer = build()
    for conditions, message in (
        ([1, None], "conditions .* must be class ids"),
        (["cat"], "conditions .* must be class ids"),
        ([[1, 2], [1]], "conditions .* must be class ids"),
        ([1.0], "cond is of type torch.float32"),
        ([7], "condition ids must lie in"),
    ):
        with pytest.raises(ValueError, match=message):
            list(sample_batches(model, tokenizer, conditions, 2))
    with pytest.raises(ValueError, match="3 indices do not fit 2 conditions"):
        list(sample_batches(model, tokenizer, [0, 1], 2, indices=range(3)))
    for batch_size in (0, 1.5, None, "2"):
        with pytest.raises(ValueError, match="batch_size=.* must be a whole number of at least 1"):
            list(sample_batches(model, tokenizer, [0, 1], batch_size))


HIERARCHICAL: dict[str, tuple[dict[str, Any], str]] = {
    "token V": ({"prime": [[7]]}, r"prime: code 7 of depth 0 must lie in 0\.\.6"),
    "negative token": ({"prime": torch.tensor([[-1]])}, "code -1"),
    "float prime": ({"prime": torch.zeros(1, 1)}, "prime is of type torch.float32"),
    "no sequence": ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
    "half a block": ({"num_blocks": 1.5}, "num_blocks=1.5"),
    "too many blocks": ({"num_blocks": 10**9}, "blocks"),
    "seed": ({"seed": None}, "seed=None"),
    "temperature": ({"temperature": "hot"}, "temperature='hot'"),
}


@pytest.mark.parametrize("case", HIERARCHICAL)
def test_wrong_values_of_hierarchical_models(case):
    model = HierarchicalTransformer(HierarchicalConfig(7, 16, (1, 1), (3, 2), heads=2, dim_head=8))
    arguments, message = HIERARCHICAL[case]
    with pytest.raises(ValueError, match=message) as error:
        model.generate(**arguments)
    assert len(str(error.value)) < 300


def test_wrong_values_of_the_calls_of_the_other_package():
    model = compat.HierarchicalCausalTransformer(num_tokens=7, dim=16, depth=(1, 1), max_seq_len=(3, 2), heads=2)
    for arguments in ({"filter_thres": "x"}, {"filter_thres": 2}, {"default_batch_size": 0}, {"temperature": 0}):
        (name,) = arguments
        with pytest.raises(ValueError, match="batch_size" if name == "default_batch_size" else name):
            model.generate(**arguments)
    assert model.generate([[1, 2]]).flatten(1)[:, :2].tolist() == [[1, 2]]
