"""The kernel of the draw in Triton's interpreter, and what it serves."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from rqtransformer.draw_settings import DrawSettings, Rule, row
from tests.commands import succeed

SCRIPT = Path(__file__).with_name("draw_in_interpreter.py")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="a CPU build of torch")


def interpreted(vocabularies: list[int], every: int) -> dict:
    done = succeed(SCRIPT, json.dumps(vocabularies), every, timeout=290, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")
    return json.loads(done.out.splitlines()[-1])


@needs_triton
def test_the_kernel_draws_what_the_rules_draw():
    found = interpreted([1, 3, 17, 100], every=29)
    assert found["wrong"] == []
    assert found["guided"] == []
    assert not found["views"]
    assert set(found["broken"]) == {-1}
    assert found["boundaries"] == [list(range(8)), [0, 2, 6]]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("vocabularies", "every"), [([2, 17, 100], 1), ([1000, 2048, 5000, 16384, 65536], 11)])
def test_the_kernel_draws_from_large_vocabularies(vocabularies, every):
    assert interpreted(vocabularies, every)["wrong"] == []


@needs_triton
def test_it_serves_what_it_knows_and_nothing_else():
    from rqtransformer.fast.kernels.draw_triton import serves

    @dataclasses.dataclass(frozen=True)
    class More(DrawSettings):
        min_p: float = row(0.0, Rule(check=lambda value: None, apply=lambda logits, value: logits))

    logits, uniform, settings = torch.randn(4, 10), torch.rand(4), DrawSettings(top_k=3)
    scale = torch.ones(1)
    assert serves(logits, uniform, settings) and serves(logits.half(), uniform.double(), settings)
    assert serves(logits, uniform[:2], settings, scale)
    assert not serves(logits, uniform, More(top_k=3))
    assert not serves(logits.double(), uniform, settings)
    assert not serves(logits.T, uniform, settings)
    assert not serves(logits[None], uniform, settings)
    assert not serves(torch.empty(4, 65537, device="meta"), uniform, settings)
    assert not serves(torch.nn.Parameter(logits), uniform, settings)
    assert not serves(logits, uniform[:3], settings)
    assert not serves(logits, uniform.half(), settings)
    assert not serves(logits, uniform[:2], settings, scale.double())
