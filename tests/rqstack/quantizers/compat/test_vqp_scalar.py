"""The scalar quantizers of the drop-in: the examples of the README, quirks, and what did not work in the original."""

import pytest
import torch

from rqstack.quantizers.compat.vector_quantize_pytorch import (
    FSP,
    FSQ,
    LFQ,
    BinaryMapper,
    GroupedResidualFSQ,
    GroupedResidualLFQ,
    LatentQuantize,
    ResidualFSQ,
    ResidualLFQ,
)


def test_fsq_example():
    quantizer = FSQ(levels=[8, 5, 5, 5])
    x = torch.randn(1, 1024, 4)
    xhat, indices = quantizer(x)
    assert xhat.shape == (1, 1024, 4)
    assert indices.shape == (1, 1024)
    assert indices.dtype == torch.int32
    assert torch.all(xhat == quantizer.indices_to_codes(indices))


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8] * 30])
def test_fsq_without_indices(levels):
    quantizer = FSQ(levels=levels, return_indices=False)
    xhat, indices = quantizer(torch.randn(1, 1024, len(levels)))
    assert xhat.shape == (1, 1024, len(levels))
    assert indices is None


def test_residual_fsq_example():
    quantizer = ResidualFSQ(dim=256, levels=[8, 5, 5, 3], num_quantizers=8).eval()
    quantized, indices = quantizer(torch.randn(1, 1024, 256))
    assert quantized.shape == (1, 1024, 256)
    assert indices.shape == (1, 1024, 8)
    assert indices.dtype == torch.int32
    assert torch.all(quantized == quantizer.get_output_from_indices(indices))


def test_lfq_image_example():
    quantizer = LFQ(codebook_size=65536, dim=16, entropy_loss_weight=0.1, diversity_gamma=1.0)
    image = torch.randn(1, 16, 32, 32)
    quantized, indices, loss = result = quantizer(image, inv_temperature=100.0)
    assert quantized.shape == (1, 16, 32, 32)
    assert indices.shape == (1, 32, 32)
    assert indices.dtype == torch.int64
    assert loss.shape == ()
    assert result.entropy_aux_loss is loss
    assert (quantized == quantizer.indices_to_codes(indices)).all()


def test_lfq_sequence_and_video_example():
    quantizer = LFQ(codebook_size=65536, dim=16, entropy_loss_weight=0.1, diversity_gamma=1.0)
    for shape in ((1, 32, 16), (1, 16, 10, 32, 32)):
        x = torch.randn(shape)
        quantized, indices, _ = quantizer(x)
        assert quantized.shape == x.shape
        assert (quantized == quantizer.indices_to_codes(indices)).all()


def test_lfq_codebooks_example():
    quantizer = LFQ(codebook_size=4096, dim=16, num_codebooks=4)
    image = torch.randn(1, 16, 32, 32)
    quantized, indices, loss = quantizer(image)
    assert quantized.shape == image.shape
    assert indices.shape == (1, 32, 32, 4)
    assert loss.shape == ()
    assert (quantized == quantizer.indices_to_codes(indices)).all()


def test_residual_lfq_example():
    quantizer = ResidualLFQ(dim=256, codebook_size=256, num_quantizers=8).eval()
    quantized, indices, loss = quantizer(torch.randn(1, 1024, 256))
    assert quantized.shape == (1, 1024, 256)
    assert indices.shape == (1, 1024, 8)
    assert torch.equal(loss, torch.zeros(8))
    assert torch.all(quantized == quantizer.get_output_from_indices(indices))


def test_latent_image_example():
    quantizer = LatentQuantize(levels=[5, 5, 8], dim=16, commitment_loss_weight=0.1, quantization_loss_weight=0.1)
    image = torch.randn(1, 16, 32, 32)
    quantized, indices, loss = quantizer(image)
    assert quantized.shape == (1, 16, 32, 32)
    assert indices.shape == (1, 32, 32)
    assert indices.dtype == torch.int32
    assert loss.shape == ()
    assert (quantized == quantizer.indices_to_codes(indices)).all()


