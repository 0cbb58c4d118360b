"""Derived seeds: fixed for ever, different for different keys."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from runtime.seeding import derive_seed, generator, seed_everything_for_step


def test_the_values_never_change():
    # Runs are resumed with later versions: these numbers are part of the file format.
    assert derive_seed(0) == 6582890487072712790
    assert derive_seed("step", 0, 1, 2) == 2831726950194745209


def test_keys_order_and_type_matter():
    keys = [(1, 2), (2, 1), ("1", 2), (12,), ("12",), (1, 2, 0), ("1", "2"), ("1\x1fi:2",), (-1, 2), ()]
    seeds = [derive_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_numpy_and_torch_integers_are_integers():
    assert derive_seed(np.int64(7)) == derive_seed(torch.tensor(7)) == derive_seed(7)


def test_a_float_is_refused():
    with pytest.raises(TypeError):
        derive_seed(0.5)


def draws() -> tuple:
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()


def test_a_step_is_reproduced_whatever_was_drawn_before():
    seed_everything_for_step(0, 1, 2)
    first = draws()
    draws()
    seed_everything_for_step(0, 1, 2)
    assert draws() == first


@pytest.mark.parametrize("keys", [(1, 1, 2), (0, 0, 2), (0, 1, 3)])
def test_seed_rank_and_step_each_change_every_source(keys):
    seed_everything_for_step(0, 1, 2)
    first = draws()
    seed_everything_for_step(*keys)
    assert all(a != b for a, b in zip(draws(), first))


def test_generators_are_independent_of_the_global_state():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = torch.rand(4, generator=generator("cpu", 5, "noise"))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, torch.rand(4, generator=generator("cpu", 5, "noise")))
    assert not torch.equal(first, torch.rand(4, generator=generator("cpu", 5, "other")))
