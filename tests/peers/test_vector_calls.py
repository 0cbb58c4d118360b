"""`VectorQuantize` beside the package whose signature it has: helpers, state set from outside, expiry, types, refusals.

Run with `make test-peers`.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from rqstack.quantizers.compat import vector_quantize_pytorch as compat
from rqstack.quantizers.compat.vector_quantize_pytorch import VectorQuantize
from tests.peers.vector_settings import (
    IMAGE,
    LEARNED,
    SEQUENCE,
    SETTINGS,
    SGD,
    TIGHT,
    check_outputs,
    check_state,
    mask_of,
    pair,
)

peer = pytest.importorskip("vector_quantize_pytorch")
pytestmark = pytest.mark.peer

DECODED = (
    "euclidean",
    "cosine",
    "channels-first",
    "image",
    "video",
    "tokens",
    "projected",
    "separate-heads",
    "separate-heads-projected",
    "separate-heads-image",
    "learned",
)
RETURNED_BY_BOTH = {"projected-image", "projected-channels-first", "shared-heads", "tokens-heads"}  # codes, not outputs


@pytest.mark.parametrize("name", [*DECODED, *sorted(RETURNED_BY_BOTH)])
def test_indices_decode_alike(name):
    settings, shape, _ = SETTINGS[name]
    theirs, ours = (module.eval() for module in pair(peer, settings))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    indices = theirs(x)[1]
    assert torch.equal(theirs.get_codes_from_indices(indices), ours.get_codes_from_indices(indices))
    assert torch.equal(theirs.codebook, ours.codebook)
    if name in DECODED:
        torch.testing.assert_close(ours.get_output_from_indices(indices), theirs.get_output_from_indices(indices))


def test_constructor_and_forward_have_the_same_signatures():
    for name in ("__init__", "forward"):
        theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (peer.VectorQuantize, VectorQuantize))
        assert [(p.name, p.default, p.kind) for p in theirs.parameters.values()] == [
            (p.name, p.default, p.kind) for p in ours.parameters.values()
        ]


def test_public_names_are_there():
    theirs, ours = pair(peer, {})
    missing = {name for name in dir(theirs) if not name.startswith("_")} - set(dir(ours))
    assert not missing
    used = {"embed", "embed_avg", "cluster_size", "initted", "update_ema", "expire_codes_", "replace", "init_embed_"}
    used |= {"update_indices", "update_ema_indices", "update_codebook", "transform_input", "decay", "eps"}
    assert used <= set(dir(theirs._codebook))
    assert used <= set(dir(ours._codebook))


@pytest.mark.parametrize("settings", [{}, dict(use_cosine_sim=True), dict(heads=2, codebook_dim=4)])
def test_the_codebook_called_itself_agrees(settings):
    theirs, ours = (module._codebook for module in pair(peer, settings))
    shape = (1, 4, 5, 4) if "heads" in settings else (3, 5, 8)
    x = torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(2)), dim=-1)
    for training in (True, False):
        results = [module.train(training)(x) for module in (theirs, ours)]
        check_outputs(*results)
        check_state(theirs, ours)


@pytest.mark.parametrize(
    ("settings", "shape", "codes"),
    [
        ({}, SEQUENCE, SEQUENCE[:2]),
        (dict(use_cosine_sim=True), SEQUENCE, SEQUENCE[:2]),
        (dict(codebook_dim=4), (1, 12, 8), (1, 12)),
        (dict(heads=2, codebook_dim=4), SEQUENCE, (*SEQUENCE[:2], 2)),
        (dict(heads=2, codebook_dim=4, separate_codebook_per_head=True), SEQUENCE, (*SEQUENCE[:2], 2)),
        (dict(accept_image_fmap=True), IMAGE, (2, 3, 4)),
    ],
)
def test_updates_from_given_indices_agree(settings, shape, codes):
    theirs, ours = pair(peer, settings)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        x, indices = torch.randn(shape, generator=generator), torch.randint(0, 16, codes, generator=generator)
        for module in (theirs, ours):
            module.update_ema_indices(x, indices)
        check_state(theirs, ours)


def test_masked_updates_from_given_indices_agree():
    theirs, ours = pair(peer, {})
    generator = torch.Generator().manual_seed(2)
    x, mask = torch.randn(SEQUENCE, generator=generator), mask_of(generator)
    for module in (theirs, ours):
        module.update_indices(x, torch.arange(24).view(2, 12) % 16, mask=mask)
    check_state(theirs, ours)


def test_gathered_updates_are_taken_in_by_the_next_one():
    theirs, ours = pair(peer, {})
    generator = torch.Generator().manual_seed(2)
    for gather in (True, True, False, False):
        x = torch.randn(SEQUENCE, generator=generator)
        for module in (theirs, ours):
            module(x, accum_ema_update=gather)
        check_state(theirs, ours)
        if gather:
            for name in ("cluster_size", "embed_avg"):
                pairs = [getattr(module._codebook, name).grad for module in (theirs, ours)]
                torch.testing.assert_close(*pairs, **TIGHT)


def test_a_program_that_steps_the_codebook_itself():
    theirs, ours = pair(peer, dict(manual_ema_update=True))
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        x = torch.randn(SEQUENCE, generator=generator)
        for module in (theirs, ours):
            module(x)
            module._codebook.update_ema()
        check_state(theirs, ours)
    theirs, ours = pair(peer, dict(in_place_codebook_optimizer=SGD, manual_in_place_optimizer_update=True, **LEARNED))
    for module in (theirs, ours):
        for _ in range(2):
            module(x)
        module.update_in_place_optimizer()
    check_state(theirs, ours)


def test_a_codebook_set_by_hand_agrees():
    for settings in ({}, dict(heads=2, codebook_dim=4, separate_codebook_per_head=True)):
        theirs, ours = pair(peer, settings)
        codes = torch.randn(theirs.codebook.shape, generator=torch.Generator().manual_seed(2))
        theirs.codebook, ours.codebook = codes, codes
        check_state(theirs, ours)


@pytest.mark.parametrize("settings", [dict(), dict(use_cosine_sim=True), dict(decay=0.5)])
@pytest.mark.parametrize("threshold", [2.0, 0.9])
def test_expiry_agrees_where_nothing_is_left_to_chance(settings, threshold):
    """One vector many times: whichever is drawn, it is that one, and there are enough for all unused codes."""
    theirs, ours = pair(peer, dict(threshold_ema_dead_code=threshold, **settings))
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        x = torch.randn(8, generator=generator).expand(2, 20, 8).contiguous()
        for module in (theirs, ours):
            module(x)
        check_state(theirs, ours)
        for module in (theirs, ours):
            module.expire_codes_(x)
        check_state(theirs, ours)


@pytest.mark.parametrize("training", [True, False])
def test_kmeans_start_agrees_where_nothing_is_left_to_chance(training):
    """As many different vectors as codes: every one of them becomes a code."""
    both = pair(peer, dict(kmeans_init=True, decay=1.0))
    x = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(2))
    theirs, ours = (module.train(training) for module in both)
    results = [module(x) for module in (theirs, ours)]
    torch.testing.assert_close(results[1][0], results[0][0], **TIGHT)
    for module in (theirs, ours):
        assert module._codebook.initted
        torch.testing.assert_close(module._codebook.cluster_size, torch.ones(1, 16))
        torch.testing.assert_close(module.codebook[results[0][1] if module is theirs else results[1][1]], x, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("settings", [dict(), dict(use_cosine_sim=True)])
def test_other_types_of_input_agree_as_far_as_they_can(settings, dtype):
    theirs, ours = pair(peer, settings)
    x = torch.randn(SEQUENCE, generator=torch.Generator().manual_seed(2)).to(dtype)
    results = [module(x) for module in (theirs, ours)]
    assert [value.dtype for value in results[0]] == [value.dtype for value in results[1]]
    tolerance = 1e-6 if dtype == torch.float64 else 2e-2
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=tolerance, atol=tolerance)
    if not settings:  # theirs normalises in the type of the input
        check_state(theirs, ours)


@pytest.mark.parametrize("name", ["euclidean", "diversity-learned", "orthogonal", "in-place", "top", "top-image"])
@pytest.mark.parametrize("training", [True, False])
def test_loss_breakdowns_agree(name, training):
    settings, shape, keywords = SETTINGS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    results = [module.train(training)(x, return_loss_breakdown=True, **keywords) for module in pair(peer, settings)]
    terms = [result[3] for result in results]
    assert terms[0]._fields == terms[1]._fields
    check_outputs(*(tuple(term.detach() for term in part) + (torch.zeros(1),) for part in terms))


@pytest.mark.parametrize(
    "settings",
    [
        dict(straight_through=True),
        dict(straight_through=True, rotation_trick=True),
        dict(directional_reparam=True),
        dict(learnable_codebook=True),
        dict(learnable_codebook=True, ema_update=False, use_cosine_sim=True),
        dict(learnable_codebook=True, ema_update=False, straight_through=True, rotation_trick=False),
        dict(vq_bridge=nn.Identity(), ema_update=True),
        dict(vq_bridge=nn.Identity(), learnable_codebook=False),
        dict(sync_update_v=1.5),
        dict(sync_update_v=0.5),
        dict(affine_param=True, use_cosine_sim=True),
    ],
)
def test_the_same_settings_are_refused(settings):
    for kind in (peer.VectorQuantize, VectorQuantize):
        with pytest.raises(AssertionError):
            kind(dim=8, codebook_size=16, **settings)


def test_chains_agree():
    x, results = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(2)), []
    for library in (peer, compat):
        torch.manual_seed(0)
        quantizer = library.VectorQuantize(dim=8, codebook_size=16)
        chain = library.Sequential(nn.Linear(4, 8), quantizer, nn.Linear(8, 3))
        results.append((chain(x, mask=torch.ones(2, 12, dtype=torch.bool)), chain.state_dict()))
    check_outputs(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1])


@pytest.mark.parametrize(
    "settings",
    [
        dict(commitment_use_cross_entropy_loss=True),
        dict(commitment_use_cross_entropy_loss=True, heads=2, codebook_dim=4, separate_codebook_per_head=True),
        dict(codebook_diversity_loss_weight=0.5),
        dict(codebook_diversity_loss_weight=0.5, codebook_diversity_temperature=2.0, use_cosine_sim=True),
    ],
)
def test_losses_over_all_scores_agree_while_the_codebook_moves(settings):
    """Their gradients do not: theirs are taken with the codebook as it is after the update."""
    theirs, ours = pair(peer, settings)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        x = torch.randn(SEQUENCE, generator=generator)
        check_outputs(theirs(x), ours(x))
        check_state(theirs, ours)
