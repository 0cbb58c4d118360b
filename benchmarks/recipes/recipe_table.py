"""The recipes: one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        about: what it is.
        hardware: what it is sized for.
        stage1, stage2: its YAML files.
        words1, words2: values that differ from them.
        features: of all scores.
        num_samples: images that are scored; of text, one for each validation caption.
        cfg_scale: guidance of the samples; None: none.
        text: conditioned on captions.
    """

    about: str
    hardware: str
    stage1: str
    stage2: str
    words1: tuple[str, ...] = ()
    words2: tuple[str, ...] = ()
    features: str = "classifier"
    num_samples: int = 5000
    cfg_scale: float | None = None
    text: bool = False


def _fashion(codes: str) -> Recipe:
    """With averaged weights and scores while training, which the YAML files leave out."""
    folder, every = "configs/fashion-mnist", "experiment.score.every_steps"
    scores = ("arch.ema=0.999", "experiment.score.features=classifier", "experiment.score.num_images=2000")
    return Recipe(
        f"Fashion-MNIST 32x32 by class, codes {codes}",
        "one GPU",
        f"{folder}/stage1/fashion-mnist-rqvae-{codes}.yaml",
        f"{folder}/stage2/fashion-mnist-rqtransformer-{codes}.yaml",
        (*scores, f"{every}=2345"),
        (*scores, f"{every}=4690", "vqvae.ema=true"),
    )


def _small_fashion() -> Recipe:
    """The models of `benchmarks.paper_claims`, trained for longer and with averaged weights."""
    folder, name = "configs/fashion-mnist", "fashion-mnist-16"
    words = ("arch.ema=0.995", "experiment.score.features=classifier", "experiment.score.num_images=1000")
    lengths1 = ("experiment.max_steps=2000", "experiment.test_steps=500", "experiment.save_steps=500")
    lengths2 = ("experiment.max_steps=3000", "experiment.test_steps=1000", "experiment.save_steps=1000")
    every = "experiment.score.every_steps"
    return Recipe(
        "Fashion-MNIST 16x16 by class, codes 4x4x4",
        "2 CPU cores",
        f"{folder}/stage1/{name}-rqvae.yaml",
        f"{folder}/stage2/{name}-rqtransformer.yaml",
        (*words, *lengths1, f"{every}=1000"),
        (*words, *lengths2, f"{every}=1000", "vqvae.ema=true"),
        num_samples=2000,
    )


def _openmoji(side: int, hardware: str) -> Recipe:
    folder = "configs/openmoji"
    return Recipe(
        f"OpenMoji {side}x{side} by caption",
        hardware,
        f"{folder}/stage1/openmoji-{side}-rqvae.yaml",
        f"{folder}/stage2/openmoji-{side}-rqtransformer.yaml",
        features="efficientnet-lite0",
        cfg_scale=2.0,
        text=True,
    )


RECIPES = {
    "fashion-mnist-16": _small_fashion(),
    **{f"fashion-mnist-{codes}": _fashion(codes) for codes in ("4x4x4", "8x8x1", "8x8x4")},
    "openmoji-32": _openmoji(32, "2 CPU cores"),
    "openmoji-64": _openmoji(64, "one GPU"),
}
