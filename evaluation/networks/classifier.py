"""A small convolutional classifier, trained once on a data set's own training split: the offline feature network.

Its numbers are always labelled `classifier` and carry its key, because they compare with nothing but themselves.
Axes: B batch, C channels, H W image, N images, F features, Y classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.networks.classifier_cache import read_cached, write_cached
from evaluation.networks.classifier_training import (
    RECIPE,
    ClassifierConfig,
    ClassifierNetwork,
    fit_network,
    new_network,
)
from evaluation.protocol import check_uint8_images, from_uint8, to_uint8


class ClassifierFeatures:
    """uint8 images -> (features (B, F), logits (B, Y)), float32; see `train_classifier`.

    Attributes:
        fingerprint: the cache key: hash of training data, settings and kind of device.
        accuracy: share of the validation split it recognises; None when it was trained without one.
    """

    name = "classifier"
    recognises_labels = True

    def __init__(
        self,
        network: ClassifierNetwork,
        config: ClassifierConfig,
        fingerprint: str,
        accuracy: float | None = None,
        device: torch.device | str = "cpu",
    ):
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.config = config
        self.fingerprint = fingerprint
        self.accuracy = accuracy
        self.dim = config.dim
        self.num_classes = network.classify.out_features
        self.resize = f"antialias{config.resolution}"
        self.label = f"classifier{config.dim}-{fingerprint[:8]}"

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of a batch of uint8 images of any size.

        Raises:
            ValueError: not a batch of uint8 images.
        """
        image_BCHW = _resized(check_uint8_images(image_BCHW).to(self.device), self.config.resolution)
        with torch.autocast(self.device.type, enabled=False):
            return self.network(from_uint8(image_BCHW))

    def predict(self, image_BCHW: Tensor) -> Tensor:
        """Most probable class of every image, (B,) int64."""
        return self(image_BCHW)[1].argmax(1)

    def accuracy_on(self, batches: Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]]) -> float:
        """Share of labelled images (uint8, or float in [-1, 1]) whose label it recognises.

        Raises:
            ValueError: there are no images.
        """
        correct = total = 0
        for image_BCHW, label_B in _labelled(batches):
            correct += int((self.predict(image_BCHW).cpu() == label_B).sum())
            total += len(label_B)
        if not total:
            raise ValueError("the accuracy of no images is not defined")
        return correct / total


@torch.inference_mode(False)
@torch.enable_grad()
def train_classifier(
    train: Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    validation: Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]] | None = None,
    config: ClassifierConfig | None = None,
    cache_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> ClassifierFeatures:
    """The classifier of a training split: from `cache_dir` when data and settings are known there, else trained.

    Trained where it will run, from its own generator: a function of data, settings and kind of device, and the global
    random state is left alone. A GPU rounds otherwise than a CPU: its classifier has another key. Every rank must be
    given the whole split.

    Args:
        train: batches of (image, label) or mappings with these keys; images uint8, or float in [-1, 1].
        num_classes: number of classes, at least 2.
        validation: the same for the validation split; gives `.accuracy`.
        cache_dir: directory of cached classifiers (safetensors); None trains every time.
        device: where it is trained and runs.

    Raises:
        ValueError: fewer than two classes, no images, or labels outside 0..num_classes-1.
    """
    config = config or ClassifierConfig()
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, the data set has {num_classes}: use other features")
    image_NCHW, label_N = _collect(train, config)
    if label_N.min() < 0 or label_N.max() >= num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {label_N.min()}..{label_N.max()}")
    device = torch.device(device)
    key = _cache_key(image_NCHW, label_N, num_classes, config, device)
    network = new_network(num_classes, config).to(device)
    path = None if cache_dir is None else Path(cache_dir) / f"classifier-{key[:32]}.safetensors"
    cached = None if path is None else read_cached(path, network, key)
    if cached is not None:
        network.load_state_dict(cached)
    else:
        fit_network(network, image_NCHW.to(device), label_N.to(device), config)
        if path is not None:
            write_cached(path, network, key, asdict(config))
    features = ClassifierFeatures(network, config, key, device=device)
    features.accuracy = None if validation is None else features.accuracy_on(validation)
    return features


def _labelled(batches: Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """uint8 images and CPU int64 labels of every batch."""
    for batch in batches:
        image_BCHW, label_B = (batch["image"], batch["label"]) if isinstance(batch, Mapping) else batch
        image_BCHW = to_uint8(image_BCHW) if image_BCHW.is_floating_point() else image_BCHW
        yield check_uint8_images(image_BCHW), label_B.detach().cpu().long()


def _resized(image_BCHW: Tensor, resolution: int) -> Tensor:
    """uint8 images at `resolution`, rounded back to uint8 so that training and scoring see the same pixels."""
    if image_BCHW.shape[2:] == (resolution, resolution):
        return image_BCHW
    size = (resolution, resolution)
    resized_BCHW = F.interpolate(image_BCHW.float(), size, mode="bilinear", align_corners=False, antialias=True)
    return resized_BCHW.round_().to(torch.uint8)


def _collect(
    train: Iterable[Mapping[str, Tensor] | tuple[Tensor, Tensor]], config: ClassifierConfig
) -> tuple[Tensor, Tensor]:
    """The training split in memory; more than `max_images` are thinned by reservoir sampling (Vitter's algorithm R)."""
    generator = torch.Generator().manual_seed(config.seed)
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for image_BCHW, label_B in _labelled(train):
        for image_CHW, label in zip(_resized(image_BCHW.cpu(), config.resolution), label_B):
            if count < config.max_images:
                # A copy of its own, so that a kept image does not hold its whole batch in memory.
                images.append(image_CHW.clone())
                labels.append(label)
            elif (slot := int(torch.randint(count + 1, (), generator=generator))) < config.max_images:
                images[slot], labels[slot] = image_CHW.clone(), label
            count += 1
    if not images:
        raise ValueError("the training split of the classifier holds no images")
    return torch.stack(images), torch.stack(labels)


def _cache_key(
    image_NCHW: Tensor, label_N: Tensor, num_classes: int, config: ClassifierConfig, device: torch.device
) -> str:
    elsewhere = [] if device.type == "cpu" else [device.type]
    digest = hashlib.sha256(json.dumps([RECIPE, num_classes, asdict(config), *elsewhere], sort_keys=True).encode())
    digest.update(image_NCHW.contiguous().numpy().tobytes())
    digest.update(label_N.numpy().tobytes())
    return digest.hexdigest()
