"""The model itself: who sees what, cached against uncached, vocabularies, variants, training switches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rqtransformer import RQTransformer, RQTransformerConfig
from rqtransformer.decoding import Decoder
from rqtransformer.targets import Stage2LossConfig, stage2_loss

VARIANTS = {
    "published": {},
    "no cumulated context": {"cumsum_depth_ctx": False},
    "own tokens, shared": {"input_emb_vqvae": False, "head_emb_vqvae": False},
    "own tokens per depth": {"input_emb_vqvae": False, "head_emb_vqvae": False, "shared_tok_emb": False},
    "own tokens in the body": {"input_emb_vqvae": False},
    "own tokens in the head": {"head_emb_vqvae": False, "shared_tok_emb": False},
    "classifier per depth": {"shared_cls_emb": False},
    "sizes per depth": {"vocab_size": [11, 4, 7], "shared_tok_emb": False, "shared_cls_emb": False},
    "sizes per depth, shared": {"vocab_size": [4, 11, 7], "input_emb_vqvae": False, "head_emb_vqvae": False},
    "text": {"block_size_cond": 4},
    "no head": {"head": {"n_layer": 0, "block": {"n_head": 1}}},
    "no biases, fast gelu": {
        "body": {"n_layer": 1, "block": {"n_head": 4, "mlp_bias": False, "attn_bias": False, "gelu": "v2"}}
    },
    "one code deep": {"block_size": [2, 3, 1]},
}
ALL_VARIANTS = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


class LeafTokenizer:
    """Gives code vectors that collect gradients, so that "sees" can be read off a derivative."""

    def __init__(self, tokenizer, codes_BHWD: Tensor):
        self.vectors = tokenizer.embed_code_with_depth(codes_BHWD).requires_grad_(True)

    def embed_code_with_depth(self, codes_BHWD: Tensor) -> Tensor:
        return self.vectors


def cached_logits(model: RQTransformer, tokenizer, codes_BHWD: Tensor, cond: Tensor | None, given: int = 0) -> Tensor:
    """Logits of all codes after the first `given` positions, decoded step by step along fixed codes."""
    codes_BTD = codes_BHWD.flatten(1, 2)
    steps = []
    with torch.no_grad(), model.decoding_mode():
        cond_BL = model.condition_ids(cond, len(codes_BTD), codes_BTD.device)
        decoder = Decoder(model, tokenizer, cond_BL, codes_BTD[:, :given], torch.float32)
        for position in range(given, model.num_positions):
            for depth in range(model.depth):
                assert (decoder.position, decoder.depth) == (position, depth)
                steps.append(decoder.logits())
                decoder.push(codes_BTD[:, position, depth])
    return torch.stack(steps, dim=1).unflatten(1, (-1, model.depth))


@ALL_VARIANTS
def test_cached_logits_equal_uncached(changes, build, random_codes):
    model, tokenizer = build(**changes)
    codes = random_codes(model, 3)
    cond = torch.randint(0, 5, (3, model.config.block_size_cond))
    full_BTDV = model(codes, tokenizer, cond).logits.flatten(1, 2)
    for given in (0, 1, model.num_positions - 1):
        torch.testing.assert_close(
            cached_logits(model, tokenizer, codes, cond, given), full_BTDV[:, given:], atol=1e-5, rtol=0
        )


def test_a_stack_may_be_fed_in_pieces_of_any_length(build):
    stack = build()[0].body_transformer
    x_BLC = torch.randn(2, 7, 16)
    with torch.no_grad():
        full = stack(x_BLC)
        cache = stack.new_cache(2, 7, torch.float32, x_BLC.device)
        for lengths in ((2, 3, 1, 1), (1, 6), (7,)):
            cache.reset()
            pieces = [stack(piece, cache) for piece in x_BLC.split(lengths, dim=1)]
            torch.testing.assert_close(torch.cat(pieces, dim=1), full, atol=1e-5, rtol=0)
    with pytest.raises(AssertionError, match="cache of 7 positions cannot take 8"):
        stack(x_BLC[:, :1], cache)


@pytest.mark.parametrize("changes", [{}, {"block_size_cond": 3}, {"cumsum_depth_ctx": False}])
def test_no_logit_depends_on_its_own_or_a_later_code(changes, build, random_codes):
    model, tokenizer = build(**changes)
    codes = random_codes(model, 1)
    leaf = LeafTokenizer(tokenizer, codes)
    logits_ND = model(codes, leaf).logits.flatten(0, 2)
    num_positions, depth = logits_ND.shape[:2]
    for index in range(num_positions * depth):
        position, d = divmod(index, depth)
        (gradient,) = torch.autograd.grad(logits_ND[position, d].square().sum(), leaf.vectors, retain_graph=True)
        seen = gradient.flatten(0, 2).flatten(0, 1).abs().sum(-1) > 0
        expected = torch.arange(num_positions * depth) < index
        assert torch.equal(seen, expected), (position, d)


def test_the_head_of_one_position_sees_other_positions_only_through_the_body(build, random_codes):
    model, tokenizer = build()
    codes = random_codes(model, 2)
    vectors = tokenizer.embed_code_with_depth(codes).flatten(1, 2)
    context = torch.randn(2, model.num_positions, 16, requires_grad=True)
    head_in = model.head_input(context, codes.flatten(1, 2), vectors)
    out = model.head_transformer(head_in.flatten(0, 1)).unflatten(0, (2, model.num_positions))
    (gradient,) = torch.autograd.grad(out[0, 2].square().sum(), context)
    assert gradient.abs().sum(-1).nonzero().tolist() == [[0, 2]]


def test_condition_reaches_every_position(build, random_codes):
    model, tokenizer = build()
    codes = random_codes(model, 1)
    one, two = (model(codes, tokenizer, torch.tensor([label])).logits for label in (1, 2))
    assert ((one - two).abs().amax(dim=(-1, -2)) > 1e-6).all()
    zero = model(codes, tokenizer, torch.tensor([0])).logits
    assert torch.equal(model(codes, tokenizer).logits, zero)


def test_codes_beyond_a_depths_vocabulary_have_no_probability_and_no_gradient(build, random_codes):
    model, tokenizer = build(vocab_size=[11, 4, 7], shared_cls_emb=False)
    codes = random_codes(model)
    output = model(codes, tokenizer)
    probs = output.logits.softmax(-1)
    for depth, size in enumerate([11, 4, 7]):
        assert probs[..., depth, size:].eq(0).all()
        assert probs[..., depth, :size].gt(0).all()
    loss, terms = stage2_loss(output, codes, None, None, Stage2LossConfig(type="cross_entropy"))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(value) for value in terms.values())
    gradient = model.classifier.linear.bias.grad
    for depth, size in enumerate([11, 4, 7]):
        assert gradient[depth, size:].eq(0).all()
        assert gradient[depth, :size].ne(0).all()
    assert torch.isfinite(output.logits.bfloat16()).all()


@ALL_VARIANTS
def test_every_parameter_gets_a_gradient(changes, build, random_codes):
    model, tokenizer = build(**changes)
    codes = random_codes(model)
    output = model(codes, tokenizer)
    stage2_loss(output, codes, None, None, Stage2LossConfig(type="cross_entropy"))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["published", "text", "sizes per depth"])
def test_one_batch_is_overfitted(name, build, random_codes):
    model, tokenizer = build(**VARIANTS[name])
    codes = random_codes(model, 3)
    cond = torch.arange(3).unsqueeze(1).expand(3, model.config.block_size_cond)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    config = Stage2LossConfig(type="cross_entropy", txt_weight=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        stage2_loss(model(codes, tokenizer, cond), codes, None, cond, config)[0].backward()
        optimizer.step()
    _, terms = stage2_loss(model(codes, tokenizer, cond), codes, None, cond, config)
    assert terms["loss_img"] < 0.05
    assert all(terms[f"accuracy_depth_{d}"] == 1.0 for d in range(model.depth))


def test_gradient_checkpointing_changes_nothing_but_memory(build, random_codes):
    model, tokenizer = build(embd_pdrop=0.1)
    model.train()
    codes = random_codes(model)
    gradients = []
    for enabled in (False, True):
        model.gradient_checkpointing = enabled
        assert model.gradient_checkpointing == enabled
        torch.manual_seed(3)
        model.zero_grad()
        model(codes, tokenizer).logits.square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients))


def test_gradient_checkpointing_keeps_fewer_activations(build, random_codes):
    model, tokenizer = build()
    model.train()
    kept = []
    for enabled in (False, True):
        model.gradient_checkpointing = enabled
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            model(random_codes(model), tokenizer)
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]


def test_dropped_conditions_use_the_extra_embedding(build, random_codes):
    model, tokenizer = build(cond_drop_prob=0.5, block_size_cond=3)
    assert model.cond_emb.num_embeddings == 6
    codes, cond = random_codes(model, 64), torch.randint(0, 5, (64, 3))
    assert torch.equal(model(codes, tokenizer, cond).cond, cond)
    model.train()
    used = model(codes, tokenizer, cond).cond
    dropped = (used == model.null_condition).all(dim=1)
    assert 10 < dropped.sum() < 54
    assert torch.equal(used[~dropped], cond[~dropped])
    model.eval()
    null = torch.full((64, 3), 5)
    assert torch.equal(model(codes, tokenizer).logits, model(codes, tokenizer, null).logits)


def test_without_condition_dropout_there_is_no_extra_parameter(build):
    assert build()[0].cond_emb.num_embeddings == 5


def test_wrong_condition_shape_is_refused(build, random_codes):
    model, tokenizer = build(block_size_cond=3)
    with pytest.raises(ValueError, match=r"shape \(2, 2\).*\(2, 3\)"):
        model(random_codes(model), tokenizer, torch.zeros(2, 2, dtype=torch.long))


def test_initialisation_is_the_published_one():
    config = RQTransformerConfig.from_mapping(
        {
            "block_size": [8, 8, 4],
            "embed_dim": 128,
            "vocab_size": 512,
            "input_emb_vqvae": True,
            "body": {"n_layer": 1, "block": {"n_head": 2}},
            "head": {"n_layer": 1, "block": {"n_head": 2}},
        }
    )
    model = RQTransformer(config)
    for normal in (model.pos_emb_hw, model.tok_emb.weight, model.classifier.linear.weight):
        assert normal.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.cond_emb.weight.std().item() == pytest.approx(1.0, rel=0.3)
    linear = model.body_transformer.blocks[0].mlp[0].weight
    assert linear.abs().max().item() == pytest.approx(128**-0.5, rel=0.01)
    assert model.tok_emb.offsets.tolist() == [0, 512, 1024, 1536]


def test_runs_under_autocast(build, random_codes):
    model, tokenizer = build(vocab_size=[11, 4, 7], shared_cls_emb=False)
    codes = random_codes(model)
    exact = model(codes, tokenizer).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(codes, tokenizer)
    loss, _ = stage2_loss(output, codes, None, None, Stage2LossConfig(type="cross_entropy"))
    loss.backward()
    assert output.logits.dtype == torch.bfloat16
    torch.testing.assert_close(output.logits.float()[..., :4], exact[..., :4], atol=0.1, rtol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
