"""The calls of the `RQ-transformer` package: its two README examples, shapes, and what does not work there."""

import copy

import pytest
import torch

from rqtransformer.compat import HierarchicalCausalTransformer, NextTokenModel, RQTransformer


def test_readme_example_of_the_two_level_model():
    model = RQTransformer(
        num_tokens=16000,
        dim=512,
        max_spatial_seq_len=1024,
        depth_seq_len=4,
        spatial_layers=8,
        depth_layers=4,
        dim_head=64,
        heads=8,
    )
    x = torch.randint(0, 16000, (1, 24, 4))  # the example has 1024 positions: the slow test below
    loss = model(x, return_loss=True)
    loss.backward()
    assert loss.shape == ()
    assert abs(loss.item() - torch.tensor(16000.0).log().item()) < 0.5
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model(x).shape == (1, 24 * 4, 16000)


@pytest.mark.slow
def test_readme_size_of_the_two_level_model():
    model = RQTransformer(
        num_tokens=16000,
        dim=512,
        max_spatial_seq_len=1024,
        depth_seq_len=4,
        spatial_layers=8,
        depth_layers=4,
        dim_head=64,
        heads=8,
    )
    x = torch.randint(0, 16000, (1, 1024, 4))
    model(x, return_loss=True).backward()
    assert model(x).shape == (1, 4096, 16000)
    sampled = model.generate(temperature=0.9, filter_thres=0.9)
    assert sampled.shape == (1, 1024, 4)


def test_readme_example_of_the_hierarchical_model():
    torch.manual_seed(0)
    model = HierarchicalCausalTransformer(
        num_tokens=16000, dim=512, dim_head=64, heads=8, depth=(4, 4, 2), max_seq_len=(16, 4, 5)
    )
    x = torch.randint(0, 16000, (1, 10, 4, 5))
    loss = model(x, return_loss=True)
    loss.backward()
    assert loss.shape == ()
    assert model(x).shape == (1, 10, 4, 5, 16000)
    sampled = model.generate(temperature=0.9, filter_thres=0.9)
    assert sampled.shape == (1, 16, 4, 5)
    assert 0 <= sampled.min() <= sampled.max() < 16000


@pytest.fixture
def small() -> RQTransformer:
    torch.manual_seed(0)
    return RQTransformer(
        num_tokens=20,
        dim=16,
        max_spatial_seq_len=6,
        depth_seq_len=3,
        spatial_layers=1,
        depth_layers=1,
        dim_head=8,
        heads=2,
    )


def test_flat_and_nested_ids_agree(small):
    ids = torch.randint(0, 20, (2, 5, 3))
    torch.testing.assert_close(small(ids), small(ids.flatten(1)))
    torch.testing.assert_close(small(ids, return_loss=True), small(ids.flatten(1), return_loss=True))


def test_generation_continues_a_prime_and_drops_the_unlikely(small):
    prime = torch.randint(0, 20, (4, 2, 3))
    drawn = small.generate(prime, filter_thres=0.9, seed=1)
    assert drawn.shape == (4, 6, 3)
    assert torch.equal(drawn[:, :2], prime)
    # 10 % of 20 ids: every id drawn is one of the two most likely
    best = small.eval().token_logits(drawn).topk(2, dim=-1).indices[:, 2:]
    assert (best == drawn[:, 2:, :, None]).any(-1).all()
    flat = small.generate(prime.flatten(1), filter_thres=0.9, seed=1)
    assert torch.equal(flat, drawn)


def test_unseeded_draws_differ_and_follow_torchs_seed(small):
    torch.manual_seed(5)
    first, second = small.generate(default_batch_size=3), small.generate(default_batch_size=3)
    assert (first != second).any()
    torch.manual_seed(5)
    assert torch.equal(small.generate(default_batch_size=3), first)


