"""The laws of every quantizer: method x dtype x mask x train/eval x layout, and what an update of its state keeps."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rqstack.quantizers import InLayout, InPatches
from rqstack.quantizers.wrappers.layout import mask_from_lengths
from tests.rqstack.quantizers.quantizer_methods import DIM, METHODS, code_limits, forward, make

# a single vector; tokens, one per row; sequences; images; videos
GRIDS = [(), (5,), (2, 3), (2, 2, 3), (1, 2, 2, 2)]
examples = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
cases = given(
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    training=st.booleans(),
    masking=st.sampled_from(["none", "positions", "lengths"]),
    grid=st.sampled_from(GRIDS),
    size=st.sampled_from([0.1, 1.0, 30.0]),
)
every_method = pytest.mark.parametrize("name", METHODS)


def draw_mask(masking, grid):
    """None, any positions, or the first positions of every row; at least one counts, so that k-means has a start."""
    if masking == "none":
        return None
    if masking == "lengths" and len(grid) == 2:
        return mask_from_lengths(torch.randint(1, grid[1] + 1, grid[:1]), grid[1])
    mask = torch.rand(grid) < 0.6
    mask.view(-1)[0] = True
    return mask


@every_method
@examples
@cases
def test_output_codes_and_loss(name, seed, dtype, training, masking, grid, size):
    quantizer, method = make(name, seed).train(training), METHODS[name]
    z = (torch.randn(*grid, DIM) * size).to(dtype).requires_grad_()
    out = forward(quantizer, z, draw_mask(masking, grid))
    assert out.quantized.shape == z.shape
    assert out.quantized.dtype == dtype
    if not (method.moves and training):
        assert torch.equal(out.quantized, quantizer.decode(out.codes).to(dtype))
    assert out.codes.shape == (*grid, len(quantizer.num_codes))
    assert out.codes.dtype == torch.int64
    assert (out.codes >= (-1 if method.drops and training else 0)).all()
    assert (out.codes < code_limits(quantizer)).all()
    assert out.loss.shape == ()
    assert out.loss.dtype == torch.float32
    assert out.loss.isfinite()
    torch.testing.assert_close(sum(out.terms.values(), torch.zeros(())), out.loss)
    parts = quantizer.embed_with_depth(out.codes)
    assert parts.shape == (*out.codes.shape, DIM)
    torch.testing.assert_close(parts.sum(-2), quantizer.decode(out.codes))
    torch.testing.assert_close(quantizer.decode_depth(out.codes, 0), parts[..., 0, :])
    (gradient,) = torch.autograd.grad(out.quantized.float().sum() + out.loss, z, retain_graph=True)
    assert gradient.isfinite().all()
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@every_method
@examples
@given(seed=st.integers(0, 10_000), training=st.booleans(), grid=st.sampled_from(GRIDS), data=st.data())
def test_every_layout_gives_the_same(name, seed, training, grid, data):
    quantizer = make(name, seed).train(training)
    dim = data.draw(st.integers(0, len(grid)))
    z, mask = torch.randn(*grid, DIM), draw_mask("positions", grid)
    layout = dim - len(grid) - 1 if data.draw(st.booleans()) else dim
    other = InLayout(copy.deepcopy(quantizer), DIM, layout if grid else -1)
    expected = forward(quantizer, z, mask)
    out = forward(other, z.movedim(-1, dim), mask)
    assert torch.equal(out.quantized.movedim(dim, -1), expected.quantized)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)


@every_method
@examples
@given(seed=st.integers(0, 10_000), training=st.booleans(), columns=st.sampled_from([1, 2, 3]))
def test_patches_share_the_codes_of_their_joined_vectors(name, seed, training, columns):
    """Latent vectors of size DIM / columns, `columns` side by side per code position."""
    quantizer = make(name, seed).train(training)
    patches = InPatches(copy.deepcopy(quantizer), (1, columns))
    joined = torch.randn(2, 3, 2, DIM)
    mask = draw_mask("positions", (2, 3, 2))
    z = joined.unflatten(-1, (columns, -1)).flatten(2, 3)
    expected, out = forward(quantizer, joined, mask), forward(patches, z, mask)
    assert torch.equal(out.codes, expected.codes)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.quantized, expected.quantized.unflatten(-1, (columns, -1)).flatten(2, 3))
    if not (METHODS[name].moves and training):
        assert torch.equal(patches.decode(out.codes), out.quantized)
    assert patches.decode_depth(out.codes, 0).shape == z.shape
    torch.testing.assert_close(patches.targets(z)[0], quantizer.targets(joined)[0])


@every_method
@examples
@cases
def test_precision_and_autocast_change_nothing(name, seed, dtype, training, masking, grid, size):
    quantizer = make(name, seed).train(training)
    z = (torch.randn(*grid, DIM) * size).to(dtype)
    mask = draw_mask(masking, grid)
    copies = [copy.deepcopy(quantizer) for _ in range(3)]
    expected = forward(quantizer, z.float(), mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outs = [forward(copies[0], z, mask), forward(copies[1], z.float(), mask)]
    outs.append(forward(copies[2], z, mask))
    for out in outs:
        assert torch.equal(out.codes, expected.codes)
        assert torch.equal(out.loss, expected.loss)
        assert torch.equal(out.quantized, expected.quantized.to(out.quantized.dtype))


@every_method
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("filler", [0.0, 1e6, float("nan"), float("inf")])
def test_padding_under_a_mask_changes_nothing(name, training, filler):
    one = make(name).train(training)
    two = copy.deepcopy(one)
    z = torch.randn(4, DIM)
    mask = torch.tensor([True] * 4 + [False] * 3)
    padded = torch.cat([z, torch.full((3, DIM), filler)]).requires_grad_()
    short, long = forward(one, z), forward(two, padded, mask)
    limits = code_limits(two)
    assert (long.codes < limits).all()
    assert (long.codes >= (-1 if METHODS[name].drops and training else 0)).all()
    if long.loss.requires_grad:
        long.loss.backward()
        assert padded.grad is None or torch.equal(padded.grad[4:], torch.zeros(3, DIM))
        for tensor in (padded, *two.parameters()):
            assert tensor.grad is None or tensor.grad.isfinite().all()
    if training and METHODS[name].random:
        return  # the draws of the valid rows are others
    torch.testing.assert_close(short.loss, long.loss)
    assert torch.equal(short.codes, long.codes[:4])
    for quantizer in (one, two):
        quantizer.update_codebook()
    for (key, value), other in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=key)


@every_method
def test_evaluation_changes_no_state(name):
    quantizer = make(name)
    quantizer(torch.randn(30, DIM))
    quantizer.update_codebook()
    before = copy.deepcopy(quantizer.state_dict())
    z = torch.randn(30, DIM)
    quantizer.targets(z)
    quantizer.eval()(z)
    quantizer.update_codebook()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_method
def test_a_discarded_step_changes_no_state(name):
    """K-means start apart, which happens in the forward."""
    quantizer = make(name)
    quantizer(torch.randn(30, DIM))
    quantizer.discard_codebook_update()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(torch.randn(30, DIM))
    quantizer.discard_codebook_update()
    quantizer.update_codebook()
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, before[key]), key


@every_method
def test_one_bad_vector_does_not_poison_the_state(name):
    quantizer = make(name)
    z = torch.randn(30, DIM)
    z[3, 2], z[7] = float("nan"), float("inf")
    forward(quantizer, z)
    quantizer.update_codebook()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


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
        if METHODS[name].nearest:
            torch.testing.assert_close(best, distance.min(1).values)
    probs, again = quantizer.soft_codes(z, 0.05)
    assert torch.equal(again, codes)
    torch.testing.assert_close(probs.sum(-1), torch.ones(40, len(quantizer.num_codes)))
    drawn = quantizer.targets(z, 1e-6, True, torch.Generator().manual_seed(0))[1]
    assert (drawn == codes).float().mean() > 0.9 or not METHODS[name].nearest


@every_method
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


@every_method
def test_parameters_without_a_gradient_are_announced(name):
    """Data-parallel training waits for the gradient of every parameter unless it is told."""
    quantizer, z = make(name), torch.randn(7, DIM, requires_grad=True)
    out = forward(quantizer, z)
    (out.quantized.square().sum() + out.loss).backward()
    without = [key for key, p in quantizer.named_parameters() if p.requires_grad and p.grad is None]
    assert not (without and quantizer.uses_all_parameters), without
    assert quantizer.uses_all_parameters or without or METHODS[name].drops


@every_method
@pytest.mark.parametrize("training", [False, True])
def test_no_vectors_are_no_codes_and_change_nothing(name, training):
    quantizer = make(name).train(training)
    forward(quantizer, torch.randn(30, DIM))
    quantizer.discard_codebook_update()
    z = torch.zeros(0, 2, DIM, requires_grad=True)
    out = quantizer(z)
    assert out.quantized.shape == z.shape
    assert out.codes.shape == (0, 2, len(quantizer.num_codes))
    assert quantizer.decode(out.codes).shape == z.shape
    assert quantizer.targets(z)[1].shape == out.codes.shape
    assert out.loss.isfinite()
    if out.loss.requires_grad:
        out.loss.backward()
    weights = [quantizer.codebook(depth).clone() for depth in range(len(quantizer.num_codes))]
    quantizer.update_codebook()
    for depth, weight in enumerate(weights):
        torch.testing.assert_close(quantizer.codebook(depth), weight)


@every_method
def test_wrong_shapes_are_errors(name):
    quantizer = make(name)
    with pytest.raises(ValueError, match=rf"vectors have {DIM + 1} channels"):
        quantizer(torch.zeros(2, DIM + 1))
    depth = len(quantizer.num_codes)
    with pytest.raises(ValueError, match=rf"codes have {depth + 1} depths"):
        quantizer.decode(torch.zeros(2, depth + 1, dtype=torch.int64))


@every_method
def test_fewer_depths_decode_to_the_sum_of_their_parts(name):
    quantizer = make(name).eval()
    codes = quantizer(torch.randn(7, DIM)).codes
    for depth in range(1, codes.shape[-1] + 1):
        some = codes[:, :depth]
        torch.testing.assert_close(quantizer.decode(some), quantizer.embed_with_depth(some).sum(-2))
    assert quantizer.restart_counts().tolist() == [0] * len(quantizer.num_codes)


@pytest.mark.parametrize("name", FEW_CODES)
def test_code_vectors_are_the_rows_that_codes_look_up(name):
    quantizer = make(name).eval()
    if not quantizer.fixed_code_vectors:
        with pytest.raises(ValueError, match="depend on the codes before them"):
            quantizer.code_vectors(0)
        return
    codes = quantizer(torch.randn(50, DIM)).codes
    parts = quantizer.embed_with_depth(codes)
    for depth, size in enumerate(quantizer.num_codes):
        rows = quantizer.code_vectors(depth)
        assert rows.shape == (size, DIM)
        torch.testing.assert_close(rows[codes[:, depth]], parts[:, depth])


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.drops])
def test_dropped_levels_have_code_minus_one_which_is_zero(name):
    quantizer = make(name)
    z, seen = torch.randn(4, DIM), set()
    for seed in range(20):
        codes = forward(quantizer, z, seed=seed).codes
        parts = quantizer.embed_with_depth(codes)
        assert (parts[codes == -1] == 0).all()
        seen |= set(((codes == -1).sum(-1)).tolist())
        quantizer.update_codebook()
    assert len(seen) > 1
    assert not quantizer.uses_all_parameters
    assert (quantizer.targets(z)[1] >= 0).all(), "targets never drop"