def test_latent_sequence_and_video_example():
    quantizer = LatentQuantize(levels=[5, 5, 8], dim=16, commitment_loss_weight=0.1, quantization_loss_weight=0.1)
    quantized, indices, _ = quantizer(torch.randn(1, 32, 16))
    assert quantized.shape == (1, 32, 16)
    assert indices.shape == (1, 32)
    assert torch.equal(quantized.movedim(-1, 1), quantizer.indices_to_codes(indices))
    assert quantizer(torch.randn(1, 16, 10, 32, 32))[0].shape == (1, 16, 10, 32, 32)


def test_latent_codebooks_example():
    model = LatentQuantize(levels=[4, 8, 16], dim=9, num_codebooks=3)
    x = torch.randn(2, 3, 9)
    output, indices, loss = model(x)
    assert output.shape == x.shape
    assert indices.shape == (2, 3, 3)
    assert loss.item() >= 0


def test_latent_sequences_in_either_order_are_the_same():
    quantizer = LatentQuantize(levels=[5, 5, 8], dim=3)
    x = torch.randn(2, 3, 10)
    first, last = quantizer(x), quantizer(x.movedim(1, -1))
    assert torch.equal(first[0], last[0].movedim(-1, 1))
    assert torch.equal(first[1], last[1])
    torch.testing.assert_close(first[2], last[2])


def test_latent_levels_as_one_number_need_the_codebook_dim():
    assert LatentQuantize(levels=5, dim=4, codebook_dim=4).codebook_size == 625
    with pytest.raises(RuntimeError, match="needs codebook_dim"):
        LatentQuantize(levels=5, dim=4)


def test_latent_in_place_optimizer_moves_the_values_to_the_data():
    """It steps inside a train-mode forward, on the values alone, and the decoder follows."""
    quantizer = LatentQuantize([2, 3], 2, in_place_codebook_optimizer=lambda values: torch.optim.SGD(values, lr=0.3))
    centres = torch.tensor([[-2.0, 0.0], [1.5, 3.0], [-2.0, -4.0]])
    x = centres.repeat(20, 1)[None].movedim(-1, 1)
    errors = []
    for _ in range(60):
        quantized, indices, loss = quantizer(x.clone().requires_grad_())
        loss.backward()
        errors.append((quantized - x).square().mean().item())
    assert errors[0] > 1
    assert errors[-1] < 1e-3
    assert torch.equal(quantizer.indices_to_codes(indices), quantized)
    before = [values.clone() for values in quantizer.values_per_latent]
    quantizer.eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(before, quantizer.values_per_latent))


@pytest.mark.parametrize("make", [
    lambda: ResidualFSQ(levels=[8, 5, 5], num_quantizers=4, dim=6, is_channel_first=True),
    lambda: ResidualFSQ(levels=[8, 5, 5], num_quantizers=4, is_channel_first=True, quantize_dropout=True),
    lambda: GroupedResidualFSQ(dim=6, groups=2, levels=[8, 5], num_quantizers=4, accept_image_fmap=True),
    lambda: GroupedResidualFSQ(
        dim=6, groups=2, levels=[8, 5], num_quantizers=4, accept_image_fmap=True, is_channel_first=True
    ),
    lambda: GroupedResidualLFQ(dim=6, groups=2, codebook_size=16, num_quantizers=4, accept_image_fmap=True),
])  # fmt: skip
def test_maps_are_decoded_from_their_own_indices(make):
    quantizer = make().eval()
    dim = getattr(quantizer, "dim", 3)
    x = torch.randn(2, dim, 5, 7)
    quantized, indices, *rest = quantizer(x, return_all_codes=True)
    codes = rest[-1]
    assert quantized.shape == x.shape
    assert torch.equal(quantizer.get_output_from_indices(indices), quantized)
    again = quantizer.get_codes_from_indices(indices)
    codes = codes if torch.is_tensor(codes) else torch.stack(codes)
    assert torch.equal(again, codes)
    assert codes.shape[-4:-1] == (2, 5, 7)


def test_residual_fsq_indices_stand_where_the_channels_do():
    quantizer = ResidualFSQ(levels=[8, 5, 5], num_quantizers=4, is_channel_first=True)
    assert quantizer(torch.randn(2, 3, 10))[1].shape == (2, 4, 10)
    assert quantizer(torch.randn(2, 3, 5, 7))[1].shape == (2, 4, 5, 7)


