"""The lists of requirements agree: what is installed lies in what is claimed, the low end of that is tested."""

from __future__ import annotations

import re
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirement by name; the name of one that stands there twice under different markers is kept once."""
    found = [Requirement(line) for line in (line.split("#")[0].strip() for line in lines) if line]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def pinned(name: str, python: str) -> dict[str, Version]:
    """Version by name in a constraints file, for one Python."""
    versions: dict[str, Version] = {}
    for line in (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()):
        if not line:
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            (pin,) = requirement.specifier
            key = canonicalize_name(requirement.name)
            assert pin.operator == "==" and key not in versions, line
            versions[key] = Version(pin.version)
    return versions


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = (pin.version for pin in requirement.specifier if pin.operator == ">=")
    return Version(bound)


EXPERIMENTS = requirements((ROOT / "requirements.txt").read_text().splitlines())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINTERS = {"ruff", "mypy", "pre-commit", "types-pyyaml", "types-tqdm"}


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_installed_is_pinned_within_what_is_claimed(python):
    versions = pinned("constraints.txt", python)
    assert EXPERIMENTS.keys() <= versions.keys()
    for name, requirement in EXPERIMENTS.items():
        assert versions[name] in requirement.specifier, name


def test_the_oldest_environment_is_the_low_end_of_what_is_claimed():
    versions = pinned("constraints-oldest.txt", "3.10")
    assert versions == {
        name: lower_bound(requirement) for name, requirement in EXPERIMENTS.items() if name not in LINTERS
    }


def test_the_oldest_wheel_is_the_low_end_of_what_it_claims():
    claimed = requirements(PROJECT["dependencies"]) | requirements(PROJECT["optional-dependencies"]["losses"])
    versions = pinned("constraints-wheel.txt", "3.10")
    assert {name: lower_bound(requirement) for name, requirement in claimed.items()}.items() <= versions.items()


def test_extras_ask_for_what_the_experiments_ask_for():
    extras = requirements([line for lines in PROJECT["optional-dependencies"].values() for line in lines])
    shared = extras.keys() & EXPERIMENTS.keys() - {"torchvision"}
    assert {"tokenizers", "webdataset", "fsspec", "huggingface-hub", "pytest", "ruff", "mypy", "pre-commit"} <= shared
    for name in shared:
        if list(EXPERIMENTS[name].specifier):
            assert lower_bound(extras[name]) == lower_bound(EXPERIMENTS[name]), name


def test_the_citation_and_the_wheel_have_one_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (version,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "rqstack/__init__.py").read_text(), re.MULTILINE)
    assert (citation["version"], citation["license"]) == (version, PROJECT["license"])
    assert citation["preferred-citation"]["url"] == PROJECT["urls"]["Paper"]
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["authors"]


def test_every_python_that_is_claimed_is_a_classifier():
    claimed = [f"Programming Language :: Python :: {python}" for python in PYTHONS]
    assert [name for name in claimed if name not in PROJECT["classifiers"]] == []
