"""FSQ, FSP, LFQ, latent quantization, binary mapper and their residual forms against the installed peer."""

import inspect

import pytest
import torch

import rqstack.quantizers.compat.vector_quantize_pytorch as ours

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer

SEQUENCE, IMAGE, VIDEO = (2, 40, 4), (2, 4, 6, 5), (2, 4, 3, 4, 5)
MASK = torch.arange(2 * 40).view(2, 40) % 5 < 3
# name, constructor keywords, shape, forward keywords
CASES = [
    ("FSQ", {"levels": [8, 5, 5, 5]}, SEQUENCE, {}),
    ("FSQ", {"levels": (7, 5, 3, 9)}, IMAGE, {}),
    ("FSQ", {"levels": [8, 6, 5, 4]}, VIDEO, {}),
    ("FSQ", {"levels": [8, 5, 5, 5], "dim": 12}, (2, 12, 6, 5), {}),
    ("FSQ", {"levels": [8, 5, 5, 5], "channel_first": True}, (2, 4, 30), {}),
    ("FSQ", {"levels": [8, 5], "num_codebooks": 2, "projection_has_bias": False, "dim": 6}, (2, 40, 6), {}),
    ("FSQ", {"levels": [8, 5, 4], "keep_num_codebooks_dim": True}, (2, 40, 3), {}),
    ("FSQ", {"levels": [8, 5, 5, 5], "return_indices": False}, SEQUENCE, {}),
    ("FSQ", {"levels": [4, 2, 3, 8], "preserve_symmetry": True}, SEQUENCE, {}),
    ("FSQ", {"levels": [4, 2, 3, 8], "preserve_symmetry": True, "noise_dropout": 0.4}, SEQUENCE, {}),
    ("FSQ", {"levels": [4, 5, 3, 8], "preserve_symmetry": True, "bound_hard_clamp": True}, IMAGE, {}),
    ("FSQ", {"levels": [4, 5, 3, 8], "bound_hard_clamp": True}, SEQUENCE, {}),
    ("FSQ", {"levels": [5, 5, 5, 5], "orthogonal_rotation": True}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5, 5]}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5], "dim": 4, "quantize_rate": 0.5, "vector_norm": "kurt"}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5, 5], "act_name": "sigmoid", "vector_norm": "var_sigmoid"}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5, 5], "act_name": "normal", "need_inv_act": True, "vector_norm": "var"}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5, 5], "act_name": "laplace", "vector_norm": "var_laplace"}, SEQUENCE, {}),
    ("FSP", {"levels": [8, 5, 5, 5], "act_name": "cauchy", "channel_first": True, "vector_norm": "none"}, IMAGE, {}),
    ("FSP", {"levels": [8, 5, 5, 5], "quantize_rate": 1.0, "need_inv_act": True}, SEQUENCE, {}),
    ("LFQ", {"codebook_size": 16}, SEQUENCE, {}),
    ("LFQ", {"codebook_size": 256, "dim": 4, "commitment_loss_weight": 0.3}, IMAGE, {"return_loss_breakdown": True}),
    ("LFQ", {"dim": 4, "codebook_size": 4, "num_codebooks": 3, "diversity_gamma": 2.0}, SEQUENCE, {}),
    ("LFQ", {"dim": 4}, VIDEO, {"inv_temperature": 10.0}),
    ("LFQ", {"dim": 4, "commitment_loss_weight": 1.0}, SEQUENCE, {"return_loss_breakdown": True}),
    ("LFQ", {"dim": 4, "spherical": True, "commitment_loss_weight": 1.0, "codebook_scale": 0.5}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "frac_per_sample_entropy": 0.5}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "soft_clamp_input_value": 2.0, "experimental_softplus_entropy_loss": True}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "codebook_size": 64, "cosine_sim_project_in": True, "codebook_scale": 2.0}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "orthogonal_rotation": True, "straight_through_activation": torch.nn.Tanh()}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "codebook_size": 1024, "projection_has_bias": False}, SEQUENCE, {}),
    ("LFQ", {"dim": 4, "channel_first": True, "keep_num_codebooks_dim": True}, (2, 4, 30), {}),
    ("LFQ", {"codebook_size": 4096, "entropy_loss_weight": 1.0}, (1, 60, 12), {"inv_temperature": 30.0}),
    ("LatentQuantize", {"levels": [5, 5, 8], "dim": 16}, (2, 16, 6, 5), {}),
    ("LatentQuantize", {"levels": [5, 5, 8], "dim": 3}, (2, 3, 2, 4, 5), {}),
    ("LatentQuantize", {"levels": [4, 8, 16], "dim": 9, "num_codebooks": 3}, (2, 9, 12), {}),
    ("LatentQuantize", {"levels": 5, "dim": 4, "codebook_dim": 4, "commitment_loss_weight": 0.5}, IMAGE, {}),
    ("LatentQuantize", {"levels": [9, 3], "dim": 4, "optimize_values": False}, IMAGE, {}),
    ("BinaryMapper", {"bits": 4}, SEQUENCE, {"return_indices": True}),
    ("BinaryMapper", {"bits": 4, "deterministic_on_eval": True}, SEQUENCE, {"temperature": 0.5}),
    ("BinaryMapper", {"bits": 4}, SEQUENCE, {"reduce_aux_kl_loss": False, "deterministic": True}),
    (
        "BinaryMapper",
        {"bits": 4, "kl_loss_threshold": 0.0},
        SEQUENCE,
        {"calc_aux_loss": True, "straight_through": True},
    ),
    ("ResidualFSQ", {"levels": [8, 5, 5, 3], "num_quantizers": 5}, SEQUENCE, {"return_all_codes": True}),
    ("ResidualFSQ", {"levels": [8, 5, 5, 3], "num_quantizers": 8, "dim": 32}, (2, 40, 32), {}),
    ("ResidualFSQ", {"levels": [8, 5, 5], "num_quantizers": 4, "dim": 4, "is_channel_first": True}, IMAGE, {}),
    ("ResidualFSQ", {"levels": [8, 5, 5], "num_quantizers": 5, "dim": 4, "quantize_dropout": True}, SEQUENCE, {}),
    (
        "ResidualFSQ",
        {
            "levels": [5, 5, 5],
            "num_quantizers": 6,
            "dim": 4,
            "quantize_dropout": True,
            "quantize_dropout_cutoff_index": 1,
            "quantize_dropout_multiple_of": 2,
        },
        SEQUENCE,
        {},
    ),
    (
        "ResidualFSQ",
        {
            "levels": [5, 5, 5, 5],
            "num_quantizers": 2,
            "bound_hard_clamp": False,
            "soft_clamp_input_value": [2.0, 2.0, 2.0, 3.0],
        },
        SEQUENCE,
        {},
    ),
    ("GroupedResidualFSQ", {"dim": 8, "groups": 2, "levels": [8, 5, 3], "num_quantizers": 3}, (2, 40, 8), {}),
    (
        "GroupedResidualFSQ",
        {"dim": 8, "groups": 2, "levels": [8, 5, 3], "num_quantizers": 3, "quantize_dropout": True},
        (2, 40, 8),
        {"return_all_codes": True},
    ),
    (
        "GroupedResidualFSQ",
        {
            "dim": 8,
            "groups": 2,
            "levels": [8, 5, 3],
            "num_quantizers": 3,
            "accept_image_fmap": True,
            "is_channel_first": True,
        },
        (2, 8, 4, 5),
        {},
    ),
    ("ResidualLFQ", {"dim": 4, "codebook_size": 16, "num_quantizers": 4}, SEQUENCE, {"return_all_codes": True}),
    (
        "ResidualLFQ",
        {"dim": 32, "codebook_size": 64, "num_quantizers": 3, "commitment_loss_weight": 0.2},
        (2, 40, 32),
        {},
    ),
    ("ResidualLFQ", {"dim": 4, "codebook_size": 16, "num_quantizers": 4, "soft_clamp_input_value": 3.0}, SEQUENCE, {}),
    ("ResidualLFQ", {"dim": 4, "codebook_size": 16, "num_quantizers": 5, "quantize_dropout": True}, SEQUENCE, {}),
    ("GroupedResidualLFQ", {"dim": 8, "groups": 2, "codebook_size": 8, "num_quantizers": 3}, (2, 40, 8), {}),
    (
        "GroupedResidualLFQ",
        {"dim": 8, "groups": 2, "codebook_size": 8, "num_quantizers": 3, "quantize_dropout": True},
        (2, 40, 8),
        {"return_all_codes": True},
    ),
]
NAMES = sorted({name for name, *_ in CASES})
# the peer's eval output is x + (value - x) here, a rounding away from the value
ROUNDED = ("BinaryMapper", "FSQ", "FSP", "LatentQuantize", "ResidualFSQ", "GroupedResidualFSQ")