@pytest.mark.parametrize("make", [
    lambda **options: ResidualFSQ(levels=[5, 4, 3], num_quantizers=6, dim=8, **options),
    lambda **options: ResidualLFQ(codebook_size=16, num_quantizers=6, dim=8, **options),
])  # fmt: skip
def test_quantize_dropout_and_coarse_decoding(make):
    quantizer = make(quantize_dropout=True, quantize_dropout_cutoff_index=1, quantize_dropout_multiple_of=2)
    x = torch.randn(2, 10, 8)
    seen = set()
    for seed in range(30):
        quantized, indices, *losses = quantizer(x, rand_quantize_dropout_fixed_seed=seed)
        kept = int((indices[0, 0] >= 0).sum())
        seen.add(kept)
        assert (indices[..., kept:] == -1).all()
        assert indices.dtype == torch.int64 or kept == 6
        assert all((loss[kept:] == 0).all() for loss in losses)
        torch.testing.assert_close(quantizer.get_output_from_indices(indices), quantized)
        torch.testing.assert_close(quantizer.get_output_from_indices(indices[..., :kept]), quantized)
    assert seen == {2, 4, 6}
    with torch.no_grad():
        assert (quantizer(x)[1] >= 0).all()
    assert (quantizer.eval()(x)[1] >= 0).all()
    with pytest.raises(ValueError, match="fewer need quantize_dropout"):
        make().get_output_from_indices(torch.zeros(2, 10, 3, dtype=torch.int64))


@pytest.mark.parametrize("make", [
    lambda: FSQ([5, 4, 3, 8]),
    lambda: FSQ([5, 4, 3, 8], preserve_symmetry=True, orthogonal_rotation=True),
    lambda: FSP([5, 4, 3, 8]),
    lambda: LFQ(dim=4, spherical=True, orthogonal_rotation=True),
    lambda: LFQ(dim=4, codebook_size=2**18),
    lambda: LatentQuantize([5, 4, 8], 4),
    lambda: ResidualFSQ(levels=[5, 4, 3, 8], num_quantizers=3, orthogonal_rotation=True),
    lambda: ResidualLFQ(dim=4, codebook_size=8, num_quantizers=3, spherical=True),
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_types_and_autocast(make, dtype):
    """Arithmetic is fp32: half-precision input gives the codes of the same numbers in fp32, and so does autocast."""
    quantizer = make().eval()
    x = torch.randn(2, 4, 6).movedim(1, -1) if not isinstance(quantizer, LatentQuantize) else torch.randn(2, 4, 6)
    expected = quantizer(x.to(dtype).float())
    got = quantizer(x.to(dtype))
    assert got[0].dtype == dtype
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[0].double(), expected[0].to(dtype).double(), atol=1e-6, rtol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer(x.to(dtype))[1], expected[1])
    half = quantizer.to(torch.float16)(x.half())
    assert half[0].isfinite().all()


def test_decoders_give_the_output_back():
    for quantizer in (
        FSQ([5, 5, 5], orthogonal_rotation=True),
        FSQ([5, 5, 5], dim=7, num_codebooks=2),
        LFQ(dim=3, spherical=True, orthogonal_rotation=True).eval(),
        LFQ(dim=7, codebook_size=8, num_codebooks=2),
        FSP([5, 5, 5], dim=7).eval(),
    ):
        out = quantizer(torch.randn(2, 9, quantizer.dim))
        torch.testing.assert_close(quantizer.indices_to_codes(out[1]), out[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("make", [
    lambda: FSQ([5, 4, 3, 8]),
    lambda: FSP([5, 4, 3, 8]),
    lambda: LFQ(dim=4),
    lambda: LatentQuantize([5, 4, 3, 8], 4),
    lambda: ResidualFSQ(levels=[5, 4, 3, 8], num_quantizers=3),
    lambda: ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3),
    lambda: BinaryMapper(4, deterministic_on_eval=True),
])  # fmt: skip
def test_one_graph_in_eval(make):
    torch._dynamo.reset()
    quantizer, x = make().eval(), torch.randn(2, 9, 4)
    expected = quantizer(x)
    found = torch.compile(quantizer, fullgraph=True, backend="eager")(x)
    torch._dynamo.reset()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
