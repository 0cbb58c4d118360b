"""FID and IS beside pytorch-fid's own command and torch-fidelity, on a folder of PNGs, with the same random weights.

On one CPU thread the Inception passes take the better part of an hour. `RQ_PEER_IMAGES=200` makes a quick try of it
at 64 dims; at 2048 pytorch-fid needs more images than features: its root of a singular product is inaccurate.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.metrics.frechet import FrechetDistance
from evaluation.metrics.inception_score import InceptionScore
from evaluation.metrics.metric import Metric
from evaluation.networks.inception import InceptionFeatures
from evaluation.networks.weight_files import FID_INCEPTION
from evaluation.scores import metric_value, score_images
from evaluation.statistics import Gaussian
from tests.evaluation.random_inception import write_random_weights

pytest.importorskip("pytorch_fid")
pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(10_000)]

NUM = int(os.environ.get("RQ_PEER_IMAGES", "2500"))
BATCH = 50


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A torch hub directory that holds random weights under the published name: pytorch-fid downloads nothing."""
    home = tmp_path_factory.mktemp("hub")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    path = write_random_weights(home / "random.pth")
    shutil.copy(path, home / "hub" / "checkpoints" / FID_INCEPTION.file_name)
    return home


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """PNGs of 32 x 32: a coloured gradient under noise."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 32)
    for index in range(NUM):
        slopes, noise = generator.normal(size=(2, 3)), generator.normal(scale=20, size=(32, 32, 3))
        image = 128 + 60 * (ramp[:, None, None] * slopes[0] - ramp[None, :, None] * slopes[1]) + noise
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05d}.png")
    return folder


class Recorded(InceptionFeatures):
    """Keeps the logits it gave."""

    def __call__(self, image_BCHW):
        features_BF, logits_BY = super().__call__(image_BCHW)
        self.__dict__.setdefault("logits", []).append(logits_BY)
        return features_BF, logits_BY


def batches(folder):
    files = sorted(folder.iterdir())
    for start in range(0, len(files), BATCH):
        images = [np.array(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
        yield torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("dim", [64, 768, 2048])
def test_fid_of_a_folder_equals_pytorch_fids_command(dim, hub, folder, tmp_path):
    extractor = Recorded(hub / "random.pth", dim=dim)
    features_BF, _ = extractor(next(batches(folder)))
    extractor.logits.clear()
    # A reference of the features' own scale, so that every part of the distance counts.
    mean_F, variance_F = features_BF.double().mean(0) + features_BF.double().std(0), features_BF.double().var(0)
    covariance_FF = torch.diag(2 * variance_F + 0.1 * variance_F.mean())
    np.savez(tmp_path / "reference.npz", mu=mean_F.numpy(), sigma=covariance_FF.numpy())

    command = [
        sys.executable,
        "-m",
        "pytorch_fid",
        str(folder),
        str(tmp_path / "reference.npz"),
        "--dims",
        str(dim),
        "--device",
        "cpu",
        "--num-workers",
        "0",
    ]
    environment = {**os.environ, "TORCH_HOME": str(hub)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    theirs = float(result.stdout.split("FID:")[1])

    reference = {"stats": Gaussian(mean_F, covariance_FF, 0)}
    for kind in ("fid", "rfid") if dim == 64 else ("fid",):
        metrics: list[Metric] = [FrechetDistance(extractor, reference, kind)]
        if dim == 2048:
            metrics.append(InceptionScore(extractor, NUM))
        line = score_images(batches(folder), metrics, extractor, num_images=NUM)
        ours = metric_value(line, kind, "stats")
        print(f"{kind} at {dim}: ours {ours:.8g}, pytorch-fid {theirs:.8g}, relative {ours / theirs - 1:.1e}")
        assert ours == pytest.approx(theirs, rel=1e-3)
    if dim == 2048:
        _check_inception_score(line, torch.cat(extractor.logits))


def _check_inception_score(line, logits_NY):
    metric = pytest.importorskip("torch_fidelity.metric_isc")
    theirs = metric.isc_features_to_metric(logits_NY, splits=10, shuffle=False)
    assert metric_value(line, "is") == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    # Theirs divides by the number of splits, ours by one less.
    assert metric_value(line, "is-std") * 0.9**0.5 == pytest.approx(theirs["inception_score_std"], rel=1e-3)


@pytest.mark.parametrize("shape", [(40, 32), (300, 310)])
def test_the_tf1_network_equals_torch_fidelitys(hub, shape):
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    names = ["64", "192", "768", "2048", "logits_unbiased"]
    theirs = module.FeatureExtractorInceptionV3("inception", names, str(hub / "random.pth"))
    image_BCHW = torch.randint(256, (3, 3, *shape), dtype=torch.uint8)
    expected = dict(zip(names, theirs(image_BCHW)))
    for dim in (64, 192, 768, 2048):
        extractor = InceptionFeatures(hub / "random.pth", dim=dim, resize="inception-tf1")
        torch.testing.assert_close(extractor(image_BCHW)[0], expected[str(dim)], rtol=1e-3, atol=1e-4)
    # logits are sums of 2,048 products that nearly cancel: in double, where the two orders of summing agree
    exact = module.FeatureExtractorInceptionV3(
        "inception", names, str(hub / "random.pth"), feature_extractor_internal_dtype="float64"
    )
    resize = extractor.network_input
    extractor.network_input = lambda image_BCHW, size: resize(image_BCHW, size).double()
    extractor.network.double()
    extractor.class_weight_YF = extractor.class_weight_YF.double()
    logits_BY = extractor(image_BCHW)[1].float()
    torch.testing.assert_close(logits_BY, exact(image_BCHW)[-1], rtol=1e-4, atol=1e-4)
