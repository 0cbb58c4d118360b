"""Files of tokenizers from elsewhere: what they say of themselves is checked, and what may never end is tried apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from data.tokenizers import library_trial, safe_library
from data.tokenizers.bpe_training import train_bpe
from data.tokenizers.tokenizer_loading import load_tokenizer
from runtime.errors import UserError

TEXT = "a cat on a mat"


@pytest.fixture(scope="module")
def sound():
    """The two files of a tokenizer of ours, as JSON."""
    tokenizer = train_bpe([TEXT, "a red car"] * 5, 300, 8)
    return {name: json.loads(content) for name, content in tokenizer.files().items()}


@pytest.fixture
def write(sound, tmp_path):
    """`write(tokenizer changes, settings changes)` -> the folder; None leaves the settings out."""

    def save(changes=None, settings=None, **model):
        content = sound["tokenizer.json"] | (changes or {})
        content["model"] = content["model"] | model
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        if settings is not None:
            saved = sound["tokenizer_settings.json"] | settings
            (tmp_path / "tokenizer_settings.json").write_text(json.dumps(saved))
        return tmp_path

    return save


def refused(folder, match, **options):
    with pytest.raises(ValueError, match=match) as raised:
        load_tokenizer(folder, **options)
    line = str(raised.value)
    assert "\n" not in line and len(line) - len(str(folder)) < 300
    return line


TRUNCATION = {"direction": "Left", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 40}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5}
PADDING |= {"pad_type_id": 0, "pad_token": "!"}


def test_its_own_dropout_truncation_and_padding_are_off(write):
    expected = load_tokenizer(write({}, {})).encode(TEXT)
    own = {"truncation": TRUNCATION, "padding": PADDING}
    for _ in range(5):
        assert load_tokenizer(write(own, {}, dropout=0.9)).encode(TEXT) == expected
    (write(own) / "tokenizer_settings.json").unlink()
    alone = load_tokenizer(write(own, dropout=0.9))
    assert (alone.context_length, alone.pad_id) == (2, 5)  # of a file alone they are settings
    assert load_tokenizer(write(own), 8).encode(TEXT)[:4] == expected[:4]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"pad_id": 300_000}, "pad_id 300000 is outside of the"),
        ({"pad_id": -1}, "pad_id -1 of a tokenizer is no id"),
        ({"pad_id": 1.5}, "pad_id 1.5 of a tokenizer is no id"),
        ({"pad_id": True}, "pad_id True of a tokenizer is no id"),
        ({"pad_id": None}, "pad_id None of a tokenizer is no id"),
        ({"start_id": 1 << 40}, "start_id 1099511627776 of a tokenizer is no id"),
        ({"end_id": 999_999}, "end_id 999999 is outside"),
        ({"context_length": 8.5}, "context_length must be"),
        ({"context_length": "8"}, "context_length must be"),
        ({"context_length": True}, "context_length must be"),
        ({"context_length": 10**12}, "context_length must be"),
        ({"bpe_dropout": "0.5"}, "bpe_dropout must be a number"),
        ({"bpe_dropout": float("nan")}, "bpe_dropout must lie in"),
        ({"kind": "pickle"}, "the kind 'pickle' of a tokenizer is unknown"),
        ({"lowercase": True}, "the unknown setting 'lowercase'"),
        ({"kind": "words"}, "cannot be read"),
    ],
)
def test_settings_are_checked_as_configs_are(settings, match, write):
    refused(write({}, settings), match)


@pytest.mark.parametrize(
    ("changes", "model", "match"),
    [
        ({}, {"vocab": {}}, "its vocabulary is empty"),
        ({}, {"vocab": {"a": 4294967295}}, "token 'a' has id 4294967295; ids are 0 to"),
        ({}, {"vocab": {"a": -1}}, "token 'a' has id -1"),
        ({}, {"vocab": {"a": 0.5}}, "token 'a' has id 0.5"),
        ({}, {"vocab": [["a", "b"]], "type": "WordLevel"}, "is no file of the tokenizers library"),
        ({"added_tokens": [{"id": 1 << 33, "content": "x"}]}, {}, "has no content, or no id"),
        ({"added_tokens": [{"id": 3, "content": ""}]}, {}, "has no content, or no id"),
        ({"added_tokens": ["x"]}, {}, "has no content, or no id"),
        ({"model": {"type": "BPE"}}, {}, "vocabulary"),
    ],
)
def test_vocabularies_are_checked(changes, model, match, write):
    refused(write(changes, {}, **model), match)
    (write(changes, {}) / "tokenizer_settings.json").unlink()
    refused(write(changes, **model), match, context_length=8)


def regex(pattern, behavior="Isolated"):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}}


@pytest.mark.parametrize("pattern", ["(a+)+$", "(?:x*y)*z", "((a|b)+c?)*d", "(\\s+x{2,})+", "(a*)*"])
def test_repeated_repetitions_are_refused_unread(pattern, write, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it is tried"))
    refused(write(regex(pattern), {}), "repeats a repetition, which may never end")


@pytest.mark.parametrize(
    "pattern",
    [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
        r"(?:ab)+|[(+*)]+|\(a+\)+",
    ],
)
def test_those_of_published_models_are_read(pattern, write):
    assert len(load_tokenizer(write(regex(pattern), {})).encode("a cat")) == 8


@pytest.fixture
def short_trial(monkeypatch, tmp_path):
    """The trial with limits of a second and 200 MiB."""
    script, source = tmp_path / "trial.py", Path(library_trial.__file__).read_text(encoding="utf-8")
    shorter = source.replace("MEMORY_BYTES = 10, 1 << 30", "MEMORY_BYTES = 1, 200 << 20")
    assert shorter != source
    script.write_text(shorter, encoding="utf-8")
    monkeypatch.setattr(library_trial, "__file__", str(script))


@pytest.mark.usefixtures("short_trial")
def test_what_does_not_end_costs_a_process_that_nobody_misses(write):
    """An expression that takes long without a repetition inside another."""
    line = refused(write(regex("(a|aa)+$"), {}), "takes more than .* of the processor or|cannot read texts with it")
    assert "tokenizer.json" in line


@pytest.mark.usefixtures("short_trial")
def test_a_normalizer_that_makes_too_much_of_a_text(write):
    many = {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 3_000_000}
    refused(write({"normalizer": many}, {}), "takes more than|cannot read texts|crashes")


def test_panics_are_errors(write, monkeypatch):
    class PanicException(BaseException):
        pass

    class Backend:
        def encode(self, *_, **__):
            raise PanicException("index out of bounds")

    tokenizer = load_tokenizer(write({}, {}))
    tokenizer.backend = Backend()
    with pytest.raises(ValueError, match="a caption cannot be read by the tokenizer: index out of bounds"):
        tokenizer.encode("x")


def test_words_are_checked(tmp_path):
    settings = {"kind": "words", "context_length": 4}
    for words in ("abc", [], [1, 2], ["a", "a"], {"a": 1}, None):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"words": words}))
        (tmp_path / "tokenizer_settings.json").write_text(json.dumps(settings))
        refused(tmp_path, "cannot be read")


def test_compressed_and_other_files_are_bounded(tmp_path, monkeypatch):
    file = tmp_path / "bpe.txt.gz"
    file.write_bytes(gzip.compress(bytes(safe_library.MOST_UNPACKED + 1)))
    assert file.stat().st_size < 100_000
    refused(file, f"unpacks to more than {safe_library.MOST_UNPACKED} bytes")
    for name in ("tokenizer.json", "x-vocab.json"):
        (tmp_path / "x-merges.txt").write_text("")
        with open(tmp_path / name, "wb") as sparse:
            sparse.truncate(1 << 40)
        with pytest.raises(UserError, match="more than the 67108864 of any tokenizer"):
            load_tokenizer(tmp_path / (name if name == "tokenizer.json" else "x"), 8)


@pytest.mark.parametrize("vocab", ['["a"]', '{"a": 99999999999}', '{"a": "b"}', "3"])
def test_pairs_are_checked(vocab, tmp_path):
    (tmp_path / "x-vocab.json").write_text(vocab)
    (tmp_path / "x-merges.txt").write_text("#version: 0.2\n")
    refused(tmp_path / "x", "are no byte-pair encoding", context_length=8)
