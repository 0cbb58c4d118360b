"""The transformer over nested blocks: causality by gradient, the loss, cached generation, options, errors."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from rqtransformer.hierarchical import HierarchicalTransformer, HierarchicalWalk
from rqtransformer.hierarchical_config import HierarchicalConfig

VOCABULARY = 11
SHAPES = [(3, 4), (2, 3, 2), (2, 2, 3, 2)]
OPTIONS = [
    {},
    {"merge": "concat"},
    {"norm": "rms", "kv_heads": 1},
    {"alibi": True},
    {"alibi": True, "absolute_positions": False},
    {"pad_id": 3},
]


def model_of(shape: tuple[int, ...], **options) -> HierarchicalTransformer:
    torch.manual_seed(0)
    options = {"heads": 2, "dim_head": 8, **options}
    config = HierarchicalConfig(VOCABULARY, 12, depth=(1,) * len(shape), max_seq_len=shape, **options)
    model = HierarchicalTransformer(config).eval()
    with torch.no_grad():  # starting values so small that differences would drown
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def ids_of(shape: tuple[int, ...], batch: int = 2) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (batch, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_prediction_depends_on_exactly_the_tokens_before_it(shape, options):
    model, num_tokens = model_of(shape, **options), math.prod(shape)
    ids = ids_of(shape, 1)
    ids[ids == 3] = 4  # padding adds nothing, which would look like independence
    embedded = model.embed(ids).detach().requires_grad_()
    model.embed = lambda _: embedded
    logits = model(ids).reshape(num_tokens, VOCABULARY)
    for position in range(num_tokens):
        (gradient,) = torch.autograd.grad(logits[position].square().sum(), embedded, retain_graph=True)
        seen = gradient.reshape(num_tokens, -1).abs().sum(1) > 0
        assert seen.tolist() == [other < position for other in range(num_tokens)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_token_is_a_target_once(shape):
    model, ids = model_of(shape), ids_of(shape)
    log_probs = model(ids).log_softmax(-1)
    expected = -torch.stack(
        [log_probs[(*place, int(ids[place]))] for place in itertools.product(*map(range, ids.shape))]
    ).mean()
    torch.testing.assert_close(model.loss(ids), expected)


def test_padding_is_no_target_and_adds_nothing():
    model = model_of((2, 3, 2), pad_id=0)
    ids = ids_of((2, 3, 2)).clamp(min=1)
    ids[:, 1, 1:] = 0
    log_probs = model(ids).log_softmax(-1)
    counted = ids != 0
    expected = F.nll_loss(log_probs[counted], ids[counted])
    torch.testing.assert_close(model.loss(ids), expected)
    # a flat sequence that ends early is the same as one padded by hand
    short = ids.flatten(1)[:, :8]
    torch.testing.assert_close(model(short), log_probs_of(model, ids)[:, :8])
    assert model.loss(torch.zeros_like(ids)).item() == 0.0


def log_probs_of(model: HierarchicalTransformer, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).flatten(1, -2)


@pytest.mark.parametrize("num_tokens", [1, 5, 6, 12])
def test_flat_sequences_may_end_anywhere(num_tokens):
    model, ids = model_of((2, 3, 2)), ids_of((2, 3, 2)).flatten(1)
    logits = model(ids[:, :num_tokens])
    assert logits.shape == (2, num_tokens, VOCABULARY)
    torch.testing.assert_close(logits, model(ids)[:, :num_tokens])


def test_the_first_level_may_be_shorter_and_without_absolute_positions_longer():
    ids = ids_of((5, 3, 2))
    model = model_of((2, 3, 2))
    torch.testing.assert_close(model(ids[:, :1]), model(ids[:, :2])[:, :1])
    with pytest.raises(ValueError, match=r"5 blocks are more than max_seq_len\[0\]=2"):
        model(ids)
    assert model_of((2, 3, 2), alibi=True, absolute_positions=False)(ids).shape == (2, 5, 3, 2, VOCABULARY)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cached_logits_equal_uncached_ones(shape, options):
    model, ids = model_of(shape, **options), ids_of(shape).flatten(1)
    expected = model(ids)
    block = math.prod(shape[1:])
    for given in (0, 1, block, block + 1):
        with torch.no_grad(), model.decoding_mode():
            walk = HierarchicalWalk(model, ids[:, :given], ids.shape[1])
            assert walk.first_position == given // block * block
            for position in range(walk.first_position, ids.shape[1]):
                torch.testing.assert_close(walk.logits(), expected[:, position], rtol=1e-5, atol=1e-5)
                walk.push(ids[:, position])


def brute_force(model: HierarchicalTransformer, prime: torch.Tensor) -> torch.Tensor:
    """Greedy decoding by running everything again for each token."""
    ids = prime
    while ids.shape[1] < math.prod(model.config.max_seq_len):
        longer = F.pad(ids, (0, 1))
        ids = torch.cat([ids, model(longer)[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize("num_given", [0, 1, 4, 6, 7, 12])
@pytest.mark.parametrize("shape", [(2, 3, 2), (3, 4)], ids=str)
def test_greedy_generation_equals_brute_force(shape, num_given):
    model, prime = model_of(shape), ids_of(shape).flatten(1)[:, :num_given]
    drawn = model.generate(prime, top_k=1)
    assert drawn.shape == (2, *shape)
    torch.testing.assert_close(drawn.flatten(1), brute_force(model, prime))


def test_the_noise_of_a_sequence_is_its_own():
    model = model_of((3, 4))
    together = model.generate(batch_size=5, seed=3)
    for index in range(5):
        torch.testing.assert_close(model.generate(batch_size=1, seed=3, start_index=index)[0], together[index])
    assert (model.generate(batch_size=5, seed=4) != together).any()


def test_generation_puts_the_model_back():
    model = model_of((3, 4)).train()
    ids = ids_of((3, 4))
    before = model(ids)
    model.generate(batch_size=2)
    assert model.training
    torch.testing.assert_close(model(ids), before)


@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4)], ids=str)
def test_overfits_a_repeating_sequence(shape):
    torch.manual_seed(0)
    config = HierarchicalConfig(6, 32, depth=(1,) * len(shape), max_seq_len=shape, heads=2, dim_head=16)
    model = HierarchicalTransformer(config)
    ids = torch.tensor([1, 5, 2, 4, 0, 3]).repeat(8)[: math.prod(shape)].view(1, *shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.loss(ids)
        loss.backward()
        optimizer.step()
    assert model.loss(ids).item() < 0.01
    torch.testing.assert_close(model.generate(top_k=1), ids)


def test_gradient_checkpointing_changes_memory_only():
    ids, gradients = ids_of((2, 3, 2)), []
    for enabled in (False, True, "selective"):
        model = model_of((2, 3, 2)).train()
        model.gradient_checkpointing = enabled
        assert [stack.gradient_checkpointing for stack in model.levels] == [enabled] * 3
        model.loss(ids).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_bfloat16_stays_close():
    model, ids = model_of((2, 3, 2)), ids_of((2, 3, 2))
    expected = model(ids)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(ids).float(), expected, rtol=0.1, atol=0.1)
    model = model.bfloat16()
    torch.testing.assert_close(model(ids).float(), expected, rtol=0.1, atol=0.2)
    assert model.generate(batch_size=2).shape == (2, 2, 3, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": (1, 1, 1)}, "must have one entry per level"),
        ({"max_seq_len": (3, 0)}, "at least 1"),
        ({"kv_heads": 3}, "kv_heads=3 must divide heads=2"),
        ({"norm": "batch"}, "norm 'batch' is not one of layer, rms"),
        ({"merge": "mean"}, "merge 'mean' is not one of sum, concat"),
        ({"pad_id": 11}, "pad_id must be a whole number from 0 to 10, got 11"),
        ({"absolute_positions": False}, "could not tell positions apart"),
    ],
)
def test_values_that_do_not_fit(changes, message):
    values = {"num_tokens": VOCABULARY, "dim": 12, "depth": (1, 1), "max_seq_len": (3, 4), "heads": 2, **changes}
    with pytest.raises(ValueError, match=message):
        HierarchicalTransformer(HierarchicalConfig(**values))


def test_shapes_that_do_not_fit():
    model = model_of((3, 4))
    with pytest.raises(ValueError, match=r"ids of shape \(2, 3, 5\) must be \(batch, tokens\) or \(batch, blocks, 4\)"):
        model(torch.zeros(2, 3, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="3 blocks of 4 tokens do not hold a prime of 13"):
        model.generate(torch.zeros(1, 13, dtype=torch.long))
