"""Terms that compare a reconstruction with its image, beside the pixel term: one table of them.

Legend: B batch, C channels, H W image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from rqvae.losses.config import GANLossConfig
from rqvae.losses.perceptual import PerceptualLoss


@dataclass(frozen=True)
class ImageTerm:
    """A row of the table.

    Attributes:
        weight: its weight, out of the `gan.loss` section; a term without weight is not built.
        build: the module of it, `(recon_BCHW, image_BCHW) -> distances`, whose mean joins the loss.
    """

    weight: Callable[[GANLossConfig], float]
    build: Callable[[GANLossConfig], nn.Module]


IMAGE_TERMS = {
    "perceptual": ImageTerm(
        weight=lambda config: config.perceptual_weight,
        build=lambda config: PerceptualLoss(config.perceptual_backbone),
    ),
}


@dataclass(frozen=True)
class WeightedTerm:
    """A term that a run trains with."""

    name: str
    weight: float
    distance: nn.Module


def build_image_terms(
    config: GANLossConfig | None, place: Callable[[nn.Module], nn.Module] = lambda module: module
) -> list[WeightedTerm]:
    """The terms that a `gan.loss` section gives weight to, in the table's order; none without the section.

    Args:
        config: the section.
        place: brings a module to where it is used.
    """
    if config is None:
        return []
    return [
        WeightedTerm(name, term.weight(config), place(term.build(config)))
        for name, term in IMAGE_TERMS.items()
        if term.weight(config) > 0
    ]
