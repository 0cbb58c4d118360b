"""Feature networks by name. Axes: B batch, C channels, H W image, F features, Y classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

# the names are choices of a flag, which are read before torch is imported
if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from evaluation.networks.classifier_training import ClassifierConfig

    LabelledBatches = Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]]


class FeatureExtractor(Protocol):
    """What scores need of a feature network.

    Attributes:
        name: what the user asked for (`inception`, `classifier`, ...).
        label: its part of a metric's name; differs whenever the numbers cannot be compared.
        resize: name of the resize that images go through.
        dim, num_classes: sizes of the two outputs; 0 classes where the network has no logits.
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


class SpatialExtractor(FeatureExtractor, Protocol):
    """A feature network that also sees where things are.

    Attributes:
        spatial_dim, spatial_label: of the features that `with_spatial` adds.
    """

    spatial_dim: int
    spatial_label: str

    def with_spatial(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 images -> features (B, F), logits (B, Y) and spatial features (B, S)."""


def spatial_extractor(extractor: FeatureExtractor) -> SpatialExtractor:
    """The same network, when it has spatial features.

    Raises:
        ValueError: it has none.
    """
    if not hasattr(extractor, "with_spatial"):
        raise ValueError(f"{extractor.name} has no spatial features: sFID needs the inception features")
    return cast(SpatialExtractor, extractor)


def build_features(
    name: str,
    *,
    device: torch.device | str = "cpu",
    weights: str | Path | None = None,
    resize: str = "bilinear",
    train: Callable[[], LabelledBatches] | None = None,
    validation: Callable[[], LabelledBatches] | None = None,
    num_classes: int | None = None,
    cache_dir: str | Path | None = None,
    config: ClassifierConfig | None = None,
) -> FeatureExtractor:
    """The feature network called `name`.

    `inception`, or `inception64`, `inception192`, `inception768` for its earlier layers: the FID network. `classifier`:
    a small one trained on the data set itself. `efficientnet-lite0`: trained on ImageNet, with weights that a package
    ships. `clip` or `clip:ARCHITECTURE[/TAG]`, `dinov2` or `timm:MODEL`: networks of the optional packages open_clip
    and timm.

    Args:
        device: where it runs.
        weights: weight file; None looks for Inception's in the environment and torch hub's cache, for the others where
            their packages keep them.
        resize: of Inception, a name of `resizes.RESIZES`; the other networks have one of their own.
        train, validation: called for the batches of the data set's own splits when the classifier needs them.
        num_classes: classes of the data set.
        cache_dir: where trained classifiers are kept; None keeps none.
        config: settings of the classifier.

    Raises:
        ValueError: unknown name or resize, a missing package, or the classifier without `train` and `num_classes`.
        FileNotFoundError: no weights.
    """
    if name not in FEATURES:
        raise ValueError(
            f"unknown features {name!r}: choose one of {', '.join(FEATURES)}, "
            + ", ".join(f"{kind}:NAME" for kind in _WITH_DETAIL)
        )
    kind, _, detail = name.partition(":")
    if resize != "bilinear" and not name.startswith("inception"):
        raise ValueError(f"{name} has a resize of its own: resize {resize!r} is for inception")
    return (_WITH_DETAIL[kind] if detail else _BUILDERS[name])(
        name=name,
        detail=detail,
        device=device,
        weights=weights,
        resize=resize,
        train=train,
        validation=validation,
        num_classes=num_classes,
        cache_dir=cache_dir,
        config=config,
    )


def _build_inception(
    *, name: str, device: torch.device | str, weights: str | Path | None, resize: str, **_: object
) -> FeatureExtractor:
    from evaluation.networks.inception import InceptionFeatures

    return InceptionFeatures(weights, device, dim=int(name.removeprefix("inception") or 2048), resize=resize)


def _build_clip(
    *, detail: str, device: torch.device | str, weights: str | Path | None, **_: object
) -> FeatureExtractor:
    from evaluation.networks.clip_features import DEFAULT_CLIP, ClipFeatures

    return ClipFeatures(detail or DEFAULT_CLIP, weights, device)


def _build_efficientnet(*, device: torch.device | str, weights: str | Path | None, **_: object) -> FeatureExtractor:
    from evaluation.networks.efficientnet_features import EfficientNetFeatures

    return EfficientNetFeatures(weights, device)


def _build_timm(
    *, detail: str, device: torch.device | str, weights: str | Path | None, **_: object
) -> FeatureExtractor:
    from evaluation.networks.timm_features import DEFAULT_DINOV2, TimmFeatures

    return TimmFeatures(detail or DEFAULT_DINOV2, weights, device)


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
    from evaluation.networks.classifier import train_classifier

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


_BUILDERS: dict[str, Callable[..., FeatureExtractor]] = {
    "inception": _build_inception,
    "classifier": _build_classifier,
    "efficientnet-lite0": _build_efficientnet,
    "inception64": _build_inception,
    "inception192": _build_inception,
    "inception768": _build_inception,
    "clip": _build_clip,
    "dinov2": _build_timm,
}
_WITH_DETAIL: dict[str, Callable[..., FeatureExtractor]] = {"clip": _build_clip, "timm": _build_timm}


class FeatureNames(tuple):
    """The names of feature networks; `in` also takes those that name a model, such as `clip:ViT-L-14`."""

    def __contains__(self, name: object) -> bool:
        kind, _, detail = str(name).partition(":")
        return super().__contains__(name) or bool(kind in _WITH_DETAIL and detail)


FEATURES = FeatureNames(_BUILDERS)