def decodable(name, settings):
    """Whether the peer has a decoder that reads its own indices."""
    refused = settings.get("return_indices") is False or settings.get("is_channel_first")
    return not refused and name != "BinaryMapper"


def pair(name, settings, training):
    """The peer's module and ours with its state."""
    torch.manual_seed(0)
    theirs = getattr(peer, name)(**settings).train(training)
    mine = getattr(ours, name)(**settings).train(training)
    mine.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, mine


def flat(value):
    """All tensors of nested tuples and dictionaries, in order, and None."""
    if isinstance(value, dict):
        return [tensor for key in sorted(value) for tensor in flat(value[key])]
    if isinstance(value, (tuple, list)):
        return [tensor for part in value for tensor in flat(part)]
    return [value]


def call(module, x, options, seed=1):
    torch.manual_seed(seed)
    return module(x, **options)


def inputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 1.3


@pytest.mark.parametrize("name", [*NAMES])
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signatures(name, method):
    theirs, mine = (
        inspect.signature(getattr(getattr(library, name), method)).parameters.values() for library in (peer, ours)
    )
    assert [(p.name, p.kind) for p in theirs] == [(p.name, p.kind) for p in mine]
    for one, other in zip(theirs, mine):
        assert one.default == other.default or isinstance(one.default, torch.nn.Module)


