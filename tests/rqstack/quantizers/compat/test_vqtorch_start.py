"""vqtorch's codebooks: warm-up from data, k-means in the first forward, replacement, state."""

import pytest
import torch
from torch import nn

from rqstack.quantizers import codebook_warmup as core_warmup
from rqstack.quantizers.codebooks.restart_draw import CodedVectors
from rqstack.quantizers.compat.vqtorch import GroupVectorQuant, ResidualVectorQuant, VectorQuant
from rqstack.quantizers.compat.vqtorch.inits import codebook_warmup
from rqstack.quantizers.compat.vqtorch.nn.replace import replace_least_recent

EXACT = "donot_use_mm_for_euclid_dist"
LAYERS = [VectorQuant, GroupVectorQuant, ResidualVectorQuant]


class MyVQNetwork(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 1)
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = self.encoder(x)
        for layer in self.layers:
            x, _ = layer(x)
        return self.dropout(x)


@pytest.mark.parametrize("method", ["data", "kmeans"])
def test_readme_warmup(method):
    model = MyVQNetwork(VectorQuant(8, 16), VectorQuant(8, 16, dist="cosine", groups=2))
    loader = [(torch.randn(4, 3, 5, 5), torch.zeros(4)) for _ in range(6)]
    model.layers[0].eval()
    before = torch.random.get_rng_state()
    codebook_warmup(model, loader, warmup_method=method, num_batch=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.training and not model.layers[0].training
    seen = torch.cat([model.encoder(x).movedim(1, -1).reshape(-1, 8) for x, _ in loader[:4]]).detach()
    nearest = torch.cdist(model.layers[0].codebook.weight.detach(), seen, compute_mode=EXACT)
    if method == "data":
        assert nearest.amin(1).max() < 1e-5
        assert len((nearest.argmin(1) // 100).unique()) == 4, "codes come from all batches"
    else:
        means = nearest.T.argmin(1)
        expected = torch.stack([seen[means == code].mean(0) for code in range(16)])
        assert (expected - model.layers[0].codebook.weight).norm() < 0.5
    assert model.layers[1].codebook.weight.norm(dim=1).sub(1).abs().max() < 1e-5
    assert core_warmup(model, loader, method, 4) == ["layers.0", "layers.1"]


def test_data_warmup_reaches_beyond_the_first_rows():
    layer = VectorQuant(1, 8, dim=-1)
    rows = torch.arange(1000.0)[:, None]
    codebook_warmup(layer, [rows], "data", 1)
    assert layer.codebook.weight.max() > 300


def test_warmup_sets_the_codebook_that_is_searched():
    layer = VectorQuant(4, 8, dim=-1, affine_lr=2.0)
    layer.affine_transform.bias.data.fill_(7.0)
    rows = torch.randn(100, 4)
    codebook_warmup(layer, [rows], "data", 1)
    assert torch.cdist(layer.get_codebook(), rows, compute_mode=EXACT).amin(1).max() < 1e-6


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("method", ["data", "kmeans"])
def test_residual_levels_are_warmed_in_order(share, method):
    """Every level starts from what is left over by the warmed levels before it, so that each reduces the error."""
    scale = torch.logspace(1, -2, 16)
    loader = [torch.randn(200, 16) * scale for _ in range(3)]
    layer = ResidualVectorQuant(16, 256, groups=4, share=share, dim=-1)
    codebook_warmup(layer, loader, method, 3)
    left = layer.eval()(loader[0])[1]["z_res"].norm(dim=-1).mean((0,))
    assert (left[1:] < left[:-1]).all()
    if share:
        return
    weight, _ = layer.get_codebook_by_group(1)
    seen = torch.cat([layer(x)[1]["z_res"][:, 1] for x in loader])
    if method == "data":
        assert torch.cdist(weight.detach(), seen, compute_mode=EXACT).amin(1).max() < 1e-4


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("share", [True, False])
def test_kmeans_in_the_first_training_forward(layer, share):
    quantizer = layer(
        feature_size=32,
        num_codes=64,
        beta=0.98,
        kmeans_init=True,
        norm=None,
        cb_norm=None,
        affine_lr=10.0,
        sync_nu=0.2,
        replace_freq=20,
        dim=-1,
        groups=4,
        share=share,
    )
    z_e = torch.randn(16, 4, 4, 32)
    quantizer.eval()(z_e)
    assert quantizer.data_initialized.item() == 0
    with torch.no_grad():
        quantizer.train()(z_e)
    assert quantizer.data_initialized.item() == 1
    started = quantizer.codebook.weight.detach().clone()
    z_q, results = quantizer(z_e)
    assert torch.equal(quantizer.codebook.weight, started)
    assert z_q.shape == z_e.shape and ((z_e - z_q) ** 2).mean() < 0.9
    (z_q.sum() + results["loss"]).backward()


def test_unused_codes_are_replaced_after_their_time():
    quantizer = VectorQuant(2, 4, dim=-1, replace_freq=3)
    near = torch.tensor([[0.0, 0], [50, 50], [60, 60], [70, 70]])
    quantizer.codebook.weight.data = near.clone()
    z = torch.randn(20, 2)
    for _ in range(2):
        quantizer(z)
        assert torch.equal(quantizer.codebook.weight, near)
    quantizer.eval()(z)
    quantizer.train()(z)
    replaced = quantizer.codebook.weight[1:].detach()
    assert torch.equal(quantizer.codebook.weight[0], near[0])
    distance, drawn = torch.cdist(replaced, z).min(1)
    assert len(drawn.unique()) == 3 and (distance <= 0.05 * z[drawn].norm(dim=1)).all() and (distance > 0).all()
    assert torch.equal(quantizer._counts, torch.full((4,), 3.0))


def test_residual_replacements_come_from_the_level():
    quantizer = ResidualVectorQuant(2, 8, groups=2, share=False, dim=-1, replace_freq=1)
    quantizer.codebook.weight.data = torch.cat([torch.full((4, 2), 10.0), torch.full((4, 2), 99.0)])
    quantizer.codebook.weight.data[[0, 4]] = torch.tensor([[10.5, 10.5], [0.0, 0.0]])
    quantizer(10.5 + 0.1 * torch.randn(50, 2))
    assert quantizer.codebook.weight[4:].abs().max() < 1


def test_replacement_ignores_what_is_not_finite_and_waits_for_vectors():
    weight, remaining = torch.zeros(3, 2), torch.ones(3)
    batch = CodedVectors(torch.full((4, 2), torch.nan), torch.zeros(4, dtype=torch.int64), torch.zeros(4).bool())
    assert not replace_least_recent(weight, remaining, [batch], 5).any()
    assert torch.equal(weight, torch.zeros(3, 2))
    good = CodedVectors(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), torch.ones(4).bool())
    assert torch.equal(replace_least_recent(weight, remaining, [good], 5, rho=0.0), torch.tensor([False, True, True]))
    assert torch.equal(weight, torch.tensor([[0.0, 0], [1, 1], [1, 1]]))
    assert torch.equal(remaining, torch.full((3,), 5.0))


@pytest.mark.parametrize("layer", LAYERS)
def test_state_has_the_names_of_the_original(layer):
    options = {"affine_lr": 1.0, "affine_groups": 2, "kmeans_init": True, "replace_freq": 5, "norm": "bn"}
    quantizer, other = (layer(8, 16, **options) for _ in range(2))
    assert set(quantizer.state_dict()) == {
        "codebook.weight",
        "affine_transform.scale",
        "affine_transform.bias",
        "data_initialized",
        "_counts",
        "norm_layer.weight",
        "norm_layer.bias",
        "norm_layer.running_mean",
        "norm_layer.running_var",
        "norm_layer.num_batches_tracked",
    }
    assert quantizer.state_dict()["affine_transform.scale"].shape == (2, 8)
    z = torch.randn(4, 8, 6)
    quantizer(z)
    other.load_state_dict(quantizer.state_dict(), strict=True)
    assert torch.equal(quantizer.eval()(z)[0], other.eval()(z)[0])


def test_freezing():
    quantizer = VectorQuant(8, 16)
    quantizer.set_requires_grad(False)
    assert not quantizer.requires_grad
    _, results = quantizer(torch.randn(2, 8, 3, requires_grad=True))
    results["loss"].backward()
    assert quantizer.codebook.weight.grad is None
