"""Sampling: reproducible per sample, in batches, with guidance, prefixes and settings per depth."""

from __future__ import annotations

import pytest
import torch

from rqtransformer import sample
from rqtransformer.decoding import sample_batches, sample_stream
from rqtransformer.decoding.logits import draw, sampling_probs
from rqtransformer.decoding.sampling_request import guidance_scales
from rqtransformer.draw_settings import DrawSettings


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
                probs = sampling_probs(logits, DrawSettings(*(column[depth] for column in settings.values())))
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
    _, smaller = build(vocab_size=5)
    with pytest.raises(ValueError, match="do not fit a model of 11 codes"):
        sample(model, smaller, num_samples=1)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "num_samples is needed"),
        ({"num_samples": 2, "cond": torch.tensor([1])}, "must agree"),
        ({"num_samples": 0}, "positive"),
        ({"cond": torch.tensor([5])}, r"must lie in 0\.\.4, not 5"),
        ({"cond": torch.tensor([[1, 2]])}, r"does not fit; this model wants \(1,\)"),
        ({"num_samples": 1, "top_k": [1, 2]}, r"top_k=\[1, 2\] must be one value or one per depth \(3\)"),
        ({"num_samples": 1, "temperature": -1.0}, "temperature=-1.0 must be above 0"),
        ({"num_samples": 1, "top_p": 2.0}, "top_p=2.0"),
        (
            {"prefix": torch.zeros(1, 7, 3, dtype=torch.long)},
            r"prefix of shape \(1, 7, 3\) must be \(batch, up to 6, 3\)",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message, build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match=message):
        sample(model, tokenizer, **arguments)


def test_batch_size_must_be_positive(build):
    model, tokenizer = build()
    with pytest.raises(ValueError, match="batch_size=0"):
        next(sample_batches(model, tokenizer, [1], 0))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_sample_is_the_same_codes_in_any_batch(seed, build):
    model, tokenizer = build(block_size=[2, 2, 4], embed_dim=64, vocab_size=512, cond_drop_prob=0.1)
    labels = torch.arange(64) % 5
    settings = {"top_k": 200, "top_p": 0.95, "seed": seed, "cfg_scale": "linear:3"}
    together = sample(model, tokenizer, labels, **settings)
    for size, count in ((1, 8), (7, 35), (33, 64)):
        parts = sample_batches(model, tokenizer, labels[:count].tolist(), size, **settings)
        assert torch.equal(torch.cat([part.codes for part in parts]), together[:count])