@pytest.mark.parametrize(("name", "settings", "shape", "options"), CASES)
def test_eval(name, settings, shape, options):
    theirs, mine = pair(name, settings, training=False)
    x = inputs(shape)
    expected, got = (call(module, x, options) for module in (theirs, mine))
    assert type(got).__name__ == type(expected).__name__
    for a, b in zip(flat(expected), flat(got), strict=True):
        if a is None:
            assert b is None
        elif a.is_floating_point() and name in ROUNDED:
            torch.testing.assert_close(b, a, atol=1e-6, rtol=1e-5)
        else:
            assert a.dtype == b.dtype
            assert torch.equal(b, a)


@pytest.mark.parametrize(("name", "settings", "shape", "options"), CASES)
def test_training(name, settings, shape, options):
    theirs, mine = pair(name, settings, training=True)
    gradients = []
    for module in (theirs, mine):
        x = inputs(shape).requires_grad_()
        results = flat(call(module, x, options))
        floats = [t for t in results if t is not None and t.requires_grad]
        weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(3)) for t in floats]
        sum((t * w).sum() for t, w in zip(floats, weights)).backward()
        gradients.append((results, [x.grad, *(p.grad for p in module.parameters())]))
    (expected, expected_grads), (got, got_grads) = gradients
    for a, b in zip(expected, got, strict=True):
        if a is None:
            assert b is None
        else:
            assert a.dtype == b.dtype
            torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
    for a, b in zip(expected_grads, got_grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            # the peer counts probabilities below 1e-5 as 1e-5 in the entropy of a vector, which shows from K = 256 on
            torch.testing.assert_close(b, a, atol=1e-4 if name == "LFQ" else 1e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "settings", "shape", "options"), CASES)
def test_the_same_seed_gives_the_same_weights(name, settings, shape, options):
    states = []
    for library in (peer, ours):
        torch.manual_seed(5)
        states.append(getattr(library, name)(**settings).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["LFQ", "ResidualLFQ"])
def test_a_mask_gives_the_loss_of_the_vectors_it_keeps(name):
    """Against the peer without the others: under a mask it takes the entropy of single vectors for that of the mean."""
    settings = {"dim": 4, "commitment_loss_weight": 1.0}
    settings |= {"codebook_size": 16, "num_quantizers": 3} if name == "ResidualLFQ" else {}
    theirs, mine = pair(name, settings, training=True)
    x = inputs(SEQUENCE)
    torch.testing.assert_close(mine(x, mask=MASK)[2], theirs(x[MASK][None])[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "settings", "shape", "options"), [case for case in CASES if decodable(*case[:2])])
def test_indices_to_vectors(name, settings, shape, options):
    """What the peer can decode is decoded to the same."""
    theirs, mine = pair(name, settings, training=False)
    indices = mine(inputs(shape))[1]
    decoder = "indices_to_codes" if hasattr(theirs, "indices_to_codes") else "get_output_from_indices"
    spherical = settings.get("spherical")
    torch.testing.assert_close(
        getattr(mine, decoder)(indices), getattr(theirs, decoder)(indices), atol=1e-6, rtol=1e-4 if spherical else 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["FSQ", "LFQ", "ResidualFSQ"])
