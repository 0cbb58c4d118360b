from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from evaluation.networks.classifier import ClassifierConfig, _cache_key, train_classifier
from evaluation.networks.classifier_cache import read_cached, write_cached
from evaluation.networks.classifier_training import new_network
from evaluation.protocol import to_uint8

QUICK = ClassifierConfig(dim=16, min_presentations=0, epochs=2, batch_size=8)


def digits():
    """Training and validation split of the bundled digits at 32 x 32, float in [-1, 1]."""
    bunch = load_digits()
    image_NHW = torch.tensor(bunch.images, dtype=torch.float32)
    image_NCHW = F.interpolate(image_NHW[:, None] / 8 - 1, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    order_N = torch.randperm(len(image_NCHW), generator=torch.Generator().manual_seed(0))
    image_NCHW, label_N = image_NCHW[order_N], torch.tensor(bunch.target)[order_N]
    return (image_NCHW[:1437], label_N[:1437]), (image_NCHW[1437:], label_N[1437:])


def stripes(num=48, size=32):
    """Two classes anyone can tell apart: horizontal and vertical stripes; a little noise."""
    line = torch.arange(size) % 8 < 4
    pattern = torch.stack([line[:, None].expand(size, size), line[None].expand(size, size)]).float() * 2 - 1
    label_N = torch.arange(num) % 2
    noise = 0.1 * torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(7))
    return (pattern[label_N][:, None] + noise).clamp(-1, 1), label_N


def batches(image_NCHW, label_N, size=16):
    return list(zip(image_NCHW.split(size), label_N.split(size)))


def test_it_learns_digits_and_comes_back_from_the_cache(tmp_path):
    train, validation = digits()
    first = train_classifier(batches(*train), 10, validation=batches(*validation), cache_dir=tmp_path)
    assert first.accuracy >= 0.98
    assert (first.dim, first.num_classes, first.name) == (128, 10, "classifier")
    # Another batching of the same split is the same data; the global random state has no part in it.
    torch.manual_seed(123)
    again = train_classifier(
        [{"image": to_uint8(train[0]), "label": train[1]}], 10, validation=[validation], cache_dir=tmp_path
    )
    assert again.label == first.label
    assert again.accuracy == first.accuracy
    assert len(list(tmp_path.iterdir())) == 1
    image_BCHW = to_uint8(validation[0])
    features_BF, logits_BY = again(image_BCHW)
    assert features_BF.shape == (360, 128)
    assert features_BF.std(0).min() > 0
    assert torch.equal(again.predict(image_BCHW), logits_BY.argmax(1))
    wrong = (validation[1] + 1) % 10
    assert again.accuracy_on([(image_BCHW, wrong)]) < 0.02


