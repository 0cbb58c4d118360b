"""How well images show the class they were asked for: the log probability a classifier gives it.

Axes: B batch, C channels, H W image, Y classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from evaluation.networks.feature_networks import FeatureExtractor
from evaluation.networks.weight_files import file_sha256
from evaluation.networks.weight_loading import load_exactly, read_state_dict
from evaluation.protocol import check_uint8_images
from rqstack.printable import first_line

OWN_CLASSIFIER = "classifier"


class ClassJudge(Protocol):
    """Images and the classes asked for -> scores; `label` names the network and its weights."""

    label: str

    def __call__(self, image_BCHW: Tensor, label_B: Tensor) -> Tensor:
        """uint8 images and classes -> log probabilities (B,), float32."""


class FeatureJudge:
    """The classifier trained on the data set itself (`classifier`), whose classes must be the model's."""

    def __init__(self, extractor: FeatureExtractor, num_classes: int):
        if not extractor.recognises_labels:
            raise ValueError(f"{extractor.name} does not know the data set's classes: it cannot judge samples")
        if extractor.num_classes != num_classes:
            raise ValueError(
                f"the data set's classifier knows {extractor.num_classes} classes, the model has "
                f"{num_classes}: it cannot judge samples"
            )
        self.extractor, self.label = extractor, extractor.label

    def __call__(self, image_BCHW: Tensor, label_B: Tensor) -> Tensor:
        return _log_probability(self.extractor(image_BCHW)[1], label_B)


class TorchvisionJudge:
    """A classifier of torchvision's model zoo, with the resize, crop and normalisation of its published weights.

    Args:
        name: of the model, such as resnet101; its classes must be the data set's, in the same order.
        num_classes: of the model.
        path: state dict (`.pt`, `.pth` or `.safetensors`); None looks for the published file in torch hub's cache.
            Nothing is downloaded.

    Raises:
        ValueError: no such model, or the file holds another network. FileNotFoundError: no weights.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        path: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
    ):
        from torchvision import models  # takes a second to import

        if name not in models.list_models(module=models):
            raise ValueError(
                f"{name!r} is neither {OWN_CLASSIFIER!r} nor a classifier of torchvision, such as "
                "resnet101 or resnet101:FILE"
            )
        published = models.get_model_weights(name).DEFAULT
        file = _weight_file(published.url, path)
        self.device = torch.device(device)
        self.label = f"{name}-{file_sha256(file)[:8]}"
        self.transform = published.transforms()
        network = models.get_model(name, weights=None, num_classes=num_classes)
        try:
            load_exactly(network, read_state_dict(file))
        except Exception as error:
            raise ValueError(
                f"{file} does not hold the weights of {name} for {num_classes} classes: {first_line(error)}"
            ) from error
        self.network = network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def __call__(self, image_BCHW: Tensor, label_B: Tensor) -> Tensor:
        image_BCHW = self.transform(check_uint8_images(image_BCHW).to(self.device))
        with torch.autocast(self.device.type, enabled=False):
            return _log_probability(self.network(image_BCHW), label_B)


def build_judge(
    spec: str, *, num_classes: int, own_classifier: Callable[[], FeatureExtractor], device: torch.device | str = "cpu"
) -> ClassJudge:
    """`classifier`, a torchvision model name, or NAME:FILE -> judge.

    Args:
        own_classifier: called for the data set's own classifier, when that is asked for.

    Raises:
        ValueError, FileNotFoundError: see `TorchvisionJudge`.
    """
    if spec == OWN_CLASSIFIER:
        return FeatureJudge(own_classifier(), num_classes)
    name, _, path = spec.partition(":")
    return TorchvisionJudge(name, num_classes, path or None, device)


def _log_probability(logits_BY: Tensor, label_B: Tensor) -> Tensor:
    return logits_BY.float().log_softmax(1).gather(1, label_B.to(logits_BY.device)[:, None]).squeeze(1)


def _weight_file(url: str, path: str | os.PathLike[str] | None) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    found = Path(path or cached).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"no weights at {found}: download {url} and put it at {cached}, or give NAME:FILE")
    return found
