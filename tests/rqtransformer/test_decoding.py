"""Sampling: reproducible per sample, in batches, with guidance, prefixes and settings per depth."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import sample
from rqtransformer.decoding import sample_batches
from rqtransformer.logits import draw, sampling_probs


def test_samples_do_not_depend_on_the_batch_size(build):
    model, tokenizer = build(block_size=[4, 4, 4], embed_dim=32, vocab_size=64)
    labels = torch.arange(64) % 5
    settings = {"top_k": 40, "top_p": 0.95, "seed": 3}
    together = sample(model, tokenizer, labels, **settings)
    for batch_size, count in ((1, 8), (7, 64)):
        parts = sample_batches(model, tokenizer, labels[:count].tolist(), batch_size, **settings)
        assert torch.equal(torch.cat([part.codes for part in parts]), together[:count])
    assert len({tuple(codes.flatten().tolist()) for codes in together}) == 64


def test_sampling_equals_uncached_decoding_by_hand(build):
    model, tokenizer = build(vocab_size=[11, 4, 7], shared_cls_emb=False)
    cond, index = torch.tensor([1, 4]), torch.tensor([9, 2])
    settings = {"temperature": (0.9, 1.0, 1.2), "top_k": (5, 3, 7), "top_p": (0.9, 1.0, 0.8)}
    codes = torch.zeros(2, 2, 3, 3, dtype=torch.long)
    with torch.no_grad():
        for position in range(6):
            for depth in range(3):
                logits = model(codes, tokenizer, cond).logits[:, position // 3, position % 3, depth]
                probs = sampling_probs(logits, *(column[depth] for column in settings.values()))
                codes[:, position // 3, position % 3, depth] = draw(probs, 17, index, position, depth)
    assert torch.equal(sample(model, tokenizer, cond, indices=index, seed=17, **settings), codes)


def test_seed_and_index_choose_the_sample(build):
    model, tokenizer = build()
    base = sample(model, tokenizer, num_samples=6, seed=1)
    assert torch.equal(sample(model, tokenizer, num_samples=6, seed=1), base)
    assert not torch.equal(sample(model, tokenizer, num_samples=6, seed=2), base)
    assert torch.equal(sample(model, tokenizer, num_samples=2, seed=1, start_index=4), base[4:])
    assert torch.equal(sample(model, tokenizer, seed=1, indices=[5, 0]), base[[5, 0]])


@pytest.mark.parametrize("given", [0, 1, 4, 6])
def test_prefix_is_kept_and_continued(given, build, random_codes):
    model, tokenizer = build(block_size_cond=3)
    cond = torch.randint(0, 5, (4, 3))
    full = sample(model, tokenizer, cond, seed=5)
    prefix = full.flatten(1, 2)[:, :given]
    assert torch.equal(sample(model, tokenizer, cond, seed=5, prefix=prefix), full)
    other = random_codes(model, 4).flatten(1, 2)[:, :given]
    continued = sample(model, tokenizer, cond, seed=5, prefix=other)
    assert torch.equal(continued.flatten(1, 2)[:, :given], other)


def test_codes_respect_the_vocabulary_of_each_depth(build):
    model, tokenizer = build(vocab_size=[11, 2, 7], shared_cls_emb=False)
    codes = sample(model, tokenizer, num_samples=50, temperature=5.0)
    assert codes.dtype == torch.long
    assert codes.amin() == 0
    assert codes.flatten(0, 2).amax(0).tolist() == [10, 1, 6]


def test_guidance_combines_conditional_and_unconditional_logits(build):
    model, tokenizer = build(cond_drop_prob=0.1)
    cond = torch.tensor([0, 3])
    plain = sample(model, tokenizer, cond, seed=2)
    assert torch.equal(sample(model, tokenizer, cond, seed=2, cfg_scale=1.0), plain)
    unconditional = sample(model, tokenizer, num_samples=2, seed=2)
    assert torch.equal(sample(model, tokenizer, cond, seed=2, cfg_scale=0.0), unconditional)
    codes = torch.zeros(2, 2, 3, 3, dtype=torch.long)
    with torch.no_grad():
        for position in range(6):
            for depth in range(3):
                conditional = model(codes, tokenizer, cond).logits.flatten(1, 2)[:, position, depth]
                null = model(codes, tokenizer, torch.full((2,), 5)).logits.flatten(1, 2)[:, position, depth]
                probs = (null + 4.0 * (conditional - null)).softmax(-1)
                codes.view(2, 6, 3)[:, position, depth] = draw(probs, 2, torch.arange(2), position, depth)
    assert torch.equal(sample(model, tokenizer, cond, seed=2, cfg_scale=4.0), codes)


def test_guidance_is_refused_without_condition_dropout(build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="cond_drop_prob"):
        sample(model, tokenizer, torch.tensor([1]), cfg_scale=2.0)


def test_model_is_left_as_it_was(build, random_codes):
    model, tokenizer = build()
    codes = random_codes(model)
    model.train()
    sample(model, tokenizer, num_samples=1)
    assert model.training
    assert model.classifier.training
    model.eval()
    before = model(codes, tokenizer).logits
    with pytest.raises(IndexError):
        sample(model, tokenizer, prefix=torch.full((1, 2, 3), 99))
    with torch.no_grad():
        model.body_transformer.blocks[0].attn.query.weight.mul_(2)
    assert not torch.equal(model(codes, tokenizer).logits, before)


def test_own_token_tables_need_no_tokenizer(build):
    model, _ = build(input_emb_vqvae=False, head_emb_vqvae=False)
    assert sample(model, None, num_samples=2).shape == (2, 2, 3, 3)


def test_reduced_precision_gives_nearly_the_same_greedy_codes(build):
    model, tokenizer = build()
    exact = sample(model, tokenizer, num_samples=16, indices=range(16), top_k=1)
    rough = sample(model, tokenizer, num_samples=16, indices=range(16), top_k=1, amp_dtype=torch.bfloat16)
    assert rough.dtype == torch.long
    assert (exact == rough).float().mean() > 0.5


def test_batches_carry_conditions_and_indices(build):
    model, tokenizer = build(block_size_cond=2)
    conditions = [torch.tensor([i % 5, 1]) for i in range(5)]
    batches = list(sample_batches(model, tokenizer, iter(conditions), 2, indices=[3, 1, 4, 0, 9], top_k=3))
    assert [batch.indices for batch in batches] == [[3, 1], [4, 0], [9]]
    assert torch.equal(batches[1].cond, torch.stack(conditions[2:4]))
    assert batches[2].codes.shape == (1, 2, 3, 3)
    unconditional = list(sample_batches(model, tokenizer, [None] * 3, 2, start_index=7))
    assert [batch.indices for batch in unconditional] == [[7, 8], [9]]
    assert unconditional[0].cond is None


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "num_samples is needed"),
    ({"num_samples": 2, "cond": torch.tensor([1])}, "must agree"),
    ({"num_samples": 0}, "positive"),
    ({"cond": torch.tensor([5])}, r"must lie in 0\.\.4, not 5\.\.5"),
    ({"cond": torch.tensor([[1, 2]])}, r"does not fit; this model wants \(1,\)"),
    ({"num_samples": 1, "top_k": [1, 2]}, r"top_k=\[1, 2\] must be one value or one per depth \(3\)"),
    ({"num_samples": 1, "temperature": -1.0}, "temperature=-1.0 must be above 0"),
    ({"num_samples": 1, "top_p": 2.0}, "top_p=2.0"),
    ({"prefix": torch.zeros(1, 7, 3, dtype=torch.long)}, r"prefix of shape \(1, 7, 3\) must be \(batch, up to 6, 3\)"),
])
def test_wrong_arguments_are_named(arguments, message, build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, **arguments)


def test_batch_size_must_be_positive(build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="batch_size=0"):
        next(sample_batches(model, tokenizer, [1], 0))
