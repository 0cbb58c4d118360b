"""vqtorch's layers: the examples of its README, the closed forms of its loss and gradients, every option."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rqstack.quantizers.compat import vqtorch
from rqstack.quantizers.compat.vqtorch import (
    GroupVectorQuant,
    MaxVecPool2d,
    ResidualVectorQuant,
    SoftMaxPool2d,
    VectorQuant,
    VectorQuantize,
)
from rqstack.quantizers.compat.vqtorch.dists import cosine_cdist_topk, euclidean_cdist_topk, get_dist_fns
from rqstack.quantizers.wrappers.vector_pooling import max_vector_pool, softmax_vector_pool

README = [
    {},
    {"dist": "cosine"},
    {"dist": "cosine", "vector_normalize": True},
    {"dist": "cosine", "groups": 4},
]
LAYERS = [VectorQuant, GroupVectorQuant, ResidualVectorQuant]


@pytest.mark.parametrize("options", README)
def test_readme_layers(options):
    quantizer = VectorQuantize(feature_size=256, num_codes=512, **options)
    z_e = torch.randn(1, 256, 6, 7)
    z_q, results = quantizer(z_e)
    groups = options.get("groups", 1)
    assert z_q.shape == z_e.shape
    assert list(results) == ["z", "z_q", "d", "q", "loss", "perplexity"]
    assert results["z"].shape == results["z_q"].shape == (1, 6, 7, groups, 256 // groups)
    assert results["q"].shape == results["d"].shape == (1, 6, 7, groups)
    assert results["q"].dtype == torch.int64 and results["loss"].shape == ()
    lengths = z_q.movedim(1, -1).unflatten(-1, (groups, -1)).norm(dim=-1)
    if options.get("vector_normalize"):
        torch.testing.assert_close(lengths.squeeze(-1), z_e.norm(dim=1))
    elif "dist" in options:
        torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_readme_image_and_transformer():
    z_e = torch.randn(1, 32, 64, 64)
    z_q, misc = VectorQuantize(feature_size=32, num_codes=256)(z_e)
    assert z_q.shape == (1, 32, 64, 64) and misc["loss"].ndim == 0
    z_q, misc = VectorQuantize(feature_size=256, num_codes=512, dim=2)(torch.randn(2, 10, 256))
    assert z_q.shape == (2, 10, 256) and misc["q"].shape == (2, 10, 1)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("shape", "dim"), [((5, 8), 1), ((5, 8), -1), ((2, 8, 5), 1), ((2, 3, 8), -1), ((8, 3, 4), 0), ((2, 3, 8, 4, 5), 2)]
)
@pytest.mark.parametrize("share", [True, False])
def test_any_dim(layer, shape, dim, share):
    quantizer = layer(8, 16, groups=2, share=share, dim=dim)
    z = torch.randn(shape)
    z_q, results = quantizer(z)
    assert z_q.shape == shape
    codes = quantizer.get_codebook()[results["q"]]
    rest = torch.empty(shape).movedim(dim, -1).shape[:-1]
    expected = codes.sum(-2) if layer is ResidualVectorQuant else codes.reshape(*rest, 8)
    torch.testing.assert_close(z_q.movedim(dim, -1), expected)
    distance = (results["z"] - results["z_q"]).norm(dim=-1)
    assert torch.allclose(distance[..., -1], results["d"][..., -1], atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_loss_and_its_gradients(beta):
    quantizer = VectorQuant(6, 16, beta=beta, dim=-1)
    z = torch.randn(4, 5, 6, requires_grad=True)
    _, results = quantizer(z)
    book = quantizer.codebook.weight
    codes = torch.cdist(z.detach().view(-1, 6), book.detach()).argmin(1)
    assert torch.equal(results["q"].flatten(), codes)
    error = z.detach().view(-1, 6) - book.detach()[codes]
    torch.testing.assert_close(results["loss"], error.square().mean())
    to_z, to_book = torch.autograd.grad(results["loss"], [z, book])
    torch.testing.assert_close(to_z.view(-1, 6), (1 - beta) * 2 * error / error.numel())
    expected = torch.zeros_like(book).index_add(0, codes, -beta * 2 * error / error.numel())
    torch.testing.assert_close(to_book, expected)


def test_cosine_loss_is_between_unit_vectors():
    quantizer = VectorQuant(6, 16, beta=0.5, dist="cosine", dim=-1)
    z = torch.randn(4, 5, 6) * 7
    _, results = quantizer(z)
    cosine = F.normalize(z, dim=-1) @ F.normalize(quantizer.codebook.weight, dim=-1).T
    assert torch.equal(results["q"].squeeze(-1), cosine.argmax(-1))
    torch.testing.assert_close(results["d"].squeeze(-1), 1 - cosine.amax(-1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results["loss"], 2 * (1 - cosine.amax(-1)).mean() / 6)


def test_straight_through_and_synchronised_gradients():
    upstream = torch.randn(4, 5, 6)
    for nu in (0.0, 0.5):
        quantizer = VectorQuant(6, 16, sync_nu=nu, dim=-1)
        z = torch.randn(4, 5, 6, requires_grad=True)
        z_q, results = quantizer(z)
        torch.testing.assert_close(z_q, quantizer.codebook.weight[results["q"].squeeze(-1)])
        to_z, to_book = torch.autograd.grad(z_q, [z, quantizer.codebook.weight], upstream, allow_unused=True)
        assert torch.equal(to_z, upstream)
        if nu == 0:
            assert to_book is None
        else:
            expected = torch.zeros(16, 6).index_add(0, results["q"].flatten(), nu * upstream.view(-1, 6))
            torch.testing.assert_close(to_book, expected)


@pytest.mark.parametrize("groups", [1, 4])
def test_affine_codebook(groups):
    quantizer = VectorQuant(6, 16, affine_lr=10.0, affine_groups=groups, dim=-1)
    torch.testing.assert_close(quantizer.get_codebook(), quantizer.codebook.weight.detach())
    affine = quantizer.affine_transform
    with torch.no_grad():
        affine.scale.normal_(std=0.1)
        affine.bias.normal_(std=0.1)
    scale, bias = quantizer.get_codebook_affine_params()
    assert scale.shape == bias.shape == (groups, 1, 6)
    torch.testing.assert_close(scale, (1 + 10 * affine.scale)[:, None])
    expected = (quantizer.codebook.weight.view(groups, -1, 6) * scale + bias).view(16, 6)
    torch.testing.assert_close(quantizer.get_codebook(), expected)
    z_q, results = quantizer(torch.randn(3, 9, 6))
    torch.testing.assert_close(z_q, expected[results["q"].squeeze(-1)])
    results["loss"].backward()
    assert affine.scale.grad.abs().sum() > 0 and affine.bias.grad.abs().sum() > 0
    assert VectorQuant(6, 16).get_codebook_affine_params() is None


def test_alternating_optimizer():
    quantizer = VectorQuant(6, 4, beta=1.0, dim=-1, inplace_optimizer=lambda *args: torch.optim.SGD(*args, lr=3.0))
    z, before = torch.randn(3, 9, 6, requires_grad=True), quantizer.codebook.weight.detach().clone()
    z_q, results = quantizer(z)
    codes, flat = results["q"].flatten(), z.detach().view(-1, 6)
    step = torch.zeros(4, 6).index_add(0, codes, 2 * (before[codes] - flat) / flat.numel())
    torch.testing.assert_close(quantizer.codebook.weight.detach(), before - 3 * step)
    torch.testing.assert_close(z_q.view(-1, 6), quantizer.codebook.weight.detach()[codes])
    assert quantizer.codebook.weight.grad is None
    (z_q.sum() + results["loss"]).backward()
    assert torch.equal(z.grad, torch.ones_like(z))
    frozen = quantizer.codebook.weight.detach().clone()
    quantizer.eval()(z)
    assert torch.equal(quantizer.codebook.weight, frozen)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("affine_lr", [0.0, 2.0])
def test_alternating_optimizer_in_every_layer(layer, share, affine_lr):
    """The codebook that is searched is the one that moves, and the backward pass still works."""
    options = {"beta": 1.0, "affine_lr": affine_lr, "inplace_optimizer": lambda p: torch.optim.SGD(p, lr=5.0)}
    quantizer = layer(8, 16, groups=2, share=share, dim=-1, **options)
    z = torch.randn(64, 8, requires_grad=True)
    losses = []
    for _ in range(6):
        z_q, results = quantizer(z)
        losses.append(results["loss"].item())
        (z_q.sum() + results["loss"]).backward()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("share", [True, False])
def test_residual_levels(share):
    quantizer = ResidualVectorQuant(6, 32, groups=4, share=share, dim=1)
    z = torch.randn(2, 6, 3, 4)
    z_q, results = quantizer(z)
    seen, size = results["z_res"], 32 if share else 8
    assert seen.shape == (2, 3, 4, 5, 6) and list(results)[4] == "z_res"
    assert torch.equal(seen[..., 0, :], z.movedim(1, -1))
    book = quantizer.codebook.weight.detach()
    for level in range(4):
        weight, offset = quantizer.get_codebook_by_group(level)
        assert offset == (0 if share else level * 8) and weight.shape == (size, 6)
        codes = torch.cdist(seen[..., level, :].reshape(-1, 6), weight.detach()).argmin(1) + offset
        assert torch.equal(codes, results["q"][..., level].flatten())
        expected = seen[..., level, :] - book[results["q"][..., level]]
        torch.testing.assert_close(seen[..., level + 1, :], expected)
    torch.testing.assert_close(z_q, (z.movedim(1, -1) - seen[..., -1, :]).movedim(-1, 1))
    torch.testing.assert_close(results["loss"], seen[..., -1, :].square().mean())


def test_perplexity():
    quantizer = VectorQuant(2, 4, dim=-1)
    quantizer.codebook.weight.data = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    _, results = quantizer(torch.tensor([[2.0, 0], [0, 2], [-2, 0], [-3, 0]]))
    counts = torch.tensor([1, 1, 2]) / 4
    torch.testing.assert_close(results["perplexity"], (-(counts * counts.log()).sum()).exp())


@pytest.mark.parametrize("norm", ["l2", "l2c", "bn", "gn", "in", None])
def test_input_norms(norm):
    quantizer = GroupVectorQuant(64, 16, groups=2, norm=norm, dim=-1)
    z = torch.randn(4, 5, 64) * 9
    _, results = quantizer(z)
    groups = z.view(4, 5, 2, 32)
    lengths = groups.norm(dim=-1, keepdim=True)
    first = z.movedim(-1, 1)
    expected = {
        "l2": lambda: groups / lengths,
        "l2c": lambda: groups / lengths * lengths.clamp(max=10),
        "bn": lambda: F.batch_norm(first, None, None, training=True).movedim(1, -1).view(4, 5, 2, 32),
        "gn": lambda: F.group_norm(first, 32, eps=1e-6).movedim(1, -1).view(4, 5, 2, 32),
        "in": lambda: F.instance_norm(first).movedim(1, -1).view(4, 5, 2, 32),
        None: lambda: groups,
    }[norm]()
    torch.testing.assert_close(results["z"], expected, atol=1e-5, rtol=1e-4)
    if norm != "in":  # one position has no statistics
        assert quantizer(z[:, 0])[0].shape == (4, 64)


@pytest.mark.parametrize("keyword", ["cb_norm", "codebook_norm"])
def test_codebook_norms(keyword):
    z = torch.randn(4, 5, 8)
    for norm, check in (("l2", lambda length: length <= 10 + 1e-4), ("l2c", lambda length: (length - 1).abs() < 1e-5)):
        quantizer = VectorQuant(8, 16, dim=-1, **{keyword: norm})
        quantizer.codebook.weight.data *= 30
        quantizer(z)
        assert check(quantizer.codebook.weight.norm(dim=1)).all()


def test_turned_off():
    model = nn.Sequential(nn.Linear(8, 8), VectorQuant(8, 16, dim=-1))
    x = torch.randn(3, 8)
    assert vqtorch.is_vqn(model) and vqtorch.get_vq_layers(model) == [model[1]]
    with vqtorch.no_vq(model):
        out, results = model(x)
        assert torch.equal(out, model[0](x)) and results == {}
    assert not torch.equal(model(x)[0], out)
    assert not vqtorch.is_vqn(model[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs(dtype):
    quantizer = VectorQuant(16, 64, dim=-1)
    z = torch.randn(3, 50, 16).to(dtype)
    z_q, results = quantizer(z)
    assert z_q.dtype == dtype and results["loss"].dtype == torch.float32
    assert torch.equal(results["q"], quantizer(z.float())[1]["q"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(results["q"], quantizer(z)[1]["q"])


def test_one_nan_vector_hurts_only_itself():
    quantizer = VectorQuant(6, 16, dim=-1, replace_freq=2, sync_nu=0.5)
    z = torch.randn(9, 6)
    z[4] = torch.nan
    z_q, results = quantizer(z)
    results["loss"].backward()
    assert results["loss"].isfinite() and quantizer.codebook.weight.grad.isfinite().all()
    quantizer(z)
    assert quantizer.codebook.weight.isfinite().all()


def test_distances_keep_the_nearest():
    tensor, book = torch.randn(2, 7, 5), torch.randn(11, 5)
    for search, matrix in (
        (euclidean_cdist_topk, torch.cdist(tensor, book[None])),
        (cosine_cdist_topk, 1 - F.normalize(tensor, dim=-1) @ F.normalize(book, dim=-1).T),
    ):
        for topk in (1, 3, -1):
            found = search(tensor, book, topk=topk)
            values, codes = matrix.topk(11 if topk == -1 else topk, largest=False)
            assert torch.equal(found["q"], codes)
            torch.testing.assert_close(found["d"], values, atol=1e-5, rtol=1e-4)
    assert get_dist_fns("cos")[1] is cosine_cdist_topk
    with pytest.raises(ValueError, match="dist 'l1' is not one of euc, euclidean, cos, cosine"):
        get_dist_fns("l1")


def test_pooling_layers():
    x = torch.randn(2, 5, 9, 8)
    assert torch.equal(MaxVecPool2d()(x), max_vector_pool(x, 3, 2, 2, 1))
    assert torch.equal(SoftMaxPool2d(2, 2, 0)(x), softmax_vector_pool(x, 2, 2, 0, 1))
    assert vqtorch.nn.SoftMaxVecPool2d is SoftMaxPool2d


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 1.5}, r"beta must be in \[0, 1\], got 1.5"),
        ({"dist": "l1"}, "dist 'l1' is not one of euc"),
        ({"inplace_optimizer": torch.optim.SGD}, "inplace_optimizer needs beta 1, got 0.95"),
        ({"groups": 3}, "feature_size 8 must be divisible by groups 3"),
        ({"norm": "layer"}, "norm 'layer' is not one of none"),
        ({"cb_norm": "bn"}, "codebook_norm 'bn' is not one of none"),
        ({"affine_lr": 1.0, "affine_groups": 3}, "16 codes do not split into 3 affine groups"),
        ({"groups": 8, "share": False, "num_codes": 4}, "num_codes 4 does not give 8 groups a code each"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        VectorQuant(**{"feature_size": 8, "num_codes": 16, **options})


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"expected 8 features in dim 1, got shape \(2, 5, 8\)"):
        VectorQuant(8, 16)(torch.randn(2, 5, 8))
    with pytest.raises(ValueError, match=r"expected 8 features in dim 1, got shape \(8,\)"):
        VectorQuant(8, 16)(torch.randn(8))
