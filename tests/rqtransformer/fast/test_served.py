"""An option that only the plain code has: every fast path steps aside, and the codes are those of the plain code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rqtransformer import RQTransformer, sample
from rqtransformer.attention import Block, FeedForward, SelfAttention
from rqtransformer.config import BlockConfig, RQTransformerConfig, StackConfig
from rqtransformer.decoding import Decoder, DrawSettings, code_sampling
from rqtransformer.decoding.logits import draw, sampling_probs
from rqtransformer.decoding.sampling_request import SamplingRequest
from rqtransformer.embedding import CodeClassifier
from rqtransformer.fast import packed_step
from rqtransformer.fast.weight_format import WeightFormat
from rqtransformer.kv_cache import KVCache
from rqtransformer.stack import TransformerStack

SETTINGS = {"top_k": 7, "top_p": 0.9, "temperature": 1.1}


class HalvedAttention(SelfAttention):
    """Another forward."""

    def forward(self, x_BLC, cache=None, layer=0, residual_BLC=None):
        return residual_BLC + 0.5 * super().forward(x_BLC, cache, layer, torch.zeros_like(residual_BLC))


class SharpAttention(SelfAttention):
    """Another product of queries and keys, and a value that is changed even where a position sees only itself."""

    def _attend(self, query_BALF, *rest):
        return super()._attend(3 * query_BALF, *rest) * 1.5


class ScaledBlock(Block):
    """The attention branch counts twice."""

    def _forward(self, x_BLC, cache=None, layer=0):
        return super()._forward(x_BLC, cache, layer) + self.attn(self.ln1(x_BLC), cache, layer, 0 * x_BLC)


class QuietFeedForward(FeedForward):
    """Another residual."""

    def forward(self, x, residual=None):
        return super().forward(0.3 * x, residual)


class CooledClassifier(CodeClassifier):
    """Flatter logits."""

    def forward(self, x):
        return super().forward(x) * 0.5

    def at_depth(self, x_BC, depth):
        return super().at_depth(x_BC, depth) * 0.5


class LowRankLinear(nn.Linear):
    """A linear map that does more than its weight says."""

    def forward(self, x):
        return super().forward(x) + x.flip(-1) if self.out_features == self.in_features else super().forward(x) * 1.2


class Doubled(nn.Module):
    """A weight as the double of what is trained."""

    def forward(self, weight):
        return 2 * weight


@dataclass
class GatedBlockConfig(BlockConfig):
    """A config with a field that the fast paths have never heard of."""

    gate: float = 0.5


@dataclass
class OtherModelConfig(RQTransformerConfig):
    """The same for the model."""

    logit_scale: float = 1.0


def retype(kind: type, *places: str) -> Callable[[RQTransformer], None]:
    """Makes modules those of a subclass, with the numbers they have."""

    def change(model: RQTransformer) -> None:
        for place in places:
            model.get_submodule(place).__class__ = kind

    return change


def of_every_block(place: str) -> list[str]:
    blocks = ("body_transformer.blocks.0", "head_transformer.blocks.0", "head_transformer.blocks.1")
    return [block + place for block in blocks]


def replace_activation(model: RQTransformer) -> None:
    for block in model.blocks:
        block.mlp[1] = nn.SiLU()


def replace_norm(model: RQTransformer) -> None:
    for block in model.blocks:
        block.ln1 = nn.Identity()


def hook(model: RQTransformer) -> None:
    for place in of_every_block(".attn.query"):
        model.get_submodule(place).register_forward_hook(lambda module, given, out: out * 2)


def hook_on_blocks(model: RQTransformer) -> None:
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, given: (given[0] * 0.7, *given[1:]))


def double_weights(model: RQTransformer) -> None:
    for place in of_every_block(".mlp.0"):
        parametrize.register_parametrization(model.get_submodule(place), "weight", Doubled())


def own_forward(model: RQTransformer) -> None:
    for block in model.blocks:
        plain = block.mlp.forward
        block.mlp.forward = lambda x, residual=None, plain=plain: plain(x.abs(), residual)


BODY_AND_HEAD = {
    "attention, another forward": retype(HalvedAttention, *of_every_block(".attn")),
    "attention, another product": retype(SharpAttention, *of_every_block(".attn")),
    "a block": retype(ScaledBlock, *of_every_block("")),
    "feed forward": retype(QuietFeedForward, *of_every_block(".mlp")),
    "a linear map": retype(LowRankLinear, *of_every_block(".attn.proj"), *of_every_block(".mlp.2")),
    "another activation": replace_activation,
    "no norm": replace_norm,
    "a hook": hook,
    "a hook on blocks": hook_on_blocks,
    "a parametrization": double_weights,
    "a forward of its own": own_forward,
}
HEAD_ONLY = {"the classifier": retype(CooledClassifier, "classifier")}


def by_hand(model: RQTransformer, tokenizer, count: int) -> Tensor:
    """Uncached decoding with the plain modules: the whole model for every code."""
    codes_BHWD = torch.zeros(count, *model.config.block_size, dtype=torch.long)
    height, width, depth = model.config.block_size
    with torch.no_grad():
        for position in range(height * width):
            row, column = divmod(position, width)
            for d in range(depth):
                logits = model(codes_BHWD, tokenizer).logits[:, row, column, d]
                probs = sampling_probs(logits, DrawSettings(1.1, 7, 0.9))
                codes_BHWD[:, row, column, d] = draw(probs, 5, torch.arange(count), position, d)
    return codes_BHWD


@pytest.fixture
def fast_calls(monkeypatch) -> list[str]:
    """The fast paths that ran: steps through a stack, positions in one call, positions kept on the device."""
    seen: list[str] = []
    for name in ("NativeStep", "BlockedStep"):
        plain = getattr(packed_step, name).__call__
        monkeypatch.setattr(
            getattr(packed_step, name), "__call__", lambda *given, plain=plain: seen.append("step") or plain(*given)
        )
    in_one = Decoder.draw_position
    monkeypatch.setattr(Decoder, "draw_position", lambda *given: seen.append("position") or in_one(*given))
    index = Decoder.position_index
    monkeypatch.setattr(Decoder, "position_index", lambda *given: seen.append("on device") or index(*given))
    return seen


@pytest.mark.parametrize("graphs", [False, True])
def test_the_published_model_is_served(graphs, build, fast_calls, either_path):
    model, tokenizer = build()
    sample(model, tokenizer, num_samples=2, seed=5, graphs=graphs, **SETTINGS)
    compiled = packed_step.native.serves(torch.zeros(1))
    assert ("on device" in fast_calls) == graphs
    assert ("position" in fast_calls) == (compiled and not graphs)
    assert "step" in fast_calls


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("change", [*BODY_AND_HEAD.values(), *HEAD_ONLY.values()], ids=[*BODY_AND_HEAD, *HEAD_ONLY])
def test_an_option_of_the_plain_code_is_never_ignored(change, graphs, build, fast_calls, either_path):
    model, tokenizer = build()
    before = by_hand(model, tokenizer, 8)
    change(model)
    expected = by_hand(model, tokenizer, 8)
    assert not torch.equal(expected, before), "the change must show"
    drawn = sample(model, tokenizer, num_samples=8, seed=5, graphs=graphs, **SETTINGS)
    assert torch.equal(drawn, expected)
    assert "position" not in fast_calls
    assert "on device" not in fast_calls
    if change in BODY_AND_HEAD.values():
        assert "step" not in fast_calls


@pytest.mark.parametrize("part", ["attn", "mlp", ""])
@pytest.mark.parametrize("graphs", [False, True])
def test_an_attribute_that_the_plain_code_reads_is_never_ignored(
    part, graphs, build, fast_calls, either_path, monkeypatch
):
    """The option is written into the class itself, as whoever adds one does."""
    kind = {"attn": SelfAttention, "mlp": FeedForward, "": Block}[part]
    plain = kind.forward

    def gated(module, x, *rest):
        return plain(module, x, *rest) * getattr(module, "gate", 1.0)

    monkeypatch.setattr(kind, "forward", gated)
    model, tokenizer = build()
    before = by_hand(model, tokenizer, 8)
    for block in model.blocks:
        (getattr(block, part) if part else block).gate = -0.5
    expected = by_hand(model, tokenizer, 8)
    assert not torch.equal(expected, before), "the option must show"
    assert torch.equal(sample(model, tokenizer, num_samples=8, seed=5, graphs=graphs, **SETTINGS), expected)
    assert fast_calls == []


def test_an_unknown_field_of_a_config_is_not_served(build, fast_calls, either_path):
    for unknown in (GatedBlockConfig, OtherModelConfig):
        model, tokenizer = build()
        expected = by_hand(model, tokenizer, 2)
        if unknown is GatedBlockConfig:
            for stack in (model.body_transformer, model.head_transformer):
                stack.config.block = GatedBlockConfig(**vars(stack.config.block))
        else:
            model.config = OtherModelConfig(**vars(model.config))
        for graphs in (False, True):
            fast_calls.clear()
            drawn = sample(model, tokenizer, num_samples=2, seed=5, graphs=graphs, **SETTINGS)
            assert torch.equal(drawn, expected)
            assert not {"position", "on device"} & set(fast_calls)
            assert ("step" in fast_calls) == (unknown is OtherModelConfig)


@pytest.mark.parametrize("name", ["alibi", "mlp_bias"])
def test_a_field_that_a_fast_path_does_not_name_is_not_served(name, build, fast_calls, either_path, monkeypatch):
    known = packed_step.STACK_SETTINGS[BlockConfig]
    monkeypatch.setitem(packed_step.STACK_SETTINGS, BlockConfig, known - {name})
    model, tokenizer = build()
    for graphs in (False, True):
        sample(model, tokenizer, num_samples=2, seed=5, graphs=graphs)
    assert fast_calls == []


def test_a_cache_of_another_kind_is_not_served(build, fast_calls, either_path, monkeypatch):
    class RoundedCache(KVCache):
        def write(self, layer, keys_values_2BALF):
            return super().write(layer, keys_values_2BALF.round(decimals=1))

    model, tokenizer = build()
    monkeypatch.setattr("rqtransformer.stack.KVCache", RoundedCache)
    rounded = sample(model, tokenizer, num_samples=8, seed=5, **SETTINGS)
    assert fast_calls == []
    monkeypatch.undo()
    assert not torch.equal(rounded, sample(model, tokenizer, num_samples=8, seed=5, **SETTINGS))


def test_a_walk_of_another_kind_is_not_served(build, fast_calls, monkeypatch):
    class Repeating(Decoder):
        def push(self, code_B):
            super().push(torch.zeros_like(code_B))

    model, tokenizer = build()
    monkeypatch.setattr(code_sampling, "Decoder", Repeating)
    sample(model, tokenizer, num_samples=2, seed=5)
    assert "position" not in fast_calls


def test_a_request_with_an_unknown_wish_is_not_served(build, fast_calls, monkeypatch):
    @dataclass(frozen=True)
    class WiderRequest(SamplingRequest):
        wish: str = "something"

    model, tokenizer = build()
    check = code_sampling.check_request
    monkeypatch.setattr(
        code_sampling, "check_request", lambda *given, **more: WiderRequest(**vars(check(*given, **more)))
    )
    for graphs in (False, True):
        sample(model, tokenizer, num_samples=2, seed=5, graphs=graphs)
    assert not {"position", "on device"} & set(fast_calls)


def test_dropout_that_stays_on_is_not_left_out(either_path):
    """A stack whose parts drop out while it decodes: nothing fast takes their place."""
    torch.manual_seed(0)
    stack = TransformerStack(32, StackConfig(n_layer=1, block=BlockConfig(n_head=4, resid_pdrop=0.5))).eval()
    stack.blocks[0].mlp.train()
    stack.blocks[0].attn.train()
    stack.pack(WeightFormat())
    assert stack.packed_step is None
    x_BLC = torch.randn(2, 1, 32)
    with torch.no_grad():
        first, second = (stack(x_BLC, stack.new_cache(2, 1, torch.float32, "cpu")) for _ in range(2))
    assert not torch.equal(first, second)
