"""The split of an image depends on its name and the seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from data.splits import split_by_name

NAMES = [f"class{number % 7}/picture {number}.png" for number in range(3000)]


def held_out(names, fraction=0.1, seed=0):
    return {names[index] for index in split_by_name(names, fraction, seed)[1]}


def test_every_image_is_on_one_side_and_about_the_fraction_is_held_out():
    train_N, val_N = split_by_name(NAMES, 0.1, 0)
    assert sorted([*train_N, *val_N]) == list(range(3000))
    assert (np.diff(train_N) > 0).all() and (np.diff(val_N) > 0).all()
    assert 250 < len(val_N) < 350
    per_class = np.bincount([number % 7 for number in val_N], minlength=7)
    assert per_class.min() > 20


def test_images_that_come_or_go_move_no_other():
    before = held_out(NAMES)
    assert held_out(NAMES[1:]) == before - {NAMES[0]}
    more = NAMES + [f"new/{number}.png" for number in range(500)]
    assert held_out(more) & set(NAMES) == before
    assert held_out(NAMES[::-1]) == before


def test_a_smaller_fraction_of_the_same_seed_is_part_of_a_larger_and_another_seed_is_another_choice():
    assert held_out(NAMES, 0.05) < held_out(NAMES, 0.1) < held_out(NAMES, 0.5)
    assert len(held_out(NAMES, seed=1) & held_out(NAMES)) < 80


def test_endings_and_spellings_of_the_same_letters_are_no_part_of_the_name():
    stems = [name.removesuffix(".png") for name in NAMES]
    assert {f"{stem}.png" for stem in held_out(stems)} == held_out(NAMES)
    assert {
        f"{stem}.png" for stem in (name.removesuffix(".JPG") for name in held_out([f"{s}.JPG" for s in stems]))
    } == (held_out(NAMES))
    composed = [f"müller/{number}" for number in range(100)]
    decomposed = [f"mu\u0308ller/{number}" for number in range(100)]
    np.testing.assert_array_equal(split_by_name(composed, 0.2, 0)[1], split_by_name(decomposed, 0.2, 0)[1])


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.999])
def test_a_handful_of_images_has_two_sides(count, fraction):
    for seed in range(20):
        assert all(map(len, split_by_name(NAMES[:count], fraction, seed)))


def test_what_cannot_be_split():
    for names in ([], ["a.png"], ["a.png", "a.jpg"]):
        with pytest.raises(ValueError, match=f"of {len(names)} images leaves a split without images"):
            split_by_name(names, 0.1, 0)


def test_names_that_are_no_text_are_split_too():
    assert all(map(len, split_by_name([f"\udcff{number}.png" for number in range(40)], 0.3, 0)))


def test_the_choice_is_fixed_for_good():
    """Runs that are resumed hold out what they held out."""
    assert split_by_name([f"{number}" for number in range(60)], 0.1, 0)[1].tolist() == FIXED


FIXED = [5, 22, 31, 42, 50]
