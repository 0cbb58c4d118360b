"""Blocks of the RQ-Transformer as units: what is compiled, what is drawn, norms in another number type."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import RQTransformer, RQTransformerConfig, attention, sample
from rqtransformer.attention import NORMS, SelfAttention
from rqtransformer.config import BlockConfig

ARCH = {
    "block_size": [2, 2, 3],
    "embed_dim": 16,
    "vocab_size": [7, 6, 5],
    "vocab_size_cond": 4,
    "body": {"n_layer": 3, "block": {"n_head": 2, "resid_pdrop": 0.0}},
    "head": {"n_layer": 2, "block": {"n_head": 2, "resid_pdrop": 0.0}},
}
CODES_BHWD = torch.tensor([[[[1, 2, 3], [0, 5, 4]], [[6, 1, 0], [2, 2, 2]]]])


def build() -> RQTransformer:
    torch.manual_seed(0)
    return RQTransformer(RQTransformerConfig.from_mapping(ARCH))


def gradients(model: RQTransformer) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(CODES_BHWD, None, torch.tensor([1])).logits.square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def check_compiled(backend: str) -> None:
    plain, compiled = build(), build()
    compiled.compile_blocks(backend=backend)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert [module for module in compiled.modules() if hasattr(module, "_orig_mod")] == []
    for enabled in (False, True):
        plain.gradient_checkpointing = compiled.gradient_checkpointing = enabled
        torch.testing.assert_close(gradients(compiled), gradients(plain))
    settings = {"num_samples": 2, "top_k": 3, "seed": 1}
    assert torch.equal(sample(compiled, None, **settings), sample(plain, None, **settings))


def test_compiled_blocks_compute_the_same():
    check_compiled("eager")


@pytest.mark.slow
def test_generated_code_computes_the_same():
    check_compiled("inductor")


def test_body_and_head_get_a_code_each_made_for_their_shapes():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    model = build()
    model.compile_blocks(backend=backend, fullgraph=True)
    for _ in range(2):
        model(CODES_BHWD, None)
    model.eval()
    for count in (1, 2, 3):  # the last batch of a validation split is smaller
        model(CODES_BHWD.repeat(count, 1, 1, 1), None)
    assert len(model.blocks) == 5
    assert len(graphs) == 2
    given = [node.meta["example_value"] for graph in graphs for node in graph.graph.find_nodes(op="placeholder")]
    assert not any(isinstance(value, torch.SymInt) for value in given)


def test_initial_values_do_not_depend_on_the_device_they_are_planned_on():
    with torch.device("meta"):
        planned = RQTransformer(RQTransformerConfig.from_mapping(ARCH))
    assert all(parameter.is_meta for parameter in planned.parameters())
    assert {name: tensor.shape for name, tensor in planned.state_dict().items()} == {
        name: tensor.shape for name, tensor in build().state_dict().items()
    }


@pytest.mark.parametrize("name", NORMS)
def test_norms_take_the_number_type_of_their_input(name):
    norm = NORMS[name](8)
    x = torch.randn(2, 8)
    expected = norm(x)
    assert torch.equal(norm.bfloat16()(x), expected), "ones and zeros are exact in bfloat16"
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("length", range(2, attention.FEW + 1))
def test_short_rows_are_attended_like_long_ones(length, monkeypatch):
    torch.manual_seed(length)
    layer = SelfAttention(24, BlockConfig(n_head=3)).eval()
    x_BLC = torch.randn(5, length, 24, requires_grad=True)

    def attend() -> list[torch.Tensor]:
        out_BLC = layer(x_BLC)
        return [out_BLC, *torch.autograd.grad(out_BLC.square().sum(), [x_BLC, *layer.parameters()])]

    by_products = attend()
    monkeypatch.setattr(attention, "FEW", 0)
    for ours, fused in zip(by_products, attend()):
        torch.testing.assert_close(ours, fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [3, 7, 40])
@pytest.mark.parametrize("options", [{}, {"n_kv_head": 2}, {"alibi": True}], ids=str)
def test_attention_trains_in_bf16_as_in_fp32(options, length):
    torch.manual_seed(0)
    layer = SelfAttention(32, BlockConfig(n_head=4, attn_pdrop=0.0, resid_pdrop=0.0, **options))
    x_BLC, slope_BLC = torch.randn(2, length, 32), torch.randn(2, length, 32)
    ends = []
    for narrow in (False, True):
        given_BLC = x_BLC.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            out_BLC = layer(given_BLC)
        assert out_BLC.dtype == (torch.bfloat16 if narrow else torch.float32)
        ends.append((out_BLC.float(), *torch.autograd.grad(out_BLC.float(), given_BLC, slope_BLC)))
    for exact, rounded in zip(*ends):
        torch.testing.assert_close(rounded, exact, atol=2e-2 * exact.abs().max().item(), rtol=0)
