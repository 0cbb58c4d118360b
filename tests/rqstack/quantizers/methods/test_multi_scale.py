"""Multi-scale quantization: the residual loop written out, laws of all quantizers, scales, masks, dropout, start."""

import pytest
import torch
from torch.nn import functional as F

from rqstack.quantizers import MultiScaleOptions, RestartRule
from rqstack.quantizers.arithmetic.map_scales import BlendedConv, conv_of_scale, pool_to, resize_to, scale_shapes
from rqstack.quantizers.methods.multi_scale import MultiScaleQuantizer
from rqstack.quantizers.warmup import codebook_warmup
from tests.rqstack.quantizers.quantizer_methods import made

KINDS = {
    "shared": {},
    "separate": {"shared": False, "codebook_size": (16, 24, 32)},
    "learned": {"codebook": "learned"},
    "cosine": {"distance": "cosine"},
    "convolutions": {"num_convs": 3, "blend": 0.8},
    "no convolution": {"blend": 0.0},
}
GRIDS = {1: (9,), 2: (4, 5), 3: (2, 4, 3)}


def _make(grid_dims=2, **options):
    options = {"codebook_size": 32, "scales": [1, 2, 4], "grid_dims": grid_dims, **options}
    return made(MultiScaleQuantizer, MultiScaleOptions, 6, **options)


