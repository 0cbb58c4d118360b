"""The laws of every quantizer without a learned codebook: method x dtype x mask x train/eval x layout."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqvae.quantizers.binary_mapper import BinaryMapper
from rqvae.quantizers.finite_scalar import FiniteScalarQuantizer
from rqvae.quantizers.grouped_of import GroupedOf
from rqvae.quantizers.latent import LatentQuantizer
from rqvae.quantizers.layout import InLayout
from rqvae.quantizers.lookup_free import LookupFreeQuantizer
from rqvae.quantizers.random_projection import RandomProjectionQuantizer
from rqvae.quantizers.residual_of import residual_fsq, residual_lfq, residual_simvq
from rqvae.quantizers.sim import SimQuantizer

DIM = 6
METHODS = {
    "fsq": lambda: FiniteScalarQuantizer(DIM, [8, 5, 4, 3, 2, 7]),
    "fsq symmetric": lambda: FiniteScalarQuantizer(DIM, [8, 5, 4], num_codebooks=2, preserve_symmetry=True),
    "fsq projected, noise": lambda: FiniteScalarQuantizer(DIM, [8, 5, 5, 5], num_codebooks=3, noise_dropout=0.5),
    "lfq": lambda: LookupFreeQuantizer(DIM, 64),
    "lfq spherical": lambda: LookupFreeQuantizer(DIM, 8, num_codebooks=2, spherical=True, joint_bits=2),
    "lfq projected": lambda: LookupFreeQuantizer(DIM, 2**18, num_codebooks=2),
    "latent": lambda: LatentQuantizer(DIM, [5, 4, 3], num_codebooks=2),
    "latent projected": lambda: LatentQuantizer(DIM, [5, 4]),
    "simvq": lambda: SimQuantizer(DIM, 40),
    "simvq, 2 parts": lambda: SimQuantizer(DIM, 40, num_codebooks=2),
    "random projection": lambda: RandomProjectionQuantizer(DIM, 30, 4, num_codebooks=3),
    "random projection, raw": lambda: RandomProjectionQuantizer(DIM, 30, 3, normalize=False),
    "binary": lambda: BinaryMapper(DIM, 2**DIM),
    "binary projected": lambda: BinaryMapper(DIM, 16, num_codebooks=2, free_nats=0.0),
    "residual fsq": lambda: residual_fsq(DIM, [8, 5, 4, 3, 2, 7], 3),
    "residual fsq projected": lambda: residual_fsq(DIM, [8, 5, 5], 4, preserve_symmetry=True),
    "residual lfq": lambda: residual_lfq(DIM, 64, 4),
    "residual lfq projected": lambda: residual_lfq(DIM, 16, 2, level_options={"spherical": True}),
    "residual simvq": lambda: residual_simvq(DIM, 30, 3),
    "residual simvq, shared": lambda: residual_simvq(DIM, 30, 3, shared=True, code_dim=4),
    "grouped residual fsq": lambda: GroupedOf(DIM, [residual_fsq(3, [5, 4, 3], 2) for _ in range(2)]),
    "grouped residual lfq": lambda: GroupedOf(DIM, [residual_lfq(2, 16, 2) for _ in range(3)]),
    "grouped residual simvq": lambda: GroupedOf(DIM, [residual_simvq(3, 20, 2) for _ in range(2)]),
}
RANDOM_IN_TRAINING = ("fsq projected, noise", "binary", "binary projected")
LAYOUTS = [(5,), (2, 3), (2, 2, 3), (1, 2, 2, 2)]


def make(name, seed=0):
    torch.manual_seed(seed)
    return METHODS[name]()


def forward(quantizer, *args, seed=1, **kwargs):
    torch.manual_seed(seed)
    return quantizer(*args, **kwargs)


examples = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
cases = given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    training=st.booleans(),
    masked=st.booleans(),
    grid=st.sampled_from(LAYOUTS),
    size=st.sampled_from([0.1, 1.0, 30.0]),
)


@pytest.mark.parametrize("name", METHODS)
@examples
@cases
def test_output_codes_and_loss(name, seed, dtype, training, masked, grid, size):
    quantizer = make(name, seed).train(training)
    z = (torch.randn(*grid, DIM) * size).to(dtype).requires_grad_()
    mask = torch.rand(grid) < 0.6 if masked else None
    out = forward(quantizer, z, mask)
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == dtype
    assert torch.equal(out.quantized, quantizer.decode(out.codes).to(dtype))
    assert out.codes.shape == (*grid, len(quantizer.num_codes))
    assert out.codes.dtype == torch.int64
    assert (out.codes >= 0).all()
    assert (out.codes < torch.tensor(quantizer.num_codes)).all()
    assert out.loss.shape == ()
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    torch.testing.assert_close(sum(out.terms.values(), torch.zeros(())), out.loss)
    parts = quantizer.embed_with_depth(out.codes)
    assert parts.shape == (*out.codes.shape, DIM)
    torch.testing.assert_close(parts.sum(-2), quantizer.decode(out.codes))
    torch.testing.assert_close(quantizer.decode_depth(out.codes, 0), parts[..., 0, :])
    (gradient,) = torch.autograd.grad(out.quantized.float().sum() + out.loss, z)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
@examples
@given(seed=st.integers(0, 10_000), training=st.booleans(), grid=st.sampled_from(LAYOUTS), data=st.data())
def test_every_layout_gives_the_same(name, seed, training, grid, data):
    quantizer = make(name, seed).train(training)
    dim = data.draw(st.integers(0, len(grid)))
    z, mask = torch.randn(*grid, DIM), torch.rand(grid) < 0.6
    expected = forward(quantizer, z, mask)
    out = forward(InLayout(quantizer, DIM, dim), z.movedim(-1, dim), mask)
    assert torch.equal(out.quantized.movedim(dim, -1), expected.quantized)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)


@pytest.mark.parametrize("name", METHODS)
@examples
@cases
def test_precision_and_autocast_change_nothing(name, seed, dtype, training, masked, grid, size):
    quantizer = make(name, seed).train(training)
    z = (torch.randn(*grid, DIM) * size).to(dtype)
    expected = forward(quantizer, z.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [forward(quantizer, z), forward(quantizer, z.float())]
    for out in outs:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.loss, expected.loss)
        assert torch.equal(out.quantized, expected.quantized.to(out.quantized.dtype))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("filler", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_under_a_mask_changes_nothing(name, training, filler):
    quantizer = make(name).train(training)
    z = torch.randn(4, DIM)
    mask = torch.tensor([True] * 4 + [False] * 3)
    padded = torch.cat([z, torch.full((3, DIM), filler)]).requires_grad_()
    before = copy.deepcopy(quantizer.state_dict())
    short, long = forward(quantizer, z), forward(quantizer, padded, mask)
    torch.testing.assert_close(short.loss, long.loss)
    if not (training and name in RANDOM_IN_TRAINING):
        assert torch.equal(short.codes, long.codes[:4])
    assert (long.codes >= 0).all()
    assert (long.codes < torch.tensor(quantizer.num_codes)).all()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key])
    if long.loss.requires_grad:
        long.loss.backward()
        assert torch.equal(padded.grad[4:], torch.zeros(3, DIM))
        for tensor in (padded, *quantizer.parameters()):
            assert tensor.grad is None or tensor.grad.isfinite().all()


FEW_CODES = [name for name in METHODS if max(make(name).num_codes) <= 4096]  # enough to try them all


@pytest.mark.parametrize("name", FEW_CODES)
def test_codes_are_the_nearest_in_the_searched_space(name):
    quantizer = make(name).eval()
    z = torch.randn(40, DIM) * 2
    searched, codes = quantizer.targets(z)
    assert torch.equal(codes, quantizer(z).codes)
    for depth, size in enumerate(quantizer.num_codes):
        book = quantizer.codebook(depth)
        assert book.shape == (size, searched.shape[-1])
        distance = torch.cdist(searched[:, depth], book, compute_mode="donot_use_mm_for_euclid_dist")
        best = distance.gather(1, codes[:, depth, None])[:, 0]
        torch.testing.assert_close(best, distance.min(1).values)
    probs, again = quantizer.soft_codes(z, 0.05)
    assert torch.equal(again, codes)
    torch.testing.assert_close(probs.sum(-1), torch.ones(40, len(quantizer.num_codes)))
    drawn = quantizer.targets(z, 1e-6, True, torch.Generator().manual_seed(0))[1]
    assert (drawn == codes).float().mean() > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_a_half_precision_model_keeps_its_codes(name):
    """Casting the model changes projections (they are parameters), nothing else."""
    quantizer = make(name).eval()
    z = torch.randn(50, DIM).bfloat16()
    expected = quantizer(z)
    for parameter in quantizer.parameters():
        parameter.data = parameter.data.bfloat16().float()
    rounded = quantizer(z)
    cast = copy.deepcopy(quantizer).bfloat16()(z)
    assert torch.equal(cast.codes, rounded.codes)
    assert torch.equal(cast.quantized, rounded.quantized)
    if not list(quantizer.parameters()):
        assert torch.equal(cast.codes, expected.codes)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_shapes_are_errors(name):
    quantizer = make(name)
    with pytest.raises(ValueError, match=rf"vectors have {DIM + 1} channels"):
        quantizer(torch.zeros(2, DIM + 1))
    depth = len(quantizer.num_codes)
    with pytest.raises(ValueError, match=rf"codes have {depth + 1} depths"):
        quantizer.decode(torch.zeros(2, depth + 1, dtype=torch.int64))
