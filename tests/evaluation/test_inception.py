from __future__ import annotations

import hashlib

import pytest
import pytorch_fid.inception
import torch

from evaluation.features import build_features
from evaluation.inception import InceptionFeatures, fid_inception_network
from evaluation.weights import FID_INCEPTION, file_sha256


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the format of the published file; batch norms with statistics that are not the defaults."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.manual_seed(0)
    network = fid_inception_network()
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            # Random convolutions shrink their input; this keeps the features of different images apart.
            buffer.uniform_(0.05, 0.2)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def image_BCHW():
    return torch.randint(256, (3, 3, 40, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def features(weights):
    return InceptionFeatures(weights)


def test_features_equal_those_of_pytorch_fid(features, weights, image_BCHW, monkeypatch):
    state = torch.load(weights, weights_only=True)
    monkeypatch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
    peer = pytorch_fid.inception.InceptionV3([3]).eval()
    expected_BF = peer(image_BCHW.float() / 255)[0].flatten(1)
    features_BF, logits_BY = features(image_BCHW)
    assert expected_BF.std(0).mean() > 1e-3
    torch.testing.assert_close(features_BF, expected_BF, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_BY, expected_BF @ state["fc.weight"].T, rtol=1e-4, atol=1e-5)
    assert logits_BY.shape == (3, 1008)


def test_grey_images_and_autocast(features, image_BCHW):
    grey_BCHW = image_BCHW[:1, :1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features_BF, _ = features(grey_BCHW)
    assert features_BF.dtype == torch.float32
    assert torch.equal(features_BF, features(grey_BCHW.repeat(1, 3, 1, 1))[0])
    with pytest.raises(ValueError, match="float32"):
        features(image_BCHW.float())


def test_other_weights_carry_their_hash_in_the_label(features, weights):
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert file_sha256(weights) == features.fingerprint == sha256
    assert features.label == f"inception2048-{sha256[:8]}"
    assert (features.name, features.dim, features.num_classes, features.resize) == (
        "inception",
        2048,
        1008,
        "bilinear299",
    )


def test_weights_are_found_by_environment(weights, monkeypatch, features):
    monkeypatch.setenv(FID_INCEPTION.environment, str(weights))
    assert build_features("inception").fingerprint == features.fingerprint


def test_missing_weights_say_where_to_put_them(monkeypatch, tmp_path):
    monkeypatch.delenv(FID_INCEPTION.environment, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        build_features("inception")
    message = str(error.value)
    assert "\n" not in message
    for part in (str(tmp_path), FID_INCEPTION.environment, FID_INCEPTION.url, "classifier"):
        assert part in message
    with pytest.raises(FileNotFoundError, match="nowhere"):
        InceptionFeatures(tmp_path / "nowhere.pth")


def test_damaged_and_foreign_files_are_errors(tmp_path):
    damaged = tmp_path / FID_INCEPTION.file_name
    damaged.write_bytes(b"half a file")
    with pytest.raises(ValueError, match=r"damaged.*not 6726825d"):
        InceptionFeatures(damaged)
    foreign = tmp_path / "foreign.pth"
    torch.save({"layer.weight": torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match="does not hold the FID Inception weights"):
        InceptionFeatures(foreign)
    foreign.write_bytes(b"not a weight file")
    with pytest.raises(ValueError, match="does not hold the FID Inception weights"):
        InceptionFeatures(foreign)