@pytest.mark.parametrize("grid_dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_loop(kind, grid_dims):
    quantizer = _make(grid_dims, **KINDS[kind]).eval()
    z = torch.randn(2, *GRIDS[grid_dims], 6)
    out = quantizer(z)
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[grid_dims - 1]
    mode = ("linear", "bilinear", "trilinear")[grid_dims - 1]
    left, codes, losses = z.movedim(-1, 1), [], []
    for scale, side in enumerate((1, 2, 4)):
        rows = pool(left, (side,) * grid_dims).movedim(1, -1).reshape(-1, 6)
        weight = quantizer.books[0 if quantizer.shared else scale].codebook(0)
        rows = F.normalize(rows, dim=1) if kind == "cosine" else rows
        codes.append(torch.cdist(rows, weight).argmin(1).view(2, -1))
        vectors = weight[codes[-1]].movedim(-1, 1).unflatten(2, (side,) * grid_dims)
        full = F.interpolate(vectors, size=GRIDS[grid_dims], mode=mode)
        conv = quantizer.convs[scale if kind == "convolutions" else 0]
        ratio = {"no convolution": 0.0, "convolutions": 0.8}.get(kind, 0.5)
        left = left - ((1 - ratio) * full + ratio * conv.conv(full))
        losses.append(left.square().mean())
    assert torch.equal(out.codes.flatten(1), torch.cat(codes, 1))
    torch.testing.assert_close(out.quantized, z - left.movedim(1, -1))
    torch.testing.assert_close(out.terms["commitment"], 0.25 * torch.stack(losses).mean())
    torch.testing.assert_close(sum(out.terms.values()), out.loss)


@pytest.mark.parametrize("grid_dims", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_laws(kind, grid_dims, training):
    quantizer = _make(grid_dims, **KINDS[kind]).train(training)
    z = torch.randn(3, *(4,) * grid_dims, 6)
    out = quantizer(z)
    positions = 1 + 2**grid_dims + 4**grid_dims
    assert out.codes.shape == (3, *(1,) * grid_dims, positions) and out.codes.dtype == torch.int64
    assert len(quantizer.num_codes) == positions
    assert ((out.codes >= 0) & (out.codes < torch.tensor(quantizer.num_codes))).all()
    assert torch.equal(quantizer.decode(out.codes), out.quantized)
    grids = quantizer.split(out.codes)
    assert [grid.shape[1:] for grid in grids] == list(quantizer.shapes)
    assert torch.equal(quantizer.join(grids), out.codes)
    embedded = quantizer.embed_with_depth(out.codes)
    assert embedded.shape == (*out.codes.shape, 6)
    for depth in (0, 1, positions - 1):
        assert torch.equal(embedded[..., depth, :], quantizer.codebook(depth)[out.codes[..., depth]])
        torch.testing.assert_close(quantizer.code_vectors(depth), quantizer.codebook(depth))
    low = quantizer.eval()(z.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = quantizer(z.bfloat16())
    full = quantizer(z.bfloat16().float())
    assert low.quantized.dtype == torch.bfloat16
    assert torch.equal(low.codes, full.codes) and torch.equal(again.codes, full.codes)
    assert torch.equal(low.loss, full.loss) and torch.equal(low.quantized, full.quantized.bfloat16())


def test_gradients():
    quantizer = _make(codebook="learned")
    z, upstream = torch.randn(2, 4, 4, 6, requires_grad=True), torch.randn(2, 4, 4, 6)
    out = quantizer(z)
    assert torch.equal(torch.autograd.grad(out.quantized, z, upstream, retain_graph=True)[0], upstream)
    parameters = [quantizer.convs[0].conv.weight, quantizer.books[0].codebook_at(0).rows]
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(out.terms["codebook"], parameters))
    (to_z,) = torch.autograd.grad(out.terms["commitment"], z)
    sums = [quantizer.decode(out.codes[..., :number]) for number in (1, 5, 21)]
    expected = torch.stack([0.25 * 2 * (z - total) / z.numel() for total in sums]).mean(0)
    torch.testing.assert_close(to_z, expected)
    assert "codebook" not in _make(blend=0.0)(z).terms


def test_first_scales_and_dropped_scales_decode():
    quantizer = _make(num_convs=3).eval()
    codes = quantizer(torch.randn(2, 4, 4, 6)).codes
    coarse = quantizer.decode(codes[..., :5])
    assert coarse.shape == (2, 4, 4, 6)
    dropped = codes.clone()
    dropped[..., 5:] = -1
    assert torch.equal(quantizer.decode(dropped), coarse)
    assert quantizer.decode(codes, grid=(8, 6)).shape == (2, 8, 6, 6)
    dropped[..., 4:] = -1
    assert torch.equal(quantizer.decode(codes[..., :4]), quantizer.decode(dropped))
    for conv in quantizer.convs:
        conv.conv.bias.data.zero_()
    parts = [quantizer.decode_depth(codes, depth) for depth in range(21)]
    torch.testing.assert_close(sum(parts), quantizer.decode(codes))
    with pytest.raises(ValueError, match="codes have 22 depths in their last dim; the quantizer has 21"):
        quantizer.decode(torch.cat([codes, codes[..., :1]], -1))


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_what_the_scales_search_with(kind):
    quantizer = _make(**KINDS[kind]).eval()
    z = torch.randn(2, 4, 4, 6)
    out = quantizer(z)
    searched, codes = quantizer.targets(z)
    assert torch.equal(codes, out.codes) and searched.shape == (2, 1, 1, 21, 6)
    for depth in (0, 3, 20):
        distance = torch.cdist(searched[..., depth, :].flatten(0, 2), quantizer.codebook(depth))
        assert torch.equal(distance.argmin(1), codes[..., depth].flatten())
    probs, again = quantizer.soft_codes(z, temp=0.5)
    assert torch.equal(again, codes) and probs.shape == (2, 1, 1, 21, max(quantizer.num_codes))
    _, drawn = quantizer.targets(z, 5.0, stochastic=True, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, codes)
    _, cold = quantizer.targets(z, 1e-6, stochastic=True)
    assert torch.equal(cold, codes)


def test_scale_dropout():
    quantizer = _make(scale_dropout=0.5, kept_scales=1)
    z, kept = torch.randn(2, 4, 4, 6), set()
    for _ in range(30):
        out = quantizer(z)
        kept.add(int((out.codes[0] >= 0).sum()))
        assert torch.equal(quantizer.decode(out.codes), out.quantized)
        quantizer.discard_codebook_update()
    assert kept == {1, 5, 21} and not quantizer.uses_all_parameters and _make().uses_all_parameters
    assert (quantizer.eval()(z).codes >= 0).all()


@pytest.mark.parametrize("shared", [True, False])
def test_masked_positions_change_nothing(shared):
    """What a masked position holds, numbers or not, reaches neither codes nor loss nor codebook."""
    mask = torch.rand(3, 4, 5) < 0.6
    mask[0] = False
    z = torch.randn(3, 4, 5, 6)
    results = []
    for filler in (0.0, 1e6, torch.nan):
        torch.manual_seed(1)
        quantizer = _make(shared=shared, restart=RestartRule(below=1.0))
        out = quantizer(torch.where(mask[..., None], z, filler), mask)
        quantizer.update_codebook()
        state = {name: value for name, value in quantizer.state_dict().items()}
        results.append((out.codes, out.loss, out.quantized, state))
    for other in results[1:]:
        torch.testing.assert_close(other[:2], results[0][:2], rtol=0, atol=0)
        torch.testing.assert_close(other[3], results[0][3], rtol=0, atol=0)
    total = (results[0][2] - z)[mask].square().mean()
    assert torch.isfinite(total)


def test_empty_cells_are_not_learned_from():
    quantizer = _make(decay=0.0)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, :2, :2] = True
    quantizer(torch.randn(2, 4, 4, 6), mask)
    quantizer.update_codebook()
    assert quantizer.books[0].codebook_at(0).cluster_size_ema.sum() == 1 + 1 + 4


def test_masked_cells_are_means_of_what_counts():
    x, mask = torch.randn(2, 3, 4, 6), torch.rand(2, 4, 6) < 0.5
    mask[:, :2, :2] = False
    x = torch.where(mask[:, None], x, torch.nan)
    means, counted = pool_to(x, (2, 3), mask)
    for b in range(2):
        for i in range(2):
            for j in range(3):
                cell, kept = (
                    x[b, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2],
                    mask[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2],
                )
                assert counted[b, i, j] == kept.any()
                expected = cell[:, kept].mean(1) if kept.any() else torch.zeros(3)
                torch.testing.assert_close(means[b, :, i, j], expected)
    assert not counted[:, 0, 0].any() and pool_to(x, (2, 3))[1] is None


def test_codebooks_learn_once_per_step():
    quantizer = _make(decay=0.5)
    z = torch.randn(8, 4, 4, 6)
    before, errors = quantizer.codebook(0).clone(), []
    for _ in range(15):
        out = quantizer(z)
        assert torch.equal(quantizer.codebook(0), before) or errors
        errors.append((out.quantized - z).square().mean().item())
        quantizer.update_codebook()
    assert errors[-1] < 0.8 * errors[0]
    frozen = quantizer.codebook(0).clone()
    quantizer(z)
    quantizer.discard_codebook_update()
    quantizer.update_codebook()
    assert torch.equal(quantizer.codebook(0), frozen)
    assert quantizer.restart_counts().shape == (21,)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("how", ["first forward", "kmeans", "data"])
def test_codebooks_start_from_the_residuals_of_their_scales(shared, how):
    quantizer = _make(shared=shared, kmeans_init=how == "first forward", blend=0.0, codebook_size=16)
    z = 5 + torch.randn(64, 4, 4, 6)
    if how == "first forward":
        quantizer(z)
        assert quantizer.initialized
    else:
        assert codebook_warmup(quantizer, [z[:32], z[32:]], how, 2) == [""]
    out = quantizer.eval()(z)
    left = [(z - quantizer.decode(out.codes[..., :number])).square().mean() for number in (1, 5, 21)]
    assert left[0] < 3
    if how != "data":  # vectors drawn at random need not lie closer to noise than zero does
        assert left[2] < left[1] < left[0]


def test_state_is_loaded_whole():
    quantizer, other = _make(kmeans_init=True), _make(kmeans_init=True)
    z = torch.randn(4, 4, 4, 6)
    quantizer(z)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).codes, quantizer(z).codes)


