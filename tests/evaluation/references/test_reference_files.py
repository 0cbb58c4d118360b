"""References in files: ours, published statistics, ADM batches; whatever is wrong with one is one line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.references.reference_files import Reference, network_of, read_reference, save_reference
from evaluation.references.reference_making import measure_reference
from evaluation.statistics import Gaussian
from runtime.errors import UserError
from tests.evaluation.image_files import random_images, write_array
from tests.evaluation.small_features import SmallFeatures


def gaussian(dim, seed=0, num=50):
    rows_NF = torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return Gaussian(rows_NF.mean(0), rows_NF.T.cov(), num)


@pytest.fixture
def published(tmp_path):
    """A file as pytorch-fid and the TTUR repository publish it."""
    moments = gaussian(6)
    np.savez(tmp_path / "fid_stats_x.npz", mu=moments.mean_F.numpy(), sigma=moments.covariance_FF.numpy())
    return tmp_path / "fid_stats_x.npz"


def batches_of(image_NCHW, batch_size=5, label_N=None):
    for index_B in torch.arange(len(image_NCHW)).split(batch_size):
        label = {} if label_N is None else {"label": label_N[index_B]}
        yield {"image": image_NCHW[index_B], "index": index_B, **label}


def test_published_moments(published):
    reference = read_reference(published, SmallFeatures(6))
    expected = gaussian(6)
    assert torch.equal(reference.moments.mean_F, expected.mean_F)
    torch.testing.assert_close(reference.moments.covariance_FF, expected.covariance_FF, rtol=1e-14, atol=0)
    assert (reference.name, reference.moments.num, reference.network) == ("fid_stats_x", 0, {})
    assert len(reference.digest) == 64
    assert reference.classes is None


def test_an_adm_reference_batch(tmp_path):
    """float32 moments with a leading axis, spatial moments, and the images beside them."""
    moments, spatial = gaussian(6), gaussian(48, 1, 90)
    arrays = {
        "mu": moments.mean_F[None],
        "sigma": moments.covariance_FF,
        "mu_s": spatial.mean_F,
        "sigma_s": spatial.covariance_FF,
    }
    arrays = {name: np.asfortranarray(tensor.float().numpy()) for name, tensor in arrays.items()}
    path = write_array(tmp_path / "VIRTUAL.npz", random_images(4), **arrays)
    reference = read_reference(path, SmallFeatures(6))
    torch.testing.assert_close(reference.moments.mean_F, moments.mean_F, rtol=1e-6, atol=1e-7)
    assert reference.moments.mean_F.dtype == torch.float64
    torch.testing.assert_close(reference.spatial.covariance_FF, spatial.covariance_FF, rtol=1e-5, atol=1e-6)


def test_our_files_keep_everything(tmp_path):
    extractor, label_N = SmallFeatures(), torch.arange(40) % 4
    reference = measure_reference(
        "x-train",
        batches_of(random_images(40), label_N=label_N),
        extractor,
        num_images=40,
        source="dataset:x:train",
        keep_features=True,
        spatial=True,
    )
    save_reference(reference, tmp_path / "x.npz")
    loaded = read_reference(tmp_path / "x.npz", extractor)
    for name in ("name", "digest", "source", "network", "images"):
        assert getattr(loaded, name) == getattr(reference, name) != ""
    for name in ("features_NF", "label_N"):
        assert torch.equal(getattr(loaded, name), getattr(reference, name))
    for name in ("moments", "spatial"):
        first, second = getattr(loaded, name), getattr(reference, name)
        assert torch.equal(first.mean_F, second.mean_F)
        assert torch.equal(first.covariance_FF, second.covariance_FF)
        assert first.num == second.num == 40
    assert torch.equal(loaded.classes[2], extractor(random_images(40))[0][2::4])
    assert sorted(loaded.classes) == [0, 1, 2, 3]
    # other FID tools find what they look for
    stats = np.load(tmp_path / "x.npz", allow_pickle=False)
    features_NF = extractor(random_images(40))[0].double().numpy()
    np.testing.assert_allclose(stats["mu"], features_NF.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["sigma"], np.cov(features_NF, rowvar=False), rtol=1e-9)


def test_files_without_features_or_labels(tmp_path):
    extractor = SmallFeatures()
    for settings in ({}, {"keep_features": True}):
        reference = measure_reference("x", batches_of(random_images(9)), extractor, num_images=9, **settings)
        save_reference(reference, tmp_path / "x.npz")
        loaded = read_reference(tmp_path / "x.npz")
        assert (loaded.features_NF is not None, loaded.label_N, loaded.classes, loaded.spatial) == (
            bool(settings),
            None,
            None,
            None,
        )


def one_line(path, match, extractor=None):
    with pytest.raises(UserError, match=match) as error:
        read_reference(path, extractor)
    assert "\n" not in str(error.value)


def test_another_network_is_refused(tmp_path, published):
    one_line(published, "fid_stats_x has 6 features, small7-.* has 7", SmallFeatures(7))
    reference = measure_reference("mine", batches_of(random_images(9)), SmallFeatures(), num_images=9)
    save_reference(reference, tmp_path / "mine.npz")
    one_line(tmp_path / "mine.npz", "reference mine was made with small6-.* not with small6-", SmallFeatures(seed=1))
    other = SmallFeatures()
    other.resize = "nearest4"
    one_line(tmp_path / "mine.npz", "not with small6-.*_nearest4", other)
    spatial = replace(reference, spatial=gaussian(47))
    with pytest.raises(UserError, match="47 spatial features, .* has 48"):
        spatial.check_fits(SmallFeatures())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sigma": np.eye(5)}, r"mu has shape \(6,\) and sigma \(5, 5\)"),
        ({"mu": np.zeros((2, 6))}, r"mu has shape \(2, 6\)"),
        ({"mu": np.array(1.0)}, r"mu has shape \(\)"),
        ({"mu": np.zeros(6, int)}, "must be floating point, got int64"),
        ({"mu": np.full(6, np.nan)}, "not finite"),
        ({"sigma": -np.eye(6)}, "negative variances"),
        ({"sigma": np.eye(6) + np.triu(np.ones((6, 6)))}, "not symmetric"),
        ({"mu_s": np.zeros(3)}, r"mu_s has shape \(3,\) and sigma_s None"),
        ({"features": np.zeros((9, 5), np.float32)}, r"features have shape \(9, 5\); expected \(N, 6\)"),
        ({"features": np.zeros((9, 6), np.float32), "labels": np.zeros(8, int)}, r"labels have shape \(8,\), for 9"),
        ({"meta": np.array("{}")}, "its description is not one of"),
        ({"meta": np.array("not json")}, "its description is not one of"),
        ({"meta": np.array(json.dumps({"format": "rq-reference-9"}))}, "make the reference again"),
    ],
)
def test_moments_that_cannot_be(tmp_path, change, match):
    moments = gaussian(6)
    arrays = {"mu": moments.mean_F.numpy(), "sigma": moments.covariance_FF.numpy(), **change}
    np.savez(tmp_path / "a.npz", **arrays)
    one_line(tmp_path / "a.npz", match)


def test_files_that_are_no_references(tmp_path, published):
    np.savez(tmp_path / "a.npz", sigma=np.eye(3))
    one_line(tmp_path / "a.npz", "is no reference: it has sigma, not mu and sigma")
    np.savez(tmp_path / "a.npz", weights=np.eye(3))
    one_line(tmp_path / "a.npz", "is no reference: it has weights, not mu and sigma")
    np.savez(tmp_path / "a.npz", mu=np.array([object()]), sigma=np.eye(1))
    one_line(tmp_path / "a.npz", "Python objects")
    one_line(tmp_path / "nowhere.npz", "no file")
    published.write_bytes(published.read_bytes()[:300])
    one_line(published, "fid_stats_x.npz is not a readable .npz file")


def test_saving_errors(tmp_path):
    reference = Reference("x", gaussian(3))
    with pytest.raises(UserError, match=r"an \.npz file, not x\.pt"):
        save_reference(reference, tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot write"):
        save_reference(reference, tmp_path / "nowhere" / "x.npz")


def test_the_digest_follows_images_network_and_protocol_only():
    def digest(image_NCHW, extractor, **batching):
        return measure_reference("x", batches_of(image_NCHW, **batching), extractor, num_images=len(image_NCHW)).digest

    image_NCHW = random_images(20)
    expected = digest(image_NCHW, SmallFeatures())
    assert digest(image_NCHW.flip(0), SmallFeatures(), batch_size=3) == expected
    changed = image_NCHW.clone()
    changed[7, 0, 0, 0] ^= 1
    other = SmallFeatures()
    other.resize = "mean5"
    digests = {
        expected,
        digest(changed, SmallFeatures()),
        digest(image_NCHW, SmallFeatures(seed=1)),
        digest(image_NCHW, other),
    }
    assert len(digests) == 4
    assert network_of(other)["resize"] == "mean5"


def test_too_few_images():
    with pytest.raises(UserError, match="one: a covariance needs at least 2 images, there are 1"):
        measure_reference("one", batches_of(random_images(1)), SmallFeatures(), num_images=1)
    with pytest.raises(ValueError, match="1 missing"):
        measure_reference("x", batches_of(random_images(4)), SmallFeatures(), num_images=5)
