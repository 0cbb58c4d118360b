"""Data warm-up of codebooks: order, what is left unchanged, and that it helps."""

import pytest
import torch
from torch import nn

from rqstack.quantizers import ResidualQuantizer, VectorQuantizer, codebook_warmup


class TwoStages(nn.Module):
    """The second quantizer sees what the first left over; registered in the other order."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.second = VectorQuantizer(4, 16)
        self.first = VectorQuantizer(4, 16)

    def forward(self, x):
        z = self.encoder(x)
        left = z - self.first(z).quantized
        return left - self.second(left).quantized


def loader(batches=4):
    return [(3 * torch.randn(32, 4, generator=torch.Generator().manual_seed(i)), i) for i in range(batches)]


def error(quantizer, z):
    return (quantizer.eval()(z).quantized - z).square().mean().item()


def distances(codebook, vectors):
    """From every code vector to the nearest vector, without the cancellation of the fast way."""
    return torch.cdist(codebook, vectors, compute_mode="donot_use_mm_for_euclid_dist").min(1).values


@pytest.mark.parametrize("method", ["data", "kmeans"])
def test_quantizers_are_warmed_in_the_order_of_their_calls(method):
    model = TwoStages()
    assert codebook_warmup(model, loader(), method, num_batches=4) == ["first", "second"]
    x = torch.cat([batch for batch, _ in loader()])
    model.eval()
    z = model.encoder(x)
    left = z - model.first(z).quantized
    if method == "data":
        assert (distances(model.first.codebook(0), z) < 1e-5).all()
        assert (distances(model.second.codebook(0), left) < 1e-5).all()
    assert model(x).square().mean() < left.square().mean() < z.square().mean()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("method", ["data", "kmeans"])
@pytest.mark.parametrize("patch", [(1, 1), (2, 2)])
def test_residual_levels_are_warmed_on_the_residuals_they_will_see(shared, method, patch):
    quantizer = ResidualQuantizer(4, (16, 16, 16), shared=shared, patch=patch)
    z = 3 * torch.randn(40, 1, 1, 4) + 0.5 * torch.randn(40, 6, 6, 4)
    before = error(quantizer, z)
    codebook_warmup(quantizer, [z], method, num_batches=1)
    residuals = quantizer.targets(z)[0].flatten(0, -3)
    assert error(quantizer, z) < 0.8 * before
    if shared:
        first_only = ResidualQuantizer(4, (16,), patch=patch)
        codebook_warmup(first_only, [z], method, num_batches=1)
        first_only.num_codes = (16, 16, 16)
        first_only.shared = True
        assert error(quantizer, z) < error(first_only, z), "later depths use the shared codebook, too"
        return
    for depth in range(3):
        if method == "data":
            assert (distances(quantizer.codebook(depth), residuals[:, depth]) < 1e-4).all()
    sizes = [residuals[:, depth].square().mean().item() for depth in range(3)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_nothing_else_changes():
    model = TwoStages()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    parameters = [parameter.clone() for parameter in model.parameters()]
    random_state = torch.get_rng_state()
    codebook_warmup(model, loader(), "kmeans", num_batches=2)
    assert [module.training for module in model.modules()] == modes
    assert all(map(torch.equal, parameters, model.parameters()))
    assert torch.equal(torch.get_rng_state(), random_state)
    for quantizer in (model.first, model.second):
        book = quantizer.codebooks[0]
        torch.testing.assert_close(book.embed_ema, book.weight * book.cluster_size_ema[:, None])
        before = book.weight.clone()
        quantizer.update_codebook()
        assert torch.equal(book.weight, before), "no gathered vectors are left"
        assert not quantizer._forward_pre_hooks


def test_the_mask_and_bad_vectors_are_left_out():
    quantizer = VectorQuantizer(2, 8)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer

        def forward(self, z):
            return self.quantizer(z, mask=z[..., 0] < 100)

    z = torch.randn(40, 2)
    z[::4] = 1000.0
    z[1] = float("nan")
    codebook_warmup(Masked(), [z], "kmeans")
    assert quantizer.codebook(0).isfinite().all()
    assert quantizer.codebook(0).max() < 10


def test_all_batches_have_a_share():
    quantizer = VectorQuantizer(1, 8)
    batches = [torch.full((50, 1), float(i)) + 0.01 * torch.rand(50, 1) for i in range(4)]
    codebook_warmup(quantizer, batches, "kmeans", num_batches=4, max_vectors=40)
    assert set(quantizer.codebook(0).round().flatten().tolist()) == {0, 1, 2, 3}


def test_misuse_is_refused():
    with pytest.raises(ValueError, match="not one of kmeans, data"):
        codebook_warmup(TwoStages(), loader(), "random")
    with pytest.raises(ValueError, match="no quantizer with a codebook"):
        codebook_warmup(nn.Linear(2, 2), loader())
    with pytest.raises(ValueError, match="loader is empty"):
        codebook_warmup(TwoStages(), [])
    model = TwoStages()
    with pytest.raises(ValueError, match="iterated once per quantizer"):
        codebook_warmup(model, iter(loader(1)))
    assert model.training
