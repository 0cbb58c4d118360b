"""HierarchicalVQ as vector-quantize-pytorch offers it."""

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch.hierarchical_vq import HierarchicalVQ

SHAPES = {
    (): (2, 8, 6),
    ("accept_image_fmap",): (2, 8, 4, 6),
    ("accept_3d_fmap",): (2, 8, 2, 4, 4),
}


@pytest.mark.parametrize("maps", SHAPES)
@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_shapes_and_decoding(maps, channel_first, shared):
    options = {"channel_first": channel_first, "shared_codebook": shared, **dict.fromkeys(maps, True)}
    quantizer = HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 2, 4), **options)
    shape = SHAPES[maps]
    dims = len(shape) - 2
    x = torch.randn(shape) if channel_first else torch.randn(shape).movedim(1, -1)
    for training in (True, False):
        output, indices, loss = quantizer.train(training)(x)
        assert output.shape == x.shape and loss.shape == ()
        assert [level.shape for level in indices] == [(2, *(side,) * dims) for side in (1, 2, 4)]
        assert all(level.dtype == torch.int64 for level in indices)
    assert loss == 0
    decoded = quantizer.get_output_from_indices(indices, full_shape=shape[2:])
    torch.testing.assert_close(decoded, output)
    coarse = quantizer.get_output_from_indices(indices)
    assert (coarse if channel_first else coarse.movedim(-1, 1)).shape[2:] == (4,) * dims


def test_first_forward_starts_the_codebook_and_training_learns():
    quantizer = HierarchicalVQ(dim=8, codebook_size=32, scales=(1, 4, 16), threshold_ema_dead_code=0, decay=0.5)
    x = torch.randn(16, 8, 16)
    errors = []
    for _ in range(10):
        output, _, loss = quantizer(x)
        errors.append((output - x).square().mean().item())
    assert quantizer.vq._codebook.initted and loss.requires_grad
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_convolutions(number):
    quantizer = HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 2, 4), share_quant_resi=number)
    names = {name for name, _ in quantizer.named_parameters()}
    assert len(names) == 2 * {0: 3, 1: 1, 2: 2}[number]
    assert ("phi_shared.conv.weight" in names) == (number == 1)
    chosen = [quantizer.choose_phi(level) for level in range(3)]
    assert len(set(chosen)) == {0: 3, 1: 1, 2: 2}[number]


def test_lengths_and_empty_cells():
    quantizer = HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 4), kmeans_init=False).eval()
    x, lens = torch.randn(2, 8, 8), torch.tensor([8, 2])
    output, indices, _ = quantizer(x, lens=lens)
    assert torch.equal(output[1, :, 2:], torch.zeros(8, 6))
    assert (indices[1][0] >= 0).all() and indices[1][1].tolist()[1:] == [-1, -1, -1]
    mask = torch.arange(8) < lens[:, None]
    spoiled = torch.where(mask[:, None], x, torch.nan)
    again, same, _ = quantizer(spoiled, mask=mask)
    assert torch.equal(again, output) and all(torch.equal(a, b) for a, b in zip(same, indices))
    nothing = [torch.full_like(level, -1) for level in indices]
    expected = 2 * quantizer.phi_shared(torch.zeros(2, 8, 4))
    torch.testing.assert_close(quantizer.get_output_from_indices(nothing), expected)


def test_nested_dropout_returns_the_first_levels():
    quantizer = HierarchicalVQ(
        dim=8, codebook_size=16, scales=(1, 2, 4), nested_dropout=0.8, kmeans_init=False, threshold_ema_dead_code=0
    )
    x, cutoffs, losses = torch.randn(2, 8, 4), set(), []
    quantizer.vq.register_forward_hook(lambda module, args, out: losses.append(out[2]))
    for _ in range(30):
        losses.clear()
        _, indices, loss, cutoff = quantizer(x, return_cutoff=True)
        cutoffs.add(cutoff)
        assert torch.equal(loss, torch.stack(losses[: 3 if cutoff is None else cutoff + 1]).mean())
        assert len(indices) == 3
    assert cutoffs == {None, 0, 1}
    assert quantizer.eval()(x, return_cutoff=True)[3] is None


def test_low_precision_and_sampling():
    quantizer = HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 4), stochastic_sample_codes=True, kmeans_init=False)
    x = torch.randn(2, 8, 4).bfloat16()
    output, indices, loss = quantizer(x, sample_codebook_temp=1.0)
    assert output.dtype == torch.bfloat16 and loss.dtype == torch.float32
    quantizer.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = quantizer(x, sample_codebook_temp=0.0)[1]
    assert all(torch.equal(a, b) for a, b in zip(low, quantizer(x.float(), sample_codebook_temp=0.0)[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept_image_fmap": True, "accept_3d_fmap": True}, "choose one of accept_image_fmap"),
        ({"nested_dropout": 2.0}, r"nested_dropout must be in \[0, 1\], got 2.0"),
        ({"nested_dropout_min_levels": 0}, "nested_dropout_min_levels must be at least 1, got 0"),
        ({"scales": (4, 2)}, "scales must not become coarser"),
        ({"codebook_size": (16, 32)}, r"a shared codebook has one size, got \(16, 32\)"),
        ({"codebook_size": (16,)}, "1 codebook sizes for 2 scales"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalVQ(**{"dim": 8, "codebook_size": 16, "scales": (1, 2), **options})


def test_wrong_calls():
    quantizer = HierarchicalVQ(dim=8, codebook_size=16, scales=(1, 2), accept_image_fmap=True)
    x = torch.randn(1, 8, 4, 4)
    for call, message in (
        (lambda: quantizer(x, indices=x), "decoded by get_output_from_indices"),
        (lambda: quantizer(x[..., 0]), "input must have 8 channels and 2 grid dims"),
        (lambda: quantizer(x, lens=torch.tensor([1])), "lens is for sequences"),
        (lambda: quantizer(x, mask=torch.ones(1, 3, 4).bool()), r"mask must have the grid \(4, 4\)"),
        (lambda: quantizer.get_output_from_indices([x]), "indices of 1 levels; there are 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
