"""`VectorQuantize` as vector-quantize-pytorch offers it: the examples of its README, and what programs rely on."""

import inspect

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat.vector_quantize_pytorch import VectorQuantize
from rqstack.quantizers.compat.vector_quantize_pytorch.vector_quantize_pytorch import LossBreakdown

IMAGE_EXAMPLES = {
    "orthogonal": (
        dict(orthogonal_reg_weight=10, orthogonal_reg_max_codes=128, orthogonal_reg_active_codes_only=False),
        (1, 32, 32),
    ),
    "heads": (
        dict(codebook_dim=32, heads=8, separate_codebook_per_head=True, codebook_size=8196),
        (1, 32, 32, 8),
    ),
}


def made(seed=0, **settings):
    torch.manual_seed(seed)
    return VectorQuantize(**{"dim": 8, "codebook_size": 16, **settings})


def vectors(*shape, seed=1):
    return torch.randn(shape or (2, 12, 8), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings",
    [
        dict(codebook_size=512, decay=0.8, commitment_weight=1.0),
        dict(codebook_size=256, codebook_dim=16),
        dict(codebook_size=256, use_cosine_sim=True),
        dict(codebook_size=512, threshold_ema_dead_code=2),
    ],
)
def test_readme_sequences(settings):
    quantized, indices, loss = VectorQuantize(dim=256, **settings)(torch.randn(1, 1024, 256))
    assert quantized.shape == (1, 1024, 256)
    assert indices.shape == (1, 1024)
    assert loss.shape == ()


@pytest.mark.parametrize("name", IMAGE_EXAMPLES)
def test_readme_images(name):
    settings, shape = IMAGE_EXAMPLES[name]
    quantizer = VectorQuantize(dim=256, **{"codebook_size": 256, "accept_image_fmap": True, **settings})
    quantized, indices, loss = quantizer(torch.randn(1, 256, 32, 32))
    assert quantized.shape == (1, 256, 32, 32)
    assert indices.shape == shape
    assert loss.shape == ()
    if name == "orthogonal":
        assert loss > 0


def test_arguments_and_their_defaults():
    defaults = {name: p.default for name, p in inspect.signature(VectorQuantize).parameters.items()}
    assert list(defaults)[:5] == ["dim", "codebook_size", "codebook_dim", "heads", "separate_codebook_per_head"]
    assert defaults["decay"] == 0.8
    assert defaults["threshold_ema_dead_code"] == 0
    assert defaults["rotation_trick"] is None
    assert len(defaults) == 44
    forward = list(inspect.signature(VectorQuantize.forward).parameters)
    assert forward == [
        "self",
        "x",
        "indices",
        "mask",
        "lens",
        "topk",
        "sample_codebook_temp",
        "freeze_codebook",
        "return_loss_breakdown",
        "codebook_transform_fn",
        "ema_update_weight",
        "accum_ema_update",
        "ema_update",
    ]


def test_state_has_the_names_and_shapes_of_the_original():
    quantizer = made(heads=2, codebook_dim=3, separate_codebook_per_head=True)
    shapes = {name: tuple(value.shape) for name, value in quantizer.state_dict().items()}
    assert shapes == {
        "project_in.weight": (6, 8),
        "project_in.bias": (6,),
        "project_out.weight": (8, 6),
        "project_out.bias": (8,),
        "_codebook.initted": (),
        "_codebook.cluster_size": (2, 16),
        "_codebook.embed_avg": (2, 16, 3),
        "_codebook.embed": (2, 16, 3),
    }
    assert quantizer.codebook.shape == (2, 16, 3)
    assert made().codebook.shape == (16, 8)
    assert "_codebook.embed" in dict(made(orthogonal_reg_weight=1.0).named_parameters())
    assert "_codebook.embed" in dict(made().named_buffers())


def test_loss_in_training_and_evaluation():
    x = vectors()
    for weight in (1.0, 0.0):
        quantizer = made(commitment_weight=weight)
        loss = quantizer(x)[2]
        assert loss.shape == ()
        assert loss.requires_grad
        assert (loss > 0) == (weight > 0)
        quantized, _, loss = quantizer.eval()(x.clone().requires_grad_())
        assert loss == 0
        assert not loss.requires_grad
        assert not quantized.requires_grad


