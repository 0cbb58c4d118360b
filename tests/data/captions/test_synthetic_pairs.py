"""Pairs of shapes: pictures that are what their captions say, captions kept apart by split."""

import numpy as np
import pytest
import torch

from data import DatasetConfig, build_dataset
from data.captions.pair_grammar import (
    CAPTION_LENGTH,
    CHOICES,
    COLOURS,
    RELATIONS,
    SHAPES,
    Scene,
    pair_vocabulary,
    parse_pair_caption,
    tokenize_pair_caption,
)
from data.captions.synthetic_pairs import NUM_SCENES, draw_pairs

EXAMPLE = "a large red circle above a small blue square"


def _pair(**settings):
    config = DatasetConfig(type="synthetic-pairs", **settings)
    return build_dataset(config, "train"), build_dataset(config, "val")


def _draw(*captions: str, side: int = 32) -> torch.Tensor:
    """Pictures with every object at its middle place and shade."""
    numbers = [[choices.index(word) for choices, word in zip(CHOICES, parse_pair_caption(text))] for text in captions]
    return draw_pairs(np.array(numbers), torch.full((len(captions), 11), 0.5), side).float()


def test_captions_in_words_and_tokens():
    scene = parse_pair_caption(EXAMPLE)
    assert scene == Scene("large", "red", "circle", "above", "small", "blue", "square")
    assert scene.caption() == EXAMPLE
    vocabulary = pair_vocabulary()
    assert vocabulary[0] == "<pad>" and len(set(vocabulary)) == len(vocabulary) == 19
    assert [vocabulary[token] for token in tokenize_pair_caption(EXAMPLE)] == [*EXAMPLE.split(), "<pad>"]
    longest = EXAMPLE.replace("above", "right of")
    assert len(longest.split()) == CAPTION_LENGTH
    assert [vocabulary[token] for token in tokenize_pair_caption(longest, 12)] == [*longest.split(), "<pad>", "<pad>"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a large red circle",
        EXAMPLE.replace("red", "purple"),
        EXAMPLE.replace("above", "near"),
        f"{EXAMPLE} today",
        EXAMPLE.replace("a small", "the small"),
        "red a large circle above a small blue square",
    ],
)
def test_text_outside_the_grammar_is_refused(text):
    with pytest.raises(ValueError, match=f"caption '{text}' is not of the form"):
        tokenize_pair_caption(text)


def test_too_long_for_the_context_is_refused():
    with pytest.raises(ValueError, match="has 9 words, more than context_length 8"):
        tokenize_pair_caption(EXAMPLE, 8)
    with pytest.raises(ValueError, match="context_length 8 is too short"):
        _pair(context_length=8)
    with pytest.raises(ValueError, match="mirrored"):
        _pair(hflip=True)


@pytest.mark.parametrize("relation", RELATIONS)
def test_objects_lie_where_the_relation_says(relation):
    (image_CHW,) = _draw(f"a large red circle {relation} a small blue circle")
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def centre(channel: int, other: int) -> tuple[float, float]:
        mask_HW = (image_CHW[channel] - image_CHW[other]).clamp(min=0)
        return ((rows * mask_HW).sum() / mask_HW.sum()).item(), ((columns * mask_HW).sum() / mask_HW.sum()).item()

    (red_row, red_column), (blue_row, blue_column) = centre(0, 2), centre(2, 0)
    distance = {
        "above": blue_row - red_row,
        "below": red_row - blue_row,
        "left of": blue_column - red_column,
        "right of": red_column - blue_column,
    }
    assert distance[relation] == pytest.approx(16, abs=0.5)
    assert sum(abs(value) > 0.5 for value in distance.values()) == 2


def test_both_orders_of_words_are_one_picture():
    pictures = _draw(
        EXAMPLE,
        "a small blue square below a large red circle",
        "a small red cross left of a large white triangle",
        "a large white triangle right of a small red cross",
    )
    assert torch.equal(pictures[0], pictures[1]) and torch.equal(pictures[2], pictures[3])
    assert not torch.equal(pictures[0], pictures[2])


@pytest.mark.parametrize("colour", COLOURS)
def test_colours(colour):
    (image_CHW,) = _draw(f"a large {colour} square above a small {colour} circle")
    assert image_CHW[:, 8, 16].tolist() == list(COLOURS[colour])
    assert image_CHW[:, 24, 16].tolist() == list(COLOURS[colour])
    assert image_CHW[:, 0, 0].tolist() == [20, 20, 20]


def test_every_shape_and_size_is_another_picture():
    texts = [f"a {size} red {shape} above a {size} red {shape}" for size in ("small", "large") for shape in SHAPES]
    pictures = _draw(*texts).flatten(1)
    distances = torch.cdist(pictures, pictures) + 1e9 * torch.eye(len(texts))
    assert distances.min() > 300


def test_scenes_of_the_splits_are_apart_and_cover_the_grammar():
    train, val = _pair(num_samples=3000, val_fraction=0.2)
    assert (len(train), len(val)) == (3000, 600)
    assert len(train.scenes_S) + len(val.scenes_S) == NUM_SCENES == 48 * 48 * 4
    assert not set(train.scenes_S) & set(val.scenes_S)
    assert not set(train.captions(range(3000))) & set(val.captions(range(600)))
    for dataset in (train, val):
        for position, choices in enumerate(CHOICES):
            assert {scene[position] for scene in dataset.scenes(range(len(dataset)))} == set(choices)
    other = build_dataset(DatasetConfig(type="synthetic-pairs", split_seed=1), "val")
    assert set(other.scenes_S) != set(val.scenes_S)


def test_batches_hold_what_the_captions_say():
    train, val = _pair(num_samples=100)
    vocabulary = pair_vocabulary()
    for dataset in (train, val):
        for index, caption in enumerate(dataset.captions(range(10))):
            item = dataset[index]
            assert [vocabulary[token] for token in item["cond"] if token] == caption.split()
            assert dataset.class_names[item["label"]] == caption.split()[3]
            assert item["image"].shape == (3, 32, 32)
    again, _ = _pair(num_samples=5000)
    together = again.fetch(np.arange(3, 50), None)["image"]
    assert torch.equal(together[4], train.fetch(np.array([7]), None)["image"][0])
    assert train.captions([7]) == again.captions([7])


def test_random_shift_is_for_training_alone():
    train, val = _pair(num_samples=50, random_shift=2)
    keys = np.arange(5)
    assert not torch.equal(train.fetch(keys, keys)["image"], train.fetch(keys, None)["image"])
    assert torch.equal(val.fetch(keys, keys)["image"], val.fetch(keys, None)["image"])
