"""The table of terms that compare a reconstruction with its image: a row with weight is built, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rqvae.losses import GANLossConfig, build_image_terms
from rqvae.losses.image_terms import IMAGE_TERMS, ImageTerm


class Contrast(nn.Module):
    """A distance of the spreads of two images."""

    def forward(self, recon_BCHW: Tensor, image_BCHW: Tensor) -> Tensor:
        return (recon_BCHW.flatten(1).std(1) - image_BCHW.flatten(1).std(1)).abs()


def test_terms_without_weight_are_not_built():
    assert build_image_terms(None) == []
    assert build_image_terms(GANLossConfig(perceptual_weight=0.0)) == []
    with pytest.raises(FileNotFoundError, match="no VGG16 weights"):
        build_image_terms(GANLossConfig(perceptual_weight=0.5, perceptual_backbone="missing.pth"))


def test_a_row_is_all_that_a_new_term_needs(monkeypatch):
    row = ImageTerm(weight=lambda config: 0.5, build=lambda config: Contrast())
    monkeypatch.setitem(IMAGE_TERMS, "contrast", row)
    placed = []
    terms = build_image_terms(GANLossConfig(perceptual_weight=0.0), lambda module: placed.append(module) or module)
    assert [(term.name, term.weight) for term in terms] == [("contrast", 0.5)]
    assert placed == [terms[0].distance]
    assert terms[0].distance(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)).tolist() == [0.0, 0.0]