def test_parts():
    assert scale_shapes((1, (2, 3)), 2) == ((1, 1), (2, 3))
    x = torch.randn(2, 3, 4)
    assert resize_to(x, (4,)) is x
    assert [conv_of_scale(scale, 5, 3) for scale in range(5)] == [0, 0, 1, 2, 2]
    assert conv_of_scale(0, 1, 1) == 0
    conv = BlendedConv(3, 1, -0.25).half()
    torch.testing.assert_close(conv(x), 0.75 * x + 0.25 * conv.float().conv(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must be grids of 2 dims"),
        ({"scales": ((1, 2, 3),)}, "scales must be grids of 2 dims"),
        ({"scales": (0, 2)}, "sides of at least 1"),
        ({"scales": (4, 2)}, r"scales must not become coarser, got \[4, 2\]"),
        ({"grid_dims": 4}, "grids have 1, 2 or 3 dims, got 4"),
        ({"codebook_size": (16, 32, 32)}, "do not fit 3 scales of one codebook"),
        ({"codebook_size": (16, 32), "shared": False}, "do not fit 3 scales$"),
        ({"scale_dropout": 1.5}, "got 1.5, 1 and 1"),
        ({"kept_scales": 4}, r"in 1 .. 3, got 0.0, 4 and 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        _make(**{"grid_dims": 2, **options})


def test_wrong_input():
    with pytest.raises(ValueError, match=r"maps \(B, ..., 6\) with 2 grid dims, got \(2, 4, 6\)"):
        _make()(torch.randn(2, 4, 6))
