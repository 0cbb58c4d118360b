"""LPIPS: where its backbone comes from, and its values, with a random backbone in torchvision's file format."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lpips import LPIPS
from safetensors.torch import save_file
from torchvision.models import vgg16

from rqvae.losses.perceptual import VGG16_ENV, VGG16_FILE_NAME, PerceptualLoss, _unit_length, find_vgg16_weights
from tests.random_vgg16 import write_random_vgg16


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory) -> Path:
    return write_random_vgg16(tmp_path_factory.mktemp("vgg16") / "random_vgg16.pth")


@pytest.fixture(scope="module")
def loss(weight_file) -> PerceptualLoss:
    return PerceptualLoss(weight_file)


@pytest.fixture
def no_weights_around(monkeypatch, tmp_path) -> Path:
    """An empty torch home, and no environment variable."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv(VGG16_ENV, raising=False)
    return tmp_path / "hub" / "checkpoints" / VGG16_FILE_NAME


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))


def test_equals_the_lpips_package(loss, weight_file):
    state = torch.load(weight_file, weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = LPIPS(net="vgg", pnet_rand=True, verbose=False)
    features = vgg16(weights=None).features
    features.load_state_dict({name.removeprefix("features."): value for name, value in state.items() if "feat" in name})
    for k, (start, stop) in enumerate(((0, 4), (4, 9), (9, 16), (16, 23), (23, 30)), start=1):
        setattr(reference.net, f"slice{k}", features[start:stop])
    recon, image = images()
    with torch.no_grad():
        expected = reference(recon, image).flatten()
        torch.testing.assert_close(loss(recon, image), expected, rtol=1e-5, atol=1e-7)
    assert expected.min() > 1e-3


def test_bf16_features_with_fp32_sums_are_close_to_fp32(loss):
    recon, image = images()
    ends = []
    for enabled in (False, True):
        entry = recon.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            distance = loss(entry, image)
        assert distance.dtype == torch.float32
        ends.append((distance.detach(), torch.autograd.grad(distance.sum(), entry)[0]))
    (exact, exact_gradient), (near, near_gradient) = ends
    assert not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, rtol=0.01, atol=0.0)
    assert torch.cosine_similarity(near_gradient.flatten(), exact_gradient.flatten(), dim=0) > 0.99


def test_distance_is_zero_only_for_equal_images(loss):
    recon, image = images()
    assert torch.equal(loss(image, image), torch.zeros(2))
    mixed = torch.stack([image[0], recon[1]])
    distance = loss(mixed, image)
    assert distance.shape == (2,)
    assert distance[0] == 0.0 < distance[1]


def test_frozen_in_eval_mode_and_gradient_reaches_the_reconstruction(loss):
    recon, image = images()
    loss.train()
    assert not any(module.training for module in loss.modules())
    assert not any(param.requires_grad for param in loss.parameters())
    recon.requires_grad_()
    loss(recon, image).sum().backward()
    assert recon.grad.abs().sum() > 0
    step = (recon - 0.5 * recon.grad / recon.grad.norm()).detach()
    assert loss(step, image).sum() < loss(recon.detach(), image).sum()


def test_unit_length_has_a_gradient_where_all_features_are_zero():
    features = torch.zeros(1, 4, 1, 1, requires_grad=True)
    unit = _unit_length(features)
    unit.sum().backward()
    assert not unit.any()
    assert torch.isfinite(features.grad).all()


def test_autocast_computes_distances_in_float32(loss):
    recon, image = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = loss(recon, image)
    assert distance.dtype == torch.float32
    torch.testing.assert_close(distance, loss(recon, image), rtol=0.1, atol=0)


def test_order_of_the_places(no_weights_around, monkeypatch, tmp_path):
    explicit, named, cached = tmp_path / "explicit.pth", tmp_path / "named.pth", no_weights_around
    cached.parent.mkdir(parents=True)
    for file in (explicit, named, cached):
        file.touch()
    assert find_vgg16_weights() == cached
    monkeypatch.setenv(VGG16_ENV, str(named))
    assert find_vgg16_weights() == named
    assert find_vgg16_weights(explicit) == explicit


def test_without_weights_the_message_says_what_to_do(no_weights_around):
    with pytest.raises(FileNotFoundError, match=f"{VGG16_FILE_NAME}.*{VGG16_ENV}.*perceptual_weight=0") as caught:
        PerceptualLoss()
    assert "\n" not in str(caught.value)


def test_a_named_file_that_is_missing_is_not_replaced_by_the_cache(no_weights_around):
    no_weights_around.parent.mkdir(parents=True)
    no_weights_around.touch()
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        find_vgg16_weights("nowhere.pth")


def test_damaged_file_under_the_well_known_name(no_weights_around):
    no_weights_around.parent.mkdir(parents=True)
    no_weights_around.write_bytes(b"half a download")
    with pytest.raises(ValueError, match="damaged.*397923af"):
        PerceptualLoss()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a weight file", "cannot be read"),
        ({"features.0.weight": torch.zeros(64, 3, 3, 3)}, "lacks features.0.bias"),
        ([1, 2], "holds a list"),
    ],
)
def test_files_that_are_not_vgg16(tmp_path, content, message):
    file = tmp_path / "other.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=message) as caught:
        PerceptualLoss(file)
    assert "\n" not in str(caught.value)


def test_a_safetensors_file_is_the_same_backbone(tmp_path, weight_file):
    file = tmp_path / "vgg16.safetensors"
    save_file(torch.load(weight_file, weights_only=True), file)
    expected, found = (PerceptualLoss(path).lpips.net.state_dict() for path in (weight_file, file))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    file.write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot be read"):
        PerceptualLoss(file)


def test_wrong_shapes_are_named(tmp_path, weight_file):
    state = torch.load(weight_file, weights_only=True)
    state["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    file = tmp_path / "grey.pth"
    torch.save(state, file)
    with pytest.raises(ValueError, match="not torchvision's VGG16") as caught:
        PerceptualLoss(file)
    assert "\n" not in str(caught.value)
