"""What the package promises is what its document names."""

import dataclasses
import re
from pathlib import Path

import pytest

from rqstack import quantizers
from rqvae.bottleneck import BOTTLENECKS

DOCUMENT = (Path(__file__).resolve().parents[3] / "docs" / "quantizers.md").read_text()


def test_every_public_name_is_documented():
    assert [name for name in quantizers.__all__ if f"`{name}`" not in DOCUMENT] == []
    assert all(hasattr(quantizers, name) for name in quantizers.__all__)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_table_of_names_has_a_row_for_every_bottleneck(name):
    (row,) = re.findall(rf"^\| `{name}` \| `\w+` \| (.*) \|$", DOCUMENT, flags=re.MULTILINE)
    options = BOTTLENECKS[name].options
    assert row in ("none", "keywords") if options is None else row.startswith(f"`{options.__name__}`")


@pytest.mark.parametrize("name", [name for name, row in BOTTLENECKS.items() if row.options is not None])
def test_options_are_public_and_cannot_be_changed(name):
    options = BOTTLENECKS[name].options
    assert options.__name__ in quantizers.__all__
    assert options.__dataclass_params__.frozen and dataclasses.fields(options)
