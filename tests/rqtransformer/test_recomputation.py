"""Selective recomputation of blocks: the same gradients, no product twice, and memory between all and nothing."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.recomputation import CHOICES

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_scaled_dot_product_flash_attention_for_cpu"}


class Watch(TorchDispatchMode):
    """What runs inside, and which of its results are still there."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.storages: list[weakref.ref] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name.removeprefix("aten::"))
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, torch.Tensor):
                self.storages.append(weakref.ref(value.untyped_storage()))
        return out

    def products(self) -> int:
        return sum(name in PRODUCTS for name in self.names)

    def bytes_alive(self) -> int:
        alive = {id(storage): storage for ref in self.storages if (storage := ref()) is not None}
        return sum(storage.nbytes() for storage in alive.values())


def build(depth: int = 3, resid_pdrop: float = 0.1, alibi: bool = False, attn_pdrop: float = 0.0) -> RQTransformer:
    """`depth` of 3 attends pair by pair, 6 by products, the 16 positions of the body by the fused operator."""
    block = {"n_head": 2, "resid_pdrop": resid_pdrop, "alibi": alibi, "attn_pdrop": attn_pdrop}
    arch = {
        "block_size": [4, 4, depth],
        "embed_dim": 32,
        "vocab_size": 7,
        "vocab_size_cond": 4,
        "body": {"n_layer": 2, "block": block},
        "head": {"n_layer": 2, "block": block},
    }
    torch.manual_seed(0)
    return RQTransformer(RQTransformerConfig.from_mapping(arch)).train()


def loss_of(model: RQTransformer) -> torch.Tensor:
    torch.manual_seed(1)
    codes_BHWD = torch.randint(7, (2, *model.config.block_size))
    return model(codes_BHWD, None, torch.tensor([1, 2])).logits.square().mean()


def step(model: RQTransformer, choice) -> tuple[dict[str, torch.Tensor], int, Watch]:
    """Gradients, bytes that the forward pass leaves, and what ran backward."""
    model.zero_grad()
    model.gradient_checkpointing = choice
    with Watch() as forward:
        loss = loss_of(model)
    bytes_alive = forward.bytes_alive()
    with Watch() as backward:
        loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, bytes_alive, backward


@pytest.mark.parametrize(
    "settings",
    [{}, {"depth": 6}, {"resid_pdrop": 0.0}, {"alibi": True}, {"depth": 6, "attn_pdrop": 0.1}],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_gradients_are_the_same_bits_and_no_product_runs_twice(settings):
    model = build(**settings)
    expected, _, plain = step(model, False)
    _, _, everything = step(model, True)
    gradients, _, selective = step(model, "selective")
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    assert selective.products() == plain.products() < everything.products()
    assert len(selective.names) > len(plain.names)  # something is recomputed


def test_memory_lies_between():
    model = build()
    kept = {choice: step(model, choice)[1] for choice in CHOICES}
    assert kept[True] < 0.6 * kept["selective"]
    assert kept["selective"] < 0.85 * kept[False]


def test_compiled():
    torch.compiler.reset()
    model = build(resid_pdrop=0.0)
    expected, _, _ = step(model, False)
    model.compile_blocks(backend="aot_eager", fullgraph=True)
    products = []
    for choice in (False, "selective"):
        model.zero_grad()
        model.gradient_checkpointing = choice
        loss = loss_of(model)  # compilers refuse to work while somebody watches
        with Watch() as backward:
            loss.backward()
        torch.testing.assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)
        products.append(backward.products())
    assert products[0] == products[1]