def test_code_0_is_a_code(small):
    zeros = torch.zeros(1, 2, 3, dtype=torch.long)
    loss = small(zeros, return_loss=True)
    assert loss.isfinite()
    assert loss > 0
    padded = RQTransformer(
        num_tokens=20,
        dim=16,
        max_spatial_seq_len=6,
        depth_seq_len=3,
        spatial_layers=1,
        depth_layers=1,
        dim_head=8,
        heads=2,
        pad_id=0,
    )
    assert padded(zeros, return_loss=True) == 0


def test_filter_out_of_range_is_refused(small):
    with pytest.raises(ValueError, match=r"filter_thres=1.1 must be at least 0 and at most 1"):
        small.generate(filter_thres=1.1)


@pytest.fixture(params=["two levels", "three levels"])
def either(request, small) -> NextTokenModel:
    if request.param == "two levels":
        return small.eval()
    return HierarchicalCausalTransformer(
        num_tokens=20, dim=16, depth=(1, 1, 1), max_seq_len=(3, 2, 3), dim_head=8, heads=2
    ).eval()


def test_the_last_logits_are_those_of_the_next_token(either):
    """The loop a program of that package writes itself: it draws from `model(ids)[:, -1]`."""
    ids = torch.empty(2, 0, dtype=torch.long)
    while ids.shape[1] < 18:
        ids = torch.cat([ids, either(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(either.generate(default_batch_size=2, filter_thres=1.0).flatten(1), ids)
    for given in (4, 6, 18):
        assert torch.equal(either.generate(ids[:, :given], filter_thres=1.0).flatten(1), ids)


def test_a_logit_knows_its_own_token_and_all_before(either):
    """Shapes are those of that package, for no ids, ids that end anywhere and a full sequence."""
    for num_tokens in (0, 1, 4, 6, 18):
        assert either(torch.zeros(2, num_tokens, dtype=torch.long)).shape == (2, max(1, num_tokens), 20)
    ids = torch.randint(1, 20, (1, 18))
    logits = either(ids)
    for changed in range(18):
        other = ids.clone()
        other[0, changed] = 0
        differs = (either(other) - logits).abs().amax(-1)[0] > 1e-7
        assert differs.tolist() == [place >= changed for place in range(18)]
    expected = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
    first = torch.nn.functional.cross_entropy(either(ids[:, :0])[0], ids[0, :1])
    torch.testing.assert_close(either(ids, return_loss=True), (expected + first) / 18)


def test_sequences_longer_than_the_model_are_refused(either):
    for words in ({}, {"return_loss": True}):
        with pytest.raises(ValueError, match=r"ids of shape \(1, 19\) hold more than 18 tokens"):
            either(torch.zeros(1, 19, dtype=torch.long), **words)
    with pytest.raises(ValueError, match="do not hold a prime of 19"):
        either.generate(torch.zeros(1, 19, dtype=torch.long))


def test_other_weights_other_sequences(either):
    """What `generate` keeps for the next time follows the weights: loaded, trained, or of another type."""
    before = either.generate(default_batch_size=4, seed=0)
    fresh = copy.deepcopy(either)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    expected = fresh.generate(default_batch_size=4, seed=0)
    assert (expected != before).any()
    either.load_state_dict(fresh.state_dict())
    assert torch.equal(either.generate(default_batch_size=4, seed=0), expected)
    assert either.bfloat16().generate(default_batch_size=4, seed=0).shape == expected.shape


def test_dropout_is_off_while_generating():
    torch.manual_seed(0)
    model = RQTransformer(
        num_tokens=20,
        dim=16,
        max_spatial_seq_len=6,
        depth_seq_len=3,
        spatial_layers=1,
        depth_layers=1,
        dim_head=8,
        heads=2,
        attn_dropout=0.5,
        ff_dropout=0.5,
    )
    in_training = model.train().generate(default_batch_size=4, seed=0)
    assert model.training
    assert torch.equal(model.eval().generate(default_batch_size=4, seed=0), in_training)
