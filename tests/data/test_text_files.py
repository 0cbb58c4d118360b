"""The one text reader: byte-order marks, ends of lines, encodings, what is no text."""

from __future__ import annotations

import json
import logging

import pytest

from data.text_files import decoded, lines_of, read_json, read_lines, read_text
from runtime.errors import UserError

LINES = ["a dog", "two\u2028lines, one caption", "next\x85line\x0cform\x0bfeed", "", "Ünï 😀 cat"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be", "utf-16-le"])
def test_lines_are_the_same_in_every_encoding_and_with_every_end(tmp_path, encoding, end):
    path = tmp_path / "captions.txt"
    mark = "\ufeff" if encoding.endswith("e") else ""
    for last in ("", end):
        path.write_bytes((mark + end.join(LINES) + last).encode(encoding))
        assert list(read_lines(path)) == LINES
        assert lines_of(decoded(path.read_bytes())) == LINES
    path.write_bytes((mark + json.dumps(LINES, ensure_ascii=False)).encode(encoding))
    assert read_json(path) == LINES


def test_empty_files_have_no_lines(tmp_path):
    path = tmp_path / "a.txt"
    for content in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert list(read_lines(path)) == [] and read_text(path) == "" and lines_of(decoded(content)) == []


def test_what_is_no_text_is_refused_in_one_line_that_names_the_line_or_replaced_and_counted(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_bytes("fine\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt is not a text file in UTF-8: .* in line 2; save it as UTF-8"):
        read_text(path)
    with caplog.at_level(logging.WARNING):
        assert list(read_lines(path, replace=True)) == ["fine", "caf\ufffd"]
    assert [
        record.getMessage().endswith("1 of 2 lines have bytes that are not utf-8 text") for record in caplog.records
    ]
    path.write_text("the mark \ufffd itself", encoding="utf-8")
    assert read_text(path) == "the mark \ufffd itself"
    path.write_bytes("no mark".encode("utf-16-le"))
    with pytest.raises(UserError, match=r"a.txt is no text file: line 1 has NUL bytes"):
        read_text(path)
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match="UTF-16"):
        read_text(path)
    path.write_bytes(b"{")
    with pytest.raises(UserError, match="a.txt is no JSON file"):
        read_json(path)
