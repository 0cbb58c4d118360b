"""Packages give the names that they promise, each from where it is defined, and no others."""

from __future__ import annotations

import ast
import importlib

import pytest

from tests.architecture import product_sources
from tests.repository import ROOT

LIBRARIES = ("rqstack", "rqvae", "rqtransformer")
PACKAGES = [
    source for source in product_sources(ROOT) if "late_names(" in source.text and "def late_names" not in source.text
]


@pytest.mark.parametrize("source", PACKAGES, ids=lambda source: source.module)
def test_every_promised_name_is_there_as_the_type_checker_sees_it(source):
    if source.top not in LIBRARIES:
        pytest.importorskip("hydra", reason="the wheel alone")
    package = importlib.import_module(source.module)
    declared = {
        alias.name: node.module
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == source.top
        for alias in node.names
    }
    assert set(declared) == set(package.__all__)
    for name, module in declared.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match=f"module '{source.module}' has no attribute 'no_such_name'"):
        _ = package.no_such_name