def test_types(name, dtype):
    settings = {
        "FSQ": {"levels": [8, 5, 5, 5]},
        "LFQ": {"dim": 4},
        "ResidualFSQ": {"levels": [8, 5, 5, 5], "num_quantizers": 2},
    }[name]
    theirs, mine = pair(name, settings, training=False)
    x = inputs(SEQUENCE).to(dtype)
    expected, got = theirs(x), mine(x)
    assert got[0].dtype == x.dtype
    if name != "ResidualFSQ" or dtype == torch.float64:  # its soft clamp is in half precision there
        assert torch.equal(got[1], expected[1])
        torch.testing.assert_close(got[0], expected[0].to(dtype), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_bounds_and_level_tables(hard):
    theirs, mine = pair("FSQ", {"levels": [8, 5, 4, 3]}, training=True)
    gradients = []
    for module in (theirs, mine):
        z = inputs(SEQUENCE).requires_grad_()
        outs = [module.bound(z, hard_clamp=hard), module.bound(z, 0.05), module.symmetry_preserving_bound(z, hard)]
        gradients.append((outs, *torch.autograd.grad(sum((out * (i + 1)).sum() for i, out in enumerate(outs)), z)))
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=1e-5)
    noisy = {"levels": [8, 5, 4, 3], "preserve_symmetry": True, "noise_dropout": 0.5}
    fsq, fsp = pair("FSQ", noisy, training=True), pair("FSP", {"levels": [8, 5, 4, 3]}, training=True)
    outs = []
    for module in fsq:
        torch.manual_seed(3)
        outs.append(module.maybe_apply_noise(inputs(SEQUENCE)))
    assert torch.equal(*outs)
    indices = torch.arange(480, dtype=torch.int32).view(4, 120)
    for theirs, mine in (fsq, fsp, pair("LatentQuantize", {"levels": [8, 5], "dim": 2}, training=True)):
        for name in ("_levels", "_basis"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
        if hasattr(theirs, "indices_to_level_indices"):
            found, expected = (module.indices_to_level_indices(indices) for module in (mine, theirs))
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected)
    found, expected = (module.quantize_act_value(inputs(SEQUENCE).sigmoid(), 1e-6) for module in fsp)
    torch.testing.assert_close(found, expected)


def test_code_tables_and_activations():
    for name, settings in [("FSQ", {"levels": [8, 5, 4]}), ("LatentQuantize", {"levels": [8, 5], "dim": 2})]:
        theirs, mine = pair(name, settings, training=False)
        torch.testing.assert_close(mine.implicit_codebook, theirs.implicit_codebook)
        indices = torch.arange(mine.codebook_size, dtype=torch.int32)
        assert torch.equal(mine.codes_to_indices(mine.implicit_codebook), indices)
    for name, settings in [
        ("LFQ", {"dim": 6}),
        ("ResidualLFQ", {"dim": 6, "codebook_size": 64, "num_quantizers": 3}),
        ("ResidualFSQ", {"levels": [5, 4], "num_quantizers": 3}),
        ("GroupedResidualFSQ", {"dim": 4, "groups": 2, "levels": [5, 4], "num_quantizers": 3}),
    ]:
        theirs, mine = pair(name, settings, training=False)
        attribute = "codebook" if name == "LFQ" else "codebooks"
        torch.testing.assert_close(getattr(mine, attribute), getattr(theirs, attribute))
    from vector_quantize_pytorch.finite_scalar_perturbation import build_cdf_act

    x = torch.linspace(-3, 3, 50)
    for name in ("tanh", "sigmoid", "normal", "laplace", "cauchy"):
        for mine, theirs, value in zip(ours.build_cdf_act(name), build_cdf_act(name), (x, x.sigmoid())):
            torch.testing.assert_close(mine(value), theirs(value), atol=1e-6, rtol=1e-5)
    theirs, mine = pair("BinaryMapper", {"bits": 3}, training=False)
    logits, indices = torch.randn(2, 5, 3), torch.randint(8, (2, 5))
    torch.testing.assert_close(mine.log_prob(logits, indices=indices), theirs.log_prob(logits, indices=indices))
    bits = {"indices": indices, "sum_bits": False}
    torch.testing.assert_close(mine.log_prob(logits, **bits), theirs.log_prob(logits, **bits))
    assert torch.equal(mine.codes, theirs.codes)
