"""Codes that a caller rules out: never drawn under any path, and the others as if the logits had been so."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import HierarchicalConfig, HierarchicalTransformer, frame_sampler, sample

COND = torch.tensor([0, 3, 4])


def even_after_odd(codes_BN: torch.Tensor) -> torch.Tensor:
    """A rule that looks at the code before: the next has the other parity. (B, N) -> (B, 11)."""
    parity_V = torch.arange(11) % 2
    if not codes_BN.shape[1]:
        return parity_V == 0
    return parity_V != codes_BN[:, -1:] % 2


SETTINGS = [
    {},
    {"top_k": 2},
    {"top_p": 0.6, "temperature": 2.0},
    {"graphs": True},
    {"cfg_scale": "linear:3"},
    {"weights": "int8"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_no_path_draws_what_is_ruled_out(settings, build, either_path):
    model, tokenizer = build(cond_drop_prob=0.1)
    codes = sample(model, tokenizer, COND, allowed=even_after_odd, **settings)
    parity = codes.flatten(1) % 2
    assert torch.equal(parity, torch.arange(parity.shape[1]).remainder(2).expand_as(parity))
    assert not torch.equal(codes, sample(model, tokenizer, COND, **settings))


@pytest.mark.parametrize("settings", SETTINGS[:-1], ids=str)
def test_a_hook_that_allows_everything_changes_nothing(settings, build, either_path):
    model, tokenizer = build(cond_drop_prob=0.1)
    codes = sample(model, tokenizer, COND, allowed=lambda codes: torch.ones(11, dtype=torch.bool), **settings)
    assert torch.equal(codes, sample(model, tokenizer, COND, **settings))


def test_what_is_allowed_is_drawn_as_from_a_model_that_knows_nothing_else(build, either_path):
    """Ruling codes out is the same as a classifier that gives them no chance."""
    model, tokenizer = build()
    mask_V = torch.arange(11) < 6
    ruled_out = sample(model, tokenizer, COND, allowed=lambda codes: mask_V, top_p=0.8)
    with torch.no_grad():
        model.classifier.linear.bias[~mask_V] = -1e9
    assert torch.equal(ruled_out, sample(model, tokenizer, COND, top_p=0.8))


def test_the_hook_sees_the_codes_in_their_order_and_given_ones_stay(build, random_codes):
    model, tokenizer = build()
    given, seen = random_codes(model, 3), []

    def allowed(codes_BN):
        seen.append(codes_BN)
        return torch.zeros(11, dtype=torch.bool).index_fill(0, torch.tensor([7]), True)

    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[1, 1] = True
    codes = sample(model, tokenizer, COND, known=(mask, given), allowed=allowed)
    assert torch.equal(codes[:, 1, 1], given[:, 1, 1])
    assert (codes[:, ~mask] == 7).all()
    assert [shown.shape[1] for shown in seen] == list(range(18))
    assert torch.equal(seen[-1], codes.flatten(1)[:, :-1])
    prefix = sample(model, tokenizer, COND, prefix=given[:, :1], allowed=allowed)
    assert torch.equal(prefix[:, 0], given[:, 0]) and (prefix[:, 1] == 7).all()


def test_depths_of_different_sizes_are_asked_for_their_own(build):
    model, tokenizer = build(vocab_size=[11, 4, 7], shared_cls_emb=False, shared_tok_emb=False)
    sizes = [11, 4, 7]
    codes = sample(model, tokenizer, COND, allowed=lambda codes: torch.arange(sizes[codes.shape[1] % 3]) == 3)
    assert (codes == 3).all()


def test_a_sample_without_a_choice_is_named(build):
    model, tokenizer = build()

    def stuck(codes_BN):
        free = torch.ones(3, 11, dtype=torch.bool)
        free[1] = codes_BN.shape[1] < 5
        return free

    with pytest.raises(ValueError, match=r"no code for 1 of 3 samples, first for code 5 .* of sample 1$"):
        sample(model, tokenizer, COND, allowed=stuck)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (torch.ones(11), r"not torch.float32 of shape \(11,\)"),
        (torch.ones(10, dtype=torch.bool), r"\(11,\) or \(3, 11\), not torch.bool of shape \(10,\)"),
        (torch.ones(2, 11, dtype=torch.bool), r"not torch.bool of shape \(2, 11\)"),
        ([True] * 11, "not "),
        (None, "not None"),
    ],
)
def test_an_answer_that_is_no_mask(answer, said, build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match=said):
        sample(model, tokenizer, COND, allowed=lambda codes: answer)


def test_what_cannot_be_called(build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="allowed=7 must be a function"):
        sample(model, tokenizer, COND, allowed=7)
    with (
        pytest.raises(ValueError, match="allowed='even' must be a function"),
        frame_sampler(model, tokenizer, allowed="even"),
    ):
        pass


def test_tokens_of_a_hierarchical_model(either_path):
    model = HierarchicalTransformer(
        HierarchicalConfig(num_tokens=11, dim=16, max_seq_len=(3, 2), depth=(1, 1), heads=2)
    )
    tokens = model.generate(batch_size=3, allowed=even_after_odd).flatten(1)
    assert torch.equal(tokens % 2, torch.arange(6).remainder(2).expand(3, 6))
    with pytest.raises(ValueError, match="no code for 3 of 3 samples, first for code 0"):
        model.generate(batch_size=3, allowed=lambda tokens: torch.zeros(11, dtype=torch.bool))
