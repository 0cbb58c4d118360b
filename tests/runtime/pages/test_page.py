"""Pages: escaped, complete in themselves, with an error for what a template was not given."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from runtime.pages.page import embedded_png, write_page

TEMPLATE = """{% extends "base.html" %}{% import "parts.html" as parts %}
{% block title %}{{ name }}{% endblock %}
{% block body %}{{ parts.table(["a"], [[name], [given]]) }}{{ parts.plots(["", given]) }}
{{ parts.lines(["a\x1b", "b"]) }}{% endblock %}
"""


def test_texts_are_escaped_and_nothing_is_loaded(tmp_path):
    (tmp_path / "t.html").write_text(TEMPLATE)
    write_page(tmp_path / "page.html", tmp_path / "t.html", name="<script>&", given=Markup("<b>x</b>"))
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    assert "<script" not in page and "<td>&lt;script&gt;&amp;</td>" in page and "<td><b>x</b></td>" in page
    assert "<title>&lt;script&gt;&amp;</title>" in page
    assert "<pre>a\\x1b\nb\n</pre>" in page
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page and "://" not in page


def test_a_missing_name_is_an_error(tmp_path):
    (tmp_path / "t.html").write_text(TEMPLATE)
    with pytest.raises(UndefinedError, match="given"):
        write_page(tmp_path / "page.html", tmp_path / "t.html", name="x")
    assert not (tmp_path / "page.html").exists()


def test_pictures_have_words():
    assert embedded_png(b"x", 'a "b"', 12) == '<img src="data:image/png;base64,eA==" alt="a &quot;b&quot;" width="12">'
