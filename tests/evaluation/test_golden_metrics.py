"""Every tensor of the golden set `metrics`, within the tolerance its README states."""

from __future__ import annotations

import re

import pytest
import torch

from evaluation.metrics.frechet import frechet_distance
from evaluation.metrics.inception_score import inception_score
from evaluation.statistics import statistics_of

TOLERANCE = {
    "fid.mu_a": 2e-9,
    "fid.sigma_a": 1e-9,
    "fid.mu_b": 2e-9,
    "fid.sigma_b": 2e-9,
    "fid.torch_mu_a": 2e-9,
    "fid.torch_sigma_a": 1e-9,
    "fid.frechet_ab": 1e-6,
    "fid.frechet_aa": 1e-6,
    "fid.mu_a_from_float32": 2e-6,
    "fid.sigma_a_from_float32": 1e-9,
    "is.mean": 2e-5,
    "is.std": 1e-6,
    "is.mean_float64": 1e-8,
    "is.std_float64": 7e-10,
}
INPUTS = {"fid.features_a", "fid.features_b", "is.logits"}


@pytest.fixture
def io(golden):
    return golden("metrics").io


@pytest.fixture
def computed(io):
    a, b = (statistics_of(io[f"fid.features_{s}"].split(37), 64).gaussian() for s in "ab")
    single = statistics_of(io["fid.features_a"].float().split(37), 64).gaussian()
    mean, std = inception_score(io["is.logits"])
    mean_float64, std_float64 = inception_score(io["is.logits"].double().split(33))
    return {
        "fid.mu_a": a.mean_F,
        "fid.sigma_a": a.covariance_FF,
        "fid.mu_b": b.mean_F,
        "fid.sigma_b": b.covariance_FF,
        "fid.torch_mu_a": a.mean_F[None],
        "fid.torch_sigma_a": a.covariance_FF,
        "fid.frechet_ab": frechet_distance(*a[:2], *b[:2]),
        "fid.frechet_aa": frechet_distance(*a[:2], *a[:2]),
        "fid.mu_a_from_float32": single.mean_F,
        "fid.sigma_a_from_float32": single.covariance_FF,
        "is.mean": mean,
        "is.std": std,
        "is.mean_float64": mean_float64,
        "is.std_float64": std_float64,
    }


def test_the_list_covers_the_set_and_the_readme(io, golden):
    assert set(TOLERANCE) | INPUTS == set(io)
    readme = (golden("metrics").path / "README.md").read_text()
    stated = {}
    for row in re.findall(r"^\| (`.*?) \|.*?\|.*?\| (.*?) \|", readme, flags=re.M):
        stated.update(zip(re.findall(r"`(.*?)`", row[0]), row[1].split("<br>")))
    assert {name: float(value) for name, value in stated.items() if value != "-"} == TOLERANCE


@pytest.mark.parametrize("name", TOLERANCE)
def test_golden(name, io, computed):
    result = torch.as_tensor(computed[name], dtype=torch.float64)
    torch.testing.assert_close(result, io[name].double(), rtol=0, atol=TOLERANCE[name])


def test_frechet_from_golden_moments_as_numpy_arrays(io):
    moments = [io[f"fid.{name}"].numpy() for name in ("mu_a", "sigma_a", "mu_b", "sigma_b")]
    assert frechet_distance(*moments) == pytest.approx(io["fid.frechet_ab"].item(), abs=1e-6)