def by_hand(model, tokenizer, cond, settings, seed, mask=None, given=None, scales=None):
    """Uncached decoding: the whole model for every code."""
    height, width, depth = model.config.block_size
    codes = torch.zeros(len(cond), height, width, depth, dtype=torch.long)
    null = torch.full_like(cond, model.null_condition)
    with torch.no_grad():
        for position in range(height * width):
            row, column = divmod(position, width)
            for d in range(depth):
                logits = model(codes, tokenizer, cond).logits[:, row, column, d]
                if scales is not None:
                    plain = model(codes, tokenizer, null).logits[:, row, column, d]
                    logits = plain + scales[position] * (logits - plain)
                code = draw(sampling_probs(logits, DrawSettings(*settings)), seed, torch.arange(len(cond)), position, d)
                if mask is not None:
                    code = torch.where(mask[:, row, column, d], given[:, row, column, d], code)
                codes[:, row, column, d] = code
    return codes


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("kind", ["random", "a hole", "a prefix", "everything", "nothing"])
def test_inpainting_equals_uncached_decoding(kind, graphs, build, random_codes):
    model, tokenizer = build()
    cond, given = torch.tensor([1, 4, 2]), random_codes(model, 3)
    mask = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    if kind == "random":
        mask = torch.rand(3, 2, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    elif kind == "a hole":
        mask[:] = True
        mask[:, 0, 1:] = False
    elif kind == "a prefix":
        mask[:, 0] = True
        mask[1, 1, 0] = True
    elif kind == "everything":
        mask[:] = True
    codes = sample(model, tokenizer, cond, seed=3, top_k=5, known=(mask, given), graphs=graphs)
    assert torch.equal(codes[mask], given[mask])
    assert torch.equal(codes, by_hand(model, tokenizer, cond, (1.0, 5), 3, mask, given))


def test_masks_of_positions_count_for_all_depths(build, random_codes):
    model, tokenizer = build()
    given = random_codes(model, 2)
    grid = torch.tensor([[True, False, True], [False, True, False]])
    expected = sample(model, tokenizer, seed=3, known=(grid.view(1, 2, 3, 1).expand(2, -1, -1, 3), given))
    assert torch.equal(sample(model, tokenizer, seed=3, known=(grid, given)), expected)
    assert torch.equal(sample(model, tokenizer, seed=3, known=(grid.expand(2, -1, -1), given)), expected)


@pytest.mark.parametrize("graphs", [False, True])
def test_guidance_follows_its_schedule(graphs, build):
    model, tokenizer = build(cond_drop_prob=0.1)
    cond = torch.tensor([0, 3])
    scales = [1.0, 0.5, 2.0, 4.0, 0.0, 3.0]
    codes = sample(model, tokenizer, cond, seed=2, cfg_scale=scales, graphs=graphs)
    assert torch.equal(codes, by_hand(model, tokenizer, cond, (1.0,), 2, scales=scales))


@pytest.mark.parametrize("changes", [{}, {"block_size_cond": 3}, {"input_emb_vqvae": False, "head_emb_vqvae": False}])
def test_positions_kept_on_the_device_give_the_same_codes(changes, build, random_codes):
    model, tokenizer = build(**changes)
    cond = torch.randint(0, 5, (4, model.config.block_size_cond))
    prefix = random_codes(model, 4).flatten(1, 2)[:, :2]
    for settings in ({}, {"prefix": prefix}, {"top_k": (3, 5, 11), "top_p": 0.9}):
        expected = sample(model, tokenizer, cond, seed=5, **settings)
        assert torch.equal(sample(model, tokenizer, cond, seed=5, graphs=True, **settings), expected)


def test_codes_stream_out_position_by_position(build, random_codes):
    model, tokenizer = build()
    final = sample(model, tokenizer, num_samples=2, seed=4)
    seen = []
    for partial in sample_stream(model, tokenizer, num_samples=2, seed=4):
        seen.append(partial.position)
        done = partial.codes.flatten(1, 2)
        assert torch.equal(done[:, : partial.position], final.flatten(1, 2)[:, : partial.position])
        assert not done[:, partial.position :].any()
    assert seen == list(range(7))
    model.train()
    stream = sample_stream(model, tokenizer, num_samples=2, prefix=random_codes(model, 2).flatten(1, 2)[:, :4])
    assert [next(stream).position, next(stream).position] == [4, 5]
    stream.close()
    assert model.training


def test_drawn_codes_can_be_trained_on(build):
    model, tokenizer = build(input_emb_vqvae=False, head_emb_vqvae=False)
    codes = sample(model, tokenizer, num_samples=2)
    model(codes, tokenizer).logits.square().mean().backward()
    assert model.tok_emb.weight.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cfg_scale": "steep:3"}, "must be a number or one of 'constant:<scale>', 'linear:<scale>', 'cosine:<scale>'"),
        ({"cfg_scale": "linear"}, "must be a number or one of"),
        ({"cfg_scale": [1.0, 2.0]}, r"cfg_scale has 2 values; it needs one, or one per position \(6\)"),
        ({"cfg_scale": float("nan")}, "must be finite"),
        ({"known": (torch.zeros(2, 3), torch.zeros(2, 2, 3, 3).long())}, "must be of type bool, not torch.float32"),
        ({"known": (torch.ones(5, dtype=torch.bool), torch.zeros(2, 2, 3, 3).long())}, "the mask of known has shape"),
        ({"known": (torch.ones(2, 3).bool(), torch.zeros(2, 3, 3).long())}, r"known codes of shape \(2, 3, 3\)"),
        (
            {"known": (torch.ones(2, 3).bool(), torch.full((2, 2, 3, 3), 11))},
            r"known: code 11 of depth 0 must lie in 0\.\.10",
        ),
        (
            {
                "known": (torch.ones(2, 3).bool(), torch.zeros(2, 2, 3, 3).long()),
                "prefix": torch.zeros(2, 1, 3, dtype=torch.long),
            },
            "cannot be combined",
        ),
        ({"weights": "int4"}, "weights='int4' must be one of dense, int8"),
    ],
)
def test_wrong_requests_are_named(arguments, message, build):
    model, tokenizer = build(cond_drop_prob=0.1)
    with pytest.raises(ValueError, match=message) as error:
        sample(model, tokenizer, num_samples=2, **arguments)
    assert "\n" not in str(error.value)


def test_schedules_end_at_their_scale():
    assert guidance_scales("constant:3", 4) == [3.0] * 4
    assert guidance_scales("linear:4", 4) == [1.0, 2.0, 3.0, 4.0]
    cosine = guidance_scales("cosine:5", 5)
    assert cosine == pytest.approx([1.0, 1.5857864, 3.0, 4.4142136, 5.0])
    assert guidance_scales(1.0, 4) is guidance_scales(None, 4) is guidance_scales("linear:1", 3) is None


def test_shares_of_ranks_are_parts_of_the_whole(build):
    model, tokenizer = build(block_size=[2, 2, 4], vocab_size=64)
    settings = {"top_k": 30, "seed": 7}
    whole = sample(model, tokenizer, torch.arange(21) % 5, **settings)
    for world_size in (2, 3):
        for rank in range(world_size):
            mine = torch.arange(rank, 21, world_size)
            assert torch.equal(sample(model, tokenizer, mine % 5, indices=mine, **settings), whole[mine])
