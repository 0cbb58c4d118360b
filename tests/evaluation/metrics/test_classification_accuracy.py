"""The classification accuracy score: a classifier that has seen samples only, asked about real images."""

from __future__ import annotations

import pytest
import torch

from evaluation.metrics.classification_accuracy import classification_accuracy_score
from evaluation.networks.classifier import ClassifierConfig

CONFIG = ClassifierConfig(resolution=8, dim=16, min_presentations=1000, batch_size=20)
NAME = "cas_classifier16-recipe1-seed0_antialias8_vs_val"


def stripes(num, seed, flip=False):
    """Class 0 dark, class 1 bright, with noise; `flip` asks for the other class."""
    generator = torch.Generator().manual_seed(seed)
    label_N = torch.arange(num) % 2
    image_NCHW = torch.randint(0, 90, (num, 3, 8, 8), generator=generator) + 120 * label_N[:, None, None, None]
    return [(image_NCHW.to(torch.uint8), 1 - label_N if flip else label_N)]


def test_good_samples_teach_the_classes_and_wrong_ones_do_not():
    good = classification_accuracy_score(stripes(80, 0), stripes(40, 1), 2, reference="val", config=CONFIG)
    wrong = classification_accuracy_score(stripes(80, 0, True), stripes(40, 1), 2, reference="val", config=CONFIG)
    assert set(good) == set(wrong) == {NAME}
    assert good[NAME] > 0.9
    assert wrong[NAME] < 0.1


def test_one_mode_only_teaches_one_class():
    collapsed = [(image[:1].repeat(80, 1, 1, 1), torch.arange(80) % 2) for image, _ in stripes(80, 0)]
    score = classification_accuracy_score(collapsed, stripes(40, 1), 2, reference="val", config=CONFIG)
    assert score[NAME] == pytest.approx(0.5, abs=0.2)


def test_no_real_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        classification_accuracy_score(stripes(40, 0), [], 2, reference="val", config=CONFIG)
