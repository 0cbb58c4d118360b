"""Settings of `VectorQuantize` in which it and the package whose signature it has must do the same, and how to compare.

name -> (constructor keywords, input shape, forward keywords or a function of the generator that draws them).
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import torch
from torch import nn

from rqstack.quantizers.compat.vector_quantize_pytorch import VectorQuantize

TIGHT = dict(rtol=1e-5, atol=1e-5)
SEQUENCE, IMAGE, VIDEO, TOKENS, CHANNELS_FIRST = (2, 12, 8), (2, 8, 3, 4), (2, 8, 2, 3, 2), (6, 8), (2, 8, 12)
LEARNED = dict(learnable_codebook=True, ema_update=False)
SGD = partial(torch.optim.SGD, lr=0.5)
FROZEN_CODES = dict(freeze_codebook=True)  # see "the codebook of the backward pass" in docs/migrating.md


def mask_of(generator: torch.Generator) -> torch.Tensor:
    mask_BN = torch.rand(SEQUENCE[:2], generator=generator) < 0.6
    mask_BN[:, 0] = True
    return mask_BN


def masked(generator: torch.Generator) -> dict:
    return dict(mask=mask_of(generator))


def with_lengths(generator: torch.Generator) -> dict:
    return dict(lens=torch.randint(1, SEQUENCE[1] + 1, SEQUENCE[:1], generator=generator))


def with_indices(heads: int | None, generator: torch.Generator) -> dict:
    shape = SEQUENCE[:2] if heads is None else (*SEQUENCE[:2], heads)
    return dict(indices=torch.randint(-1, 16, shape, generator=generator))


def by_position(shape: tuple[int, ...], generator: torch.Generator) -> dict:
    return dict(ema_update_weight=torch.rand(shape, generator=generator))


def own_codes(embed_XKE: torch.Tensor) -> torch.Tensor:
    """Every position has the codebook stretched by its own factor."""
    factor_BN = torch.linspace(0.5, 1.5, 24).view(1, *SEQUENCE[:2], 1, 1)
    return embed_XKE[:, None, None] * factor_BN


def bridge() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))


SETTINGS = {
    "euclidean": ({}, SEQUENCE, {}),
    "cosine": (dict(use_cosine_sim=True), SEQUENCE, {}),
    "decay": (dict(decay=0.99, eps=1e-3), SEQUENCE, {}),
    "commitment-weight": (dict(commitment_weight=0.25), SEQUENCE, {}),
    "no-commitment": (dict(commitment_weight=0.0), SEQUENCE, {}),
    "one-dim": (dict(dim=1), (2, 12, 1), {}),
    "channels-first": (dict(channel_last=False), CHANNELS_FIRST, {}),
    "image": (dict(accept_image_fmap=True), IMAGE, {}),
    "video": (dict(accept_3d_fmap=True), VIDEO, {}),
    "tokens": ({}, TOKENS, {}),
    "tokens-cosine": (dict(use_cosine_sim=True), TOKENS, {}),
    "tokens-heads": (dict(heads=2, codebook_dim=4), TOKENS, {}),
    "projected": (dict(codebook_dim=4), SEQUENCE, {}),
    "projected-layernorm": (dict(codebook_dim=4, layernorm_after_project_in=True), SEQUENCE, {}),
    "projected-cosine": (dict(codebook_dim=4, use_cosine_sim=True), SEQUENCE, {}),
    "projected-image": (dict(codebook_dim=4, accept_image_fmap=True), IMAGE, {}),
    "projected-channels-first": (dict(codebook_dim=4, channel_last=False), CHANNELS_FIRST, {}),
    "shared-heads": (dict(heads=2, codebook_dim=4), SEQUENCE, {}),
    "shared-heads-projected": (dict(heads=4, codebook_dim=4), SEQUENCE, {}),
    "shared-heads-cosine": (dict(heads=2, codebook_dim=4, use_cosine_sim=True), SEQUENCE, {}),
    "separate-heads": (dict(heads=2, codebook_dim=4, separate_codebook_per_head=True), SEQUENCE, {}),
    "separate-heads-projected": (dict(heads=3, codebook_dim=4, separate_codebook_per_head=True), SEQUENCE, {}),
    "separate-heads-cosine": (
        dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, use_cosine_sim=True),
        SEQUENCE,
        {},
    ),
    "separate-heads-image": (
        dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, accept_image_fmap=True),
        IMAGE,
        {},
    ),
    "straight-through": (dict(rotation_trick=False), SEQUENCE, {}),
    "straight-through-flag": (dict(rotation_trick=False, straight_through=True), SEQUENCE, {}),
    "straight-through-cosine": (dict(rotation_trick=False, use_cosine_sim=True), SEQUENCE, {}),
    "no-gradient-to-input": (dict(route_gradients_to_input=False), SEQUENCE, {}),
    "gumbel": (
        dict(
            rotation_trick=False,
            straight_through=True,
            route_gradients_to_input=False,
            sample_codebook_temp=0.3,
            freeze_codebook=True,
        ),
        SEQUENCE,
        {},
    ),
    "gumbel-cosine": (
        dict(
            rotation_trick=False,
            straight_through=True,
            route_gradients_to_input=False,
            use_cosine_sim=True,
            freeze_codebook=True,
        ),
        SEQUENCE,
        {},
    ),
    "masked": ({}, SEQUENCE, masked),
    "masked-keeps-input": (dict(return_zeros_for_masked_padding=False), SEQUENCE, masked),
    "lengths": ({}, SEQUENCE, with_lengths),
    "masked-no-commitment-cosine": (dict(commitment_weight=0.0, use_cosine_sim=True), SEQUENCE, masked),
    "masked-learned": (LEARNED, SEQUENCE, masked),
    "masked-cross-entropy": (dict(commitment_use_cross_entropy_loss=True, **FROZEN_CODES), SEQUENCE, masked),
    "learned": (LEARNED, SEQUENCE, {}),
    "learned-frozen": (dict(**LEARNED, **FROZEN_CODES), SEQUENCE, {}),
    "learned-projected": (dict(codebook_dim=4, **LEARNED), SEQUENCE, {}),
    "learned-separate-heads": (dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, **LEARNED), SEQUENCE, {}),
    "synchronised": (dict(sync_update_v=0.3, **LEARNED), SEQUENCE, {}),
    "synchronised-straight-through": (dict(sync_update_v=1.0, rotation_trick=False, **LEARNED), SEQUENCE, {}),
    "in-place": (dict(in_place_codebook_optimizer=SGD, **LEARNED), SEQUENCE, {}),
    "in-place-masked": (dict(in_place_codebook_optimizer=SGD, **LEARNED), SEQUENCE, masked),
    "in-place-separate-heads": (
        dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, in_place_codebook_optimizer=SGD, **LEARNED),
        SEQUENCE,
        {},
    ),
    "in-place-manual": (
        dict(in_place_codebook_optimizer=SGD, manual_in_place_optimizer_update=True, **LEARNED),
        SEQUENCE,
        {},
    ),
    "in-place-orthogonal": (dict(in_place_codebook_optimizer=SGD, orthogonal_reg_weight=1.0), SEQUENCE, {}),
    "in-place-affine": (dict(in_place_codebook_optimizer=SGD, affine_param=True, **LEARNED), SEQUENCE, {}),
    "directional": (
        dict(directional_reparam=True, directional_reparam_variance=0.0, threshold_ema_dead_code=1e-9),
        SEQUENCE,
        {},
    ),
    "bridge": (lambda: dict(vq_bridge=bridge()), SEQUENCE, {}),
    "bridge-in-place": (lambda: dict(vq_bridge=bridge(), in_place_codebook_optimizer=SGD), SEQUENCE, {}),
    "affine": (dict(affine_param=True), SEQUENCE, {}),
    "affine-decays": (
        dict(affine_param=True, affine_param_batch_decay=0.5, affine_param_codebook_decay=0.3),
        SEQUENCE,
        {},
    ),
    "affine-learned": (dict(affine_param=True, **LEARNED), SEQUENCE, {}),
    "affine-masked": (dict(affine_param=True), SEQUENCE, masked),
    "affine-separate-heads": (
        dict(affine_param=True, heads=2, codebook_dim=4, separate_codebook_per_head=True),
        SEQUENCE,
        {},
    ),
    "orthogonal": (dict(orthogonal_reg_weight=10.0), SEQUENCE, {}),
    "orthogonal-cosine": (dict(orthogonal_reg_weight=10.0, use_cosine_sim=True), SEQUENCE, {}),
    "orthogonal-active": (dict(orthogonal_reg_weight=10.0, orthogonal_reg_active_codes_only=True), SEQUENCE, {}),
    "orthogonal-at-most": (dict(orthogonal_reg_weight=10.0, orthogonal_reg_max_codes=5), SEQUENCE, {}),
    "orthogonal-heads": (
        dict(orthogonal_reg_weight=10.0, heads=2, codebook_dim=4, separate_codebook_per_head=True),
        SEQUENCE,
        {},
    ),
    "orthogonal-learned": (dict(orthogonal_reg_weight=10.0, **LEARNED), SEQUENCE, {}),
    "diversity": (
        dict(codebook_diversity_loss_weight=0.5, codebook_diversity_temperature=3.0, **FROZEN_CODES),
        SEQUENCE,
        {},
    ),
    "diversity-cosine": (
        dict(
            codebook_diversity_loss_weight=0.5, codebook_diversity_temperature=3.0, use_cosine_sim=True, **FROZEN_CODES
        ),
        SEQUENCE,
        {},
    ),
    "diversity-learned": (
        dict(codebook_diversity_loss_weight=0.5, codebook_diversity_temperature=3.0, **LEARNED),
        SEQUENCE,
        {},
    ),
    "diversity-shared-heads": (
        dict(
            codebook_diversity_loss_weight=0.5,
            codebook_diversity_temperature=3.0,
            heads=2,
            codebook_dim=4,
            **FROZEN_CODES,
        ),
        SEQUENCE,
        {},
    ),
    "diversity-separate-heads": (
        dict(
            codebook_diversity_loss_weight=0.5,
            codebook_diversity_temperature=3.0,
            heads=2,
            codebook_dim=4,
            separate_codebook_per_head=True,
            **FROZEN_CODES,
        ),
        SEQUENCE,
        {},
    ),
    "cross-entropy": (dict(commitment_use_cross_entropy_loss=True, **FROZEN_CODES), SEQUENCE, {}),
    "cross-entropy-learned": (dict(commitment_use_cross_entropy_loss=True, **LEARNED), SEQUENCE, {}),
    "cross-entropy-cosine": (
        dict(commitment_use_cross_entropy_loss=True, use_cosine_sim=True, **FROZEN_CODES),
        SEQUENCE,
        {},
    ),
    "cross-entropy-shared-heads": (
        dict(commitment_use_cross_entropy_loss=True, heads=2, codebook_dim=4, **FROZEN_CODES),
        SEQUENCE,
        {},
    ),
    "cross-entropy-separate-heads": (
        dict(
            commitment_use_cross_entropy_loss=True,
            heads=2,
            codebook_dim=4,
            separate_codebook_per_head=True,
            **FROZEN_CODES,
        ),
        SEQUENCE,
        {},
    ),
    "frozen": (FROZEN_CODES, SEQUENCE, {}),
    "frozen-then-not": (FROZEN_CODES, SEQUENCE, dict(freeze_codebook=False)),
    "frozen-now": ({}, SEQUENCE, FROZEN_CODES),
    "no-ema": (dict(ema_update=False), SEQUENCE, {}),
    "no-ema-now": ({}, SEQUENCE, dict(ema_update=False)),
    "manual-ema": (dict(manual_ema_update=True), SEQUENCE, {}),
    "weighted-ema": ({}, SEQUENCE, partial(by_position, (16,))),
    "weighted-ema-heads": (
        dict(heads=2, codebook_dim=4, separate_codebook_per_head=True),
        SEQUENCE,
        partial(by_position, (2, 16)),
    ),
    "weighted-ema-number": ({}, SEQUENCE, dict(ema_update_weight=0.5)),
    "weighted-ema-function": (
        {},
        SEQUENCE,
        dict(ema_update_weight=lambda sums_XKE, counts_XK: (counts_XK > 1).float()),
    ),
    "gathered-ema": ({}, SEQUENCE, dict(accum_ema_update=True)),
    "top": ({}, SEQUENCE, dict(topk=3)),
    "top-cosine": (dict(use_cosine_sim=True), SEQUENCE, dict(topk=3)),
    "top-all": ({}, SEQUENCE, dict(topk=99)),
    "top-image": (dict(accept_image_fmap=True), IMAGE, dict(topk=2)),
    "top-channels-first": (dict(channel_last=False), CHANNELS_FIRST, dict(topk=2)),
    "top-tokens": ({}, TOKENS, dict(topk=2)),
    "top-learned": (LEARNED, SEQUENCE, dict(topk=2)),
    "top-masked": ({}, SEQUENCE, lambda generator: dict(topk=2, mask=mask_of(generator))),
    "top-no-commitment": (dict(commitment_weight=0.0), SEQUENCE, dict(topk=2)),
    "indices": (FROZEN_CODES, SEQUENCE, partial(with_indices, None)),
    "indices-cosine": (dict(use_cosine_sim=True, **FROZEN_CODES), SEQUENCE, partial(with_indices, None)),
    "indices-learned": (LEARNED, SEQUENCE, partial(with_indices, None)),
    "indices-projected": (dict(codebook_dim=4, **FROZEN_CODES), SEQUENCE, partial(with_indices, None)),
    "indices-shared-heads": (dict(heads=2, codebook_dim=4, **FROZEN_CODES), SEQUENCE, partial(with_indices, 2)),
    "indices-separate-heads": (
        dict(heads=2, codebook_dim=4, separate_codebook_per_head=True, **FROZEN_CODES),
        SEQUENCE,
        partial(with_indices, 2),
    ),
    "own-codes": (dict(**LEARNED), SEQUENCE, dict(codebook_transform_fn=own_codes)),
    "own-codes-frozen": (FROZEN_CODES, SEQUENCE, dict(codebook_transform_fn=own_codes)),
    "own-codes-diversity": (
        dict(codebook_diversity_loss_weight=0.5, codebook_diversity_temperature=3.0, **FROZEN_CODES),
        SEQUENCE,
        dict(codebook_transform_fn=own_codes),
    ),
}


def pair(peer: ModuleType, settings: dict) -> tuple[nn.Module, nn.Module]:
    """The peer and ours, made from one seed; the state of the peer loads into ours under its own names."""
    made = []
    for kind in (peer.VectorQuantize, VectorQuantize):
        torch.manual_seed(0)
        made.append(kind(**{"dim": 8, "codebook_size": 16, **(settings() if callable(settings) else settings)}))
    theirs, ours = made
    states = (module.state_dict().items() for module in made)
    for (name, value), (own_name, own_value) in zip(*states, strict=True):
        assert name == own_name
        assert value.shape == own_value.shape
        assert value.dtype == own_value.dtype
        if "codebook_mean" not in name and "codebook_variance" not in name:  # theirs start from memory as it is found
            torch.testing.assert_close(own_value, value, rtol=0, atol=0)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def check_state(theirs: nn.Module, ours: nn.Module) -> None:
    state, own_state = theirs.state_dict(), ours.state_dict()
    assert set(state) == set(own_state)
    for name, value in state.items():
        torch.testing.assert_close(own_state[name], value, msg=lambda text, name=name: f"{name}: {text}", **TIGHT)


def check_outputs(theirs: tuple, ours: tuple) -> None:
    assert len(theirs) == len(ours)
    for value, own_value in zip(theirs, ours, strict=True):
        assert value.dtype == own_value.dtype
        torch.testing.assert_close(own_value, value, **TIGHT)
    if not theirs[1].is_floating_point():
        assert torch.equal(theirs[1], ours[1])


def check_gradients(theirs: nn.Module, ours: nn.Module, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **TIGHT)
    for (name, value), (_, own_value) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in (value, own_value)]
        torch.testing.assert_close(grads[1], grads[0], msg=lambda text, name=name: f"{name}: {text}", **TIGHT)