@pytest.mark.parametrize(
    ("dtype", "loss_dtype"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64)],
)
def test_types(dtype, loss_dtype):
    exact, quantizer = made(), made()
    x = vectors().to(dtype)
    quantized, indices, loss = quantizer(x)
    expected = exact(x.float())
    assert (quantized.dtype, indices.dtype, loss.dtype) == (dtype, torch.int64, loss_dtype)
    assert torch.equal(indices, expected[1])
    torch.testing.assert_close(loss.float(), expected[2])
    assert torch.equal(quantized, expected[0].to(dtype))


def test_a_cast_model_and_autocast_change_no_code():
    x = vectors(4, 32, 8)
    for settings in (dict(), dict(codebook_dim=4), dict(codebook_dim=4, layernorm_after_project_in=True)):
        expected = made(**settings).eval()(x)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(made(**settings).eval()(x)[1], expected)
        cast = made(**settings).bfloat16()
        assert cast._codebook.embed.dtype == cast._codebook.embed_avg.dtype == torch.float32
        assert cast(x.bfloat16())[0].dtype == torch.bfloat16


def test_rotation_is_the_default_gradient_above_one_dim():
    assert made().rotation_trick
    assert not VectorQuantize(dim=1, codebook_size=4).rotation_trick
    assert not made(directional_reparam=True, threshold_ema_dead_code=1).rotation_trick
    with pytest.raises(ValueError, match="straight_through and rotation_trick"):
        made(straight_through=True)
    x = vectors().requires_grad_()
    made(rotation_trick=False, commitment_weight=0.0)(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_moving_averages_run_in_training_only_and_after_the_look_up():
    quantizer, x = made(), vectors()
    before = quantizer.codebook.clone()
    with torch.no_grad():
        quantized, indices, _ = quantizer(x)
    assert torch.equal(quantized, before[indices])
    after = quantizer.codebook.clone()
    assert not torch.equal(after, before)
    quantizer.eval()(x)
    assert torch.equal(quantizer.codebook, after)
    sizes = 0.8 + 0.2 * torch.bincount(indices.flatten(), minlength=16)
    torch.testing.assert_close(quantizer._codebook.cluster_size[0], sizes.float())


def test_kmeans_start_runs_in_evaluation_and_when_frozen_too():
    x = vectors(4, 32, 8)
    for quantizer in (made(kmeans_init=True).eval(), made(kmeans_init=True, freeze_codebook=True)):
        assert not quantizer._codebook.initted
        assert quantizer.codebook.abs().max() == 0
        quantizer(x)
        assert quantizer._codebook.initted
        held = quantizer.codebook.clone()
        assert held.norm(dim=1).min() > 0
        quantizer(x + 1)
        assert torch.equal(quantizer.codebook, held)
    quantizer._codebook.initted.fill_(False)
    quantizer(x + 1)
    assert not torch.equal(quantizer.codebook, held)


def test_freezing_on_call_overrides_the_constructor():
    x = vectors()
    frozen, free = made(freeze_codebook=True), made()
    before = frozen.codebook.clone()
    frozen(x)
    free(x, freeze_codebook=True)
    assert torch.equal(frozen.codebook, before)
    assert torch.equal(free.codebook, before)
    frozen(x, freeze_codebook=False)
    assert not torch.equal(frozen.codebook, before)


def test_masks_and_lengths():
    x, lens = vectors(), torch.tensor([5, 12])
    mask = torch.arange(12) < lens[:, None]
    by_mask, by_lens = made(), made()
    quantized, indices, loss = by_mask(x, mask=mask)
    for value, other in zip((quantized, indices, loss), by_lens(x, lens=lens), strict=True):
        assert torch.equal(value, other)
    assert torch.all(quantized[~mask] == 0)
    assert torch.all(indices[~mask] == -1)
    kept = made(return_zeros_for_masked_padding=False)(x, mask=mask)[0]
    assert torch.equal(kept[~mask], x[~mask])
    with pytest.raises(ValueError, match="not both"):
        made()(x, mask=mask, lens=lens)
    for wrong in (dict(mask=mask[:, :4]), dict(mask=mask[:1])):
        with pytest.raises(ValueError, match="does not fit"):
            made()(x, **wrong)
    with pytest.raises(AssertionError):
        made(accept_image_fmap=True)(vectors(2, 8, 3, 4), mask=torch.ones(2, 3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="of maps and single tokens a mask has one entry per sample"):
        made()(vectors(6, 8), lens=torch.ones(6, dtype=torch.int64))


def test_indices_give_a_cross_entropy():
    quantizer, x = made(freeze_codebook=True), vectors()
    nearest = quantizer(x)[1]
    quantized, loss = quantizer(x, indices=nearest)
    assert torch.equal(quantized, quantizer.codebook[nearest])
    scores = -torch.cdist(x, quantizer.codebook[None].expand(2, -1, -1))
    torch.testing.assert_close(loss, nn.functional.cross_entropy(scores.flatten(0, 1), nearest.flatten()))
    with pytest.raises(ValueError, match="24 vectors"):
        quantizer(x, indices=nearest[:1])
    half = nearest.clone()
    half[:, 6:] = -1
    expected = nn.functional.cross_entropy(scores[:, :6].flatten(0, 1), nearest[:, :6].flatten())
    torch.testing.assert_close(quantizer(x, indices=half)[1], expected)
    torch.testing.assert_close(quantizer(x, indices=nearest, lens=torch.tensor([6, 6]))[1], expected)


@pytest.mark.parametrize("training", [True, False])
def test_top_codes(training):
    quantizer, x = made().train(training), vectors()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantized, indices, loss = quantizer(x, topk=3)
    assert (quantized.shape, indices.shape, loss.shape) == ((2, 12, 3, 8), (2, 12, 3), (2, 12, 3))
    distances = torch.cdist(x, quantizer.codebook[None].expand(2, -1, -1))
    assert torch.equal(indices, distances.topk(3, largest=False).indices)
    torch.testing.assert_close(loss, distances.gather(-1, indices).square() / 8)
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    assert quantizer(x, topk=99)[1].shape == (2, 12, 16)
    for wrong in (dict(topk=0), dict(topk=2, indices=indices[..., 0])):
        with pytest.raises(ValueError, match="topk"):
            quantizer(x, **wrong)
    with pytest.raises(ValueError, match="single head"):
        made(heads=2, codebook_dim=4)(x, topk=2)


def test_settings_that_do_not_go_together_are_refused():
    for settings, message in (
        (dict(in_place_codebook_optimizer=torch.optim.Adam), "needs learnable_codebook"),
        (dict(learnable_codebook=True), "needs ema_update=False"),
        (dict(sync_update_v=2.0), "between 0 and 1, got 2.0"),
    ):
        for error in (ValueError, AssertionError):
            with pytest.raises(error, match=message):
                made(**settings)


def test_code_vectors_of_each_position():
    quantizer, x = made().eval(), vectors()
    factor = torch.linspace(0.5, 2, 24).view(2, 12, 1, 1)

    def own(embed):
        assert embed.shape == (1, 16, 8)
        return embed[:, None, None] * factor

    books = quantizer.codebook * factor
    distances = (x[:, :, None] - books).norm(dim=-1)
    quantized, indices, _ = quantizer(x, codebook_transform_fn=own)
    assert torch.equal(indices, distances.argmin(-1))
    assert torch.equal(quantized, books.gather(2, indices[..., None, None].expand(-1, -1, 1, 8))[:, :, 0])
    several, indices, _ = quantizer(x, codebook_transform_fn=own, topk=3)
    assert torch.equal(indices, distances.topk(3, largest=False).indices)
    assert torch.equal(several[:, :, 0], quantized)


def test_loss_breakdown():
    names = ("commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize")
    assert LossBreakdown._fields == names
    quantizer = made(commitment_weight=2.0, orthogonal_reg_weight=3.0, codebook_diversity_loss_weight=4.0)
    *_, loss, terms = quantizer(vectors(), return_loss_breakdown=True)
    total = 2 * terms.commitment + 3 * terms.orthogonal_reg + 4 * terms.codebook_diversity
    torch.testing.assert_close(loss, total)
    assert terms.inplace_optimize == 0
    *_, terms = quantizer.eval()(vectors(), return_loss_breakdown=True)
    assert all(term == 0 for term in terms)


def test_single_tokens_and_what_is_refused():
    quantized, indices, _ = made()(vectors(6, 8))
    assert (quantized.shape, indices.shape) == ((6, 8), (6,))
    with pytest.raises(ValueError, match="batch dim"):
        made()(vectors(8))
    with pytest.raises(ValueError, match="2-dim map"):
        made(accept_image_fmap=True)(vectors(2, 8, 3))
