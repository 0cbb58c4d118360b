from __future__ import annotations

import hashlib

import pytest
import pytorch_fid.inception
import torch

from evaluation.networks import inception
from evaluation.networks.feature_networks import build_features
from evaluation.networks.inception import SPATIAL_DIM, InceptionFeatures
from evaluation.networks.weight_files import FID_INCEPTION, file_sha256
from evaluation.resizes import RESIZES
from runtime.device import ieee_fp32
from tests.evaluation.random_inception import write_random_weights

DIMS = (64, 192, 768, 2048)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_random_weights(tmp_path_factory.mktemp("inception") / "random.pth")


@pytest.fixture
def image_BCHW():
    return torch.randint(256, (3, 3, 40, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def features(weights):
    return InceptionFeatures(weights)


@pytest.fixture(scope="module")
def peer(weights):
    """pytorch-fid's network with the same weights, and its state."""
    state = torch.load(weights, weights_only=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pytorch_fid.inception, "load_state_dict_from_url", lambda *args, **kwargs: state)
        return pytorch_fid.inception.InceptionV3([0, 1, 2, 3]).eval(), state


@pytest.mark.parametrize("dim", DIMS)
def test_features_equal_those_of_pytorch_fid(weights, peer, image_BCHW, dim):
    network, state = peer
    expected_BF = network(image_BCHW.float() / 255)[DIMS.index(dim)].mean((2, 3))
    features = InceptionFeatures(weights, dim=dim)
    features_BF, logits_BY = features(image_BCHW)
    assert features_BF.shape == (3, dim) and features.dim == dim
    assert expected_BF.std(0).mean() > 1e-3
    torch.testing.assert_close(features_BF, expected_BF, rtol=1e-5, atol=1e-6)
    if dim == 2048:
        torch.testing.assert_close(logits_BY, expected_BF @ state["fc.weight"].T, rtol=1e-4, atol=1e-5)
    assert logits_BY.shape == (3, features.num_classes) == (3, 1008 if dim == 2048 else 0)


def test_dims_have_names_of_their_own(weights, features):
    by_dim = [build_features(name, weights=weights) for name in ("inception64", "inception192", "inception768")]
    assert [f.name for f in by_dim] == ["inception64", "inception192", "inception768"]
    assert [f.label.partition("-")[0] for f in by_dim] == ["inception64", "inception192", "inception768"]
    assert features.name == "inception"
    with pytest.raises(ValueError, match="no features of 128 numbers: choose 64, 192, 768, 2048"):
        InceptionFeatures(weights, dim=128)


def test_spatial_features_are_the_first_channels_of_the_7th_mixed_block(features, weights, image_BCHW):
    # Mixed_5b is TensorFlow's `mixed`, so `mixed_6` is Mixed_6d; its `conv` is the 1 x 1 branch after the ReLU.
    seen = []
    hook = features.network.Mixed_6d.branch1x1.register_forward_hook(lambda module, args, output: seen.append(output))
    features_BF, logits_BY, spatial_BF = features.with_spatial(image_BCHW)
    hook.remove()
    assert seen[-1].shape == (3, 192, 17, 17)
    assert torch.equal(spatial_BF, seen[-1][:, :7].flatten(1))
    assert spatial_BF.shape == (3, SPATIAL_DIM) == (3, 2023) == (3, features.spatial_dim)
    assert spatial_BF.min() == 0 and spatial_BF.std() > 0
    plain_BF, plain_BY = features(image_BCHW)
    assert torch.equal(features_BF, plain_BF) and torch.equal(logits_BY, plain_BY)
    assert features.spatial_label.startswith("inception-mixed6conv7-")
    middle = InceptionFeatures(weights, dim=768)
    torch.testing.assert_close(middle.with_spatial(image_BCHW)[2], spatial_BF)
    with pytest.raises(ValueError, match="inception64 ends before the spatial features"):
        InceptionFeatures(weights, dim=64).with_spatial(image_BCHW)


def test_other_resizes_are_other_metrics(features, weights, image_BCHW):
    tags = set()
    for resize in RESIZES:
        other = build_features("inception", weights=weights, resize=resize)
        tags.add(other.resize)
        assert torch.equal(other(image_BCHW)[0], features(image_BCHW)[0]) == (resize == "bilinear")
    assert tags == {"bilinear299", "tf1bilinear299", "cleanbicubic299"}
    with pytest.raises(ValueError, match="'nearest': choose one of bilinear, inception-tf1, clean-bicubic"):
        build_features("inception", weights=weights, resize="nearest")
    with pytest.raises(ValueError, match="resize of its own"):
        build_features("dinov2", resize="clean-bicubic")


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


def test_nothing_of_it_is_tf32(features, image_BCHW, monkeypatch):
    """What a GPU would be set to while the network runs there."""
    devices, seen = [], []

    def on_a_gpu(device):
        devices.append(device)
        return ieee_fp32(torch.device("cuda"))

    def look(*_):
        seen.append((torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision))

    monkeypatch.setattr(inception, "ieee_fp32", on_a_gpu)
    for layer in (features.network.Conv2d_1a_3x3, features.network.Mixed_7c):
        monkeypatch.setattr(layer, "_forward_pre_hooks", {0: look})
    before = torch.backends.cudnn.conv.fp32_precision
    features(image_BCHW)
    assert devices == [features.device] and seen == [("ieee", "ieee")] * 2
    assert torch.backends.cudnn.conv.fp32_precision == before
