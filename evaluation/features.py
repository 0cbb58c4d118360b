"""Feature networks by name. Axes: B batch, C channels, H W image, F features, Y classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from evaluation.classifier import ClassifierConfig, train_classifier

LabelledBatches = Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]]


class FeatureExtractor(Protocol):
    """What scores need of a feature network.

    Attributes:
        name: what the user asked for (`inception`, `classifier`).
        label: its part of a metric's name; differs whenever the numbers cannot be compared.
        resize: name of the resize that images go through.
        dim, num_classes: sizes of the two outputs.
        fingerprint: hash of the weights (or of everything that decides them).
        recognises_labels: the logits are over the data set's own classes.
        device: where it runs and where its outputs are.
    """

    name: str
    label: str
    resize: str
    dim: int
    num_classes: int
    fingerprint: str
    recognises_labels: bool
    device: torch.device

    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images -> float32 features (B, F) and logits (B, Y)."""


def build_features(
    name: str,
    *,
    device: torch.device | str = "cpu",
    weights: str | Path | None = None,
    train: Callable[[], LabelledBatches] | None = None,
    validation: Callable[[], LabelledBatches] | None = None,
    num_classes: int | None = None,
    cache_dir: str | Path | None = None,
    config: ClassifierConfig | None = None,
) -> FeatureExtractor:
    """The feature network called `name`: `inception` (uses `weights`) or `classifier` (uses all the rest).

    Args:
        device: where it runs.
        weights: weight file of `inception`; None looks in the environment and torch hub's cache.
        train, validation: called for the batches of the data set's own splits when the classifier needs them.
        num_classes: classes of the data set.
        cache_dir: where trained classifiers are kept; None keeps none.
        config: settings of the classifier.

    Raises:
        ValueError: unknown name, or the classifier without `train` and `num_classes`.
        FileNotFoundError: no Inception weights.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown features {name!r}: choose one of {', '.join(_BUILDERS)}")
    return _BUILDERS[name](
        device=device,
        weights=weights,
        train=train,
        validation=validation,
        num_classes=num_classes,
        cache_dir=cache_dir,
        config=config,
    )


def _build_inception(*, device: torch.device | str, weights: str | Path | None, **_: object) -> FeatureExtractor:
    from evaluation.inception import InceptionFeatures  # torchvision's model zoo takes a second to import

    return InceptionFeatures(weights, device)


def _build_classifier(
    *,
    device: torch.device | str,
    train: Callable[[], LabelledBatches] | None,
    validation: Callable[[], LabelledBatches] | None,
    num_classes: int | None,
    cache_dir: str | Path | None,
    config: ClassifierConfig | None,
    **_: object,
) -> FeatureExtractor:
    if train is None or num_classes is None:
        raise ValueError("the classifier features need the data set's training split and its number of classes")
    return train_classifier(
        train(),
        num_classes,
        validation=None if validation is None else validation(),
        config=config,
        cache_dir=cache_dir,
        device=device,
    )


_BUILDERS: dict[str, Callable[..., FeatureExtractor]] = {"inception": _build_inception, "classifier": _build_classifier}
FEATURES = tuple(_BUILDERS)