def test_training_is_a_function_of_seed_and_data():
    data = batches(*stripes())
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        one = train_classifier(data, 2, config=QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    two = train_classifier(data, 2, config=QUICK)
    other = train_classifier(data, 2, config=replace(QUICK, seed=1))
    image_BCHW = to_uint8(data[0][0])
    assert torch.equal(one(image_BCHW)[0], two(image_BCHW)[0])
    assert not torch.equal(one(image_BCHW)[0], other(image_BCHW)[0])


def test_another_kind_of_device_is_another_classifier():
    """Its kernels round otherwise, so neither cached weights nor the names of numbers may be mixed."""
    image_NCHW, label_N = stripes(16)
    keys = [_cache_key(image_NCHW, label_N, 2, QUICK, torch.device(device)) for device in ("cpu", "cuda:0", "cuda:1")]
    assert keys[0] != keys[1] == keys[2]


def test_scoring_does_not_depend_on_the_batch_nor_on_autocast():
    image_BCHW, label_B = stripes()
    classifier = train_classifier(batches(image_BCHW, label_B), 2, config=QUICK)
    image_BCHW = to_uint8(image_BCHW)
    features_BF = classifier(image_BCHW)[0]
    one_by_one_BF = torch.cat([classifier(image)[0] for image in image_BCHW.split(1)])
    torch.testing.assert_close(one_by_one_BF, features_BF, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(classifier(image_BCHW)[0], features_BF)
    assert not features_BF.requires_grad


def test_larger_images_are_resized_to_the_same_pixels():
    image_BCHW, label_B = stripes(size=64)
    classifier = train_classifier(batches(image_BCHW, label_B), 2, config=replace(QUICK, epochs=6))
    assert classifier.resize == "antialias32"
    assert classifier.accuracy_on([(image_BCHW, label_B)]) == 1.0


@pytest.mark.parametrize("change", ["data", "labels", "settings", "classes"])
def test_the_cache_key_covers_data_and_settings(change, tmp_path):
    image_NCHW, label_N = stripes(16)
    arguments = {"batches": [(image_NCHW, label_N)], "classes": 2, "config": QUICK}
    before = train_classifier(arguments["batches"], 2, config=QUICK, cache_dir=tmp_path)
    altered = image_NCHW.clone()
    altered[5, 0, 3, 3] *= -1
    arguments |= {
        "data": {"batches": [(altered, label_N)]},
        "labels": {"batches": [(image_NCHW, label_N.flip(0))]},
        "settings": {"config": replace(QUICK, epochs=3)},
        "classes": {"classes": 3},
    }[change]
    after = train_classifier(arguments["batches"], arguments["classes"], config=arguments["config"], cache_dir=tmp_path)
    assert after.fingerprint != before.fingerprint
    assert after.label != before.label
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_cache_file_is_replaced(tmp_path):
    data = batches(*stripes(16))
    first = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    path.write_bytes(sound[: len(sound) // 2])
    with pytest.warns(UserWarning, match="ignoring the cached classifier"):
        again = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)
    assert path.read_bytes() == sound
    image_BCHW = to_uint8(data[0][0])
    assert torch.equal(first(image_BCHW)[1], again(image_BCHW)[1])


def test_a_file_of_another_classifier_is_replaced(tmp_path):
    data = batches(*stripes(16))
    train_classifier(data, 2, config=replace(QUICK, seed=1), cache_dir=tmp_path)
    (foreign,) = tmp_path.iterdir()
    own = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)
    (path,) = set(tmp_path.iterdir()) - {foreign}
    sound = path.read_bytes()
    path.write_bytes(foreign.read_bytes())
    with pytest.warns(UserWarning, match="it is of another classifier"):
        again = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)
    image_BCHW = to_uint8(data[0][0])
    assert torch.equal(own(image_BCHW)[1], again(image_BCHW)[1])
    assert path.read_bytes() == sound


def _nan(name, tensor):
    return torch.full_like(tensor, float("nan")) if name == "classify.weight" else tensor


def _one_infinite(name, tensor):
    return tensor.index_fill(0, torch.tensor([0]), float("inf")) if name == "classify.bias" else tensor


def _whole(name, tensor):
    return (tensor * 100).long() if name == "classify.weight" else tensor


def _float_count(name, tensor):
    return tensor.float()


def _negative_variance(name, tensor):
    return -1 - tensor if name.endswith("running_var") else tensor


def _one_bit(name, tensor):
    changed = tensor.clone()
    if name == "classify.weight":
        changed.view(torch.int32)[0, 0] ^= 1
    return changed


def _other_shape(name, tensor):
    return tensor[:1] if name == "classify.weight" else tensor


KEYLESS = {
    "no description": None,
    "not JSON": {"classifier": "{"},
    "a list": {"classifier": "[1]"},
    "nested": {"classifier": "[" * 100_000},
    "another key": {"classifier": '{"key": "x"}'},
    "the key alone": {},
    "something else": {"x": "y"},
}


@pytest.mark.parametrize(
    ("change", "metadata"),
    [
        *((change, "kept") for change in (_nan, _one_infinite, _whole, _negative_variance, _one_bit, _other_shape)),
        (_float_count, "kept"),
        *((lambda name, tensor: tensor, metadata) for metadata in KEYLESS.values()),
    ],
)
def test_a_cache_file_whose_content_cannot_be_counts_as_absent(change, metadata, tmp_path):
    network, key, path = new_network(2, QUICK), "the key", tmp_path / "classifier.safetensors"
    write_cached(path, network, key, {})
    assert read_cached(path, network, key) is not None
    with safe_open(path, framework="pt") as file:
        tensors = {name: change(name, file.get_tensor(name)).contiguous() for name in file.keys()}
        metadata = file.metadata() if metadata == "kept" else metadata
    if metadata == {}:
        metadata = {"classifier": json.dumps({"key": key})}
    save_file(tensors, path, metadata)
    with pytest.warns(UserWarning, match="ignoring the cached classifier") as caught:
        assert read_cached(path, network, key) is None
    assert all("\n" not in str(warning.message) for warning in caught)


def test_a_full_or_forbidden_disk_costs_the_cache_only(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    data = batches(*stripes(16))
    with pytest.warns(UserWarning, match="the classifier is not kept"):
        kept = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path / "file")
    again = train_classifier(data, 2, config=QUICK, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="the classifier is not kept"):
        train_classifier(data, 2, config=QUICK, cache_dir=tmp_path / "cache")
    assert [found.name for found in (tmp_path / "cache").iterdir()] == [path.name]
    assert kept.fingerprint == again.fingerprint


def test_the_cache_is_used(tmp_path, monkeypatch):
    data = batches(*stripes(16))
    train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)
    monkeypatch.setattr("evaluation.networks.classifier.fit_network", lambda *_: pytest.fail("trained although cached"))
    train_classifier(data, 2, config=QUICK, cache_dir=tmp_path)


def test_a_large_split_is_sampled_down_over_its_whole_length(monkeypatch):
    kept = {}
    monkeypatch.setattr(
        "evaluation.networks.classifier.fit_network", lambda network, image, label, config: kept.update(label=label)
    )
    image_NCHW = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    train_classifier(batches(image_NCHW, torch.arange(400)), 400, config=replace(QUICK, max_images=100))
    assert len(kept["label"].unique()) == 100
    assert 160 < kept["label"].float().mean() < 240


def test_training_length_is_bounded(monkeypatch):
    steps = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: steps.append(1) or original(self, *a))
    data = batches(*stripes(16))
    for config, expected in [
        (QUICK, 4),
        (replace(QUICK, min_presentations=80), 10),
        (replace(QUICK, max_presentations=24), 3),
        (replace(QUICK, batch_size=64), 2),
    ]:
        steps.clear()
        train_classifier(data, 2, config=config)
        assert len(steps) == expected


def test_wrong_data_is_an_error():
    image_NCHW, label_N = stripes(8)
    with pytest.raises(ValueError, match="at least 2 classes"):
        train_classifier([(image_NCHW, label_N)], 1)
    with pytest.raises(ValueError, match="no images"):
        train_classifier([], 2)
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        train_classifier([(image_NCHW, label_N * 2)], 2)
    classifier = train_classifier([(image_NCHW, label_N)], 2, config=QUICK)
    with pytest.raises(ValueError, match="no images"):
        classifier.accuracy_on([])
    with pytest.raises(ValueError, match="float32"):
        classifier(image_NCHW)
