"""Packed weights: same values, one result for any batch size, never stale, never saved."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from rqtransformer import HierarchicalConfig, HierarchicalTransformer, native, sample
from rqtransformer.fast import packing
from rqtransformer.fast.packing import PackedLinear, PackedSlot
from rqtransformer.fast.weight_format import WeightFormat


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 32)


def packed(linear: nn.Linear, **form) -> PackedLinear:
    return PackedLinear(linear.weight.detach(), linear.bias.detach(), WeightFormat(**form))


def test_values_are_those_of_the_plain_map(linear, either_path):
    x, residual = torch.randn(5, 3, 48), torch.randn(5, 3, 32)
    plain = linear(x)
    for changes, expected in (
        ({}, plain),
        ({"gelu": True}, nn.functional.gelu(plain)),
        ({"residual": residual}, residual + plain),
        ({"residual": residual, "gelu": True}, residual + nn.functional.gelu(plain)),
    ):
        torch.testing.assert_close(packed(linear)(x, **changes), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(768, 256), (256, 1024), (256, 2048), (32, 48)])
def test_a_row_is_the_same_bits_in_any_batch(shape, either_path):
    torch.manual_seed(0)
    weight, bias, x = torch.randn(shape), torch.randn(shape[0]), torch.randn(64, shape[1])
    product = PackedLinear(weight, bias, WeightFormat())
    together = product(x, residual=torch.ones(64, shape[0]))
    for rows in (1, 2, 7, 16, 33):
        parts = [product(part, residual=torch.ones(len(part), shape[0])) for part in x.split(rows)]
        assert torch.equal(torch.cat(parts), together)


def test_bfloat16_products_leave_a_wide_residual_wide(linear):
    x, residual = torch.randn(5, 48), torch.randn(5, 32)
    product = packed(linear, dtype=torch.bfloat16)
    assert product(x).dtype == torch.bfloat16
    out = product(x, residual)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, residual + linear(x), atol=0.03, rtol=0)


def test_int8_costs_little_and_is_a_quarter(linear):
    x = torch.randn(100, 48)
    exact, rounded = linear(x), packed(linear, kind="int8")(x)
    error = (exact - rounded).square().mean() / exact.square().mean()
    assert 0 < error < 1e-3
    with pytest.raises(ValueError, match="weights='int4' must be one of dense, int8"):
        WeightFormat(kind="int4").validate()


def test_a_slot_is_refilled_only_when_parameters_changed(linear):
    slot, form = PackedSlot(), WeightFormat()
    slot.fill_from((linear,), form)
    first = slot.active
    slot.unpack(keep=True)
    assert slot.active is None
    slot.fill_from((linear,), form)
    assert slot.active is first
    x = torch.randn(2, 48)
    with torch.no_grad():
        linear.weight.mul_(2)
    slot.fill_from((linear,), form)
    torch.testing.assert_close(slot.active(x), linear(x), atol=1e-5, rtol=0)
    linear.bias = nn.Parameter(torch.ones(32))
    slot.fill_from((linear,), form)
    torch.testing.assert_close(slot.active(x), linear(x), atol=1e-5, rtol=0)
    slot.unpack(keep=False)
    slot.fill_from((linear,), form)
    assert slot.active is not first


def test_codes_follow_the_weights(build, either_path):
    model, tokenizer = build()
    before = sample(model, tokenizer, num_samples=8, seed=1)
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    scaled = sample(model, tokenizer, num_samples=8, seed=1)
    assert not torch.equal(scaled, before)
    model.load_state_dict(state)
    assert torch.equal(sample(model, tokenizer, num_samples=8, seed=1), before)


def test_packed_copies_are_in_no_state_dict_and_no_copy(build):
    model, tokenizer = build()
    names = list(model.state_dict())
    codes = sample(model, tokenizer, num_samples=2)
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.body_transformer.blocks[0].attn.query.weight.mul_(-3)
        twin.classifier.linear.weight.mul_(-3)
    assert not torch.equal(sample(twin, tokenizer, num_samples=2), codes)
    assert torch.equal(sample(model, tokenizer, num_samples=2), codes)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert torch.equal(sample(loaded, tokenizer, num_samples=2), codes)


def test_a_model_in_training_keeps_no_packed_copy(build):
    model, tokenizer = build()
    slot = model.body_transformer.blocks[0].attn.slots[0]
    sample(model, tokenizer, num_samples=1)
    assert slot.active is None
    assert slot._kept
    model.train()
    sample(model, tokenizer, num_samples=1)
    assert not slot._kept


@pytest.mark.parametrize(
    "settings", [{"weights": "int8"}, {"amp_dtype": torch.bfloat16}, {"weights": "int8", "amp_dtype": torch.bfloat16}]
)
def test_other_formats_give_nearly_the_same_greedy_codes(settings, build):
    model, tokenizer = build(shared_cls_emb=False)
    exact = sample(model, tokenizer, num_samples=16, top_k=1)
    rough = sample(model, tokenizer, num_samples=16, top_k=1, **settings)
    assert (exact == rough).float().mean() > 0.5


def packed_tensors(model):
    """What is kept of packed weights between two calls."""
    blocks = [*model.body_transformer.blocks, *model.head_transformer.blocks]
    slots = [slot for block in blocks for slot in (*block.attn.slots, *block.mlp.slots)]
    return [tensor for slot in slots for _, packed in slot._kept.values() for tensor in packed.tensors]


WRITES = {
    "copy_": lambda data: data.copy_(torch.randn_like(data)),
    "one number": lambda data: data.view(-1)[3:4].mul_(1 + 2**-22),
    "rows the other way round": lambda data: data.copy_(data.flip(0)),
    "columns the other way round": lambda data: data.copy_(data.flip(-1)),
    "all signs": lambda data: data.neg_(),
    "two signs": lambda data: data[:2, :1].neg_(),
    "numpy": lambda data: data.numpy().__setitem__(..., 0.25),
}


@pytest.mark.parametrize("options", [{}, {"amp_dtype": torch.bfloat16}, {"weights": "int8"}, {"graphs": True}], ids=str)
def test_writes_past_autograd_are_noticed_by_the_next_walk(options, build, either_path):
    model, tokenizer = build()
    sample(model, tokenizer, num_samples=8, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "pos_emb" not in name:
                parameter.data.copy_(3 * torch.randn_like(parameter) * parameter.std())
    found = sample(model, tokenizer, num_samples=8, **options)
    model.forget_packed()
    assert torch.equal(found, sample(model, tokenizer, num_samples=8, **options))


@pytest.mark.parametrize("options", [{}, {"amp_dtype": torch.bfloat16}, {"weights": "int8"}, {"graphs": True}], ids=str)
def test_such_writes_are_followed_where_no_digest_is_taken(options, build, monkeypatch):
    monkeypatch.setattr(packing, "_has_digest", lambda tensor: False)
    monkeypatch.setattr(native, "serves", lambda tensor: False)
    monkeypatch.setattr(packing, "_can_block", lambda weight: False)
    model, tokenizer = build()
    first = sample(model, tokenizer, num_samples=8, **options)
    memory = [tensor.data_ptr() for tensor in packed_tensors(model)]
    assert torch.equal(first, sample(model, tokenizer, num_samples=8, **options))
    assert memory == [tensor.data_ptr() for tensor in packed_tensors(model)]
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "pos_emb" not in name:
            parameter.data.copy_(3 * torch.randn_like(parameter) * parameter.std())
    found = sample(model, tokenizer, num_samples=8, **options)
    model.forget_packed()
    assert torch.equal(found, sample(model, tokenizer, num_samples=8, **options))
    assert not torch.equal(found, first)


def test_a_walk_fills_once_where_no_digest_is_taken(monkeypatch):
    monkeypatch.setattr(packing, "_has_digest", lambda tensor: False)
    weight, slot = torch.nn.Parameter(torch.randn(8, 64)), PackedSlot()
    made = []
    monkeypatch.setattr(
        packing, "PackedLinear", lambda *args, **kwargs: made.append(1) or PackedLinear(*args, **kwargs)
    )
    for _ in range(2):
        slot.fill([weight], [None], WeightFormat(torch.bfloat16))
        slot.fill([weight], [None], WeightFormat())
        slot.fill([weight], [None], WeightFormat(torch.bfloat16))
    assert len(made) == 2
    slot.unpack(keep=True)
    slot.fill([weight], [None], WeightFormat(torch.bfloat16))
    assert len(made) == 3


@pytest.mark.parametrize("write", WRITES)
def test_every_write_makes_another_packed_map(write, either_path):
    weight = torch.nn.Parameter(torch.randn(8, 64))
    slot = PackedSlot()
    slot.fill([weight], [None], WeightFormat())
    first = slot.active
    slot.fill([weight], [None], WeightFormat())
    assert slot.active is first
    before = slot.active(torch.eye(64)).clone()
    WRITES[write](weight.data)
    slot.fill([weight], [None], WeightFormat())
    assert not torch.equal(slot.active(torch.eye(64)), before)
    assert torch.allclose(slot.active(torch.eye(64)), weight.detach().T)


def test_compiled_maps_notice_a_write_to_the_parameter_of_a_hierarchical_model(either_path):
    model = HierarchicalTransformer(HierarchicalConfig(7, 16, (1, 1), (3, 2), heads=2, dim_head=8)).eval()
    model.generate(batch_size=8)
    model.to_logits.weight.data.copy_(5 * torch.randn_like(model.to_logits.weight))
    found = model.generate(batch_size=8)
    fresh = HierarchicalTransformer(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(found, fresh.generate(batch_size=8))
