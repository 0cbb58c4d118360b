"""Tokenizers of captions: equal to the library's own, dropout by key, saving, loading, odd texts."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from dataclasses import replace

import pytest
import tokenizers as hf
import torch

from data import DatasetConfig
from data.captions.shape_grammar import shape_tokenizer, shape_vocabulary
from data.tokenizers.__main__ import main as tokenizers_main
from data.tokenizers.__main__ import parse as tokenizers_parse
from data.tokenizers.bpe import BPETokenizer
from data.tokenizers.bpe_dropout import LONGEST_WORD
from data.tokenizers.bpe_files import CLIP_END, CLIP_START
from data.tokenizers.bpe_training import train_bpe
from data.tokenizers.caption_tokenizer import WordTokenizer
from data.tokenizers.tokenizer_loading import load_tokenizer, tokenizer_named_or_none
from tests.commands import run

LENGTH = 24
ODD = ["", "   ", "\t\n", "😀😀 日本語 ñandú", "a\x00b\x07", "\ud83d lone", "é é", "&amp; <b>", "[PAD] [UNK] x"]
ODD += ["İstanbul Σας"]
_WORDS = (
    "a the an small large red blue café naïve Straße dog cat on in mat's people running 12 3rd of photo photography "
    "photographer 日本 😀 don't hello-world e.g. stock illustration white-background , . ! ( ) beautifully unbelievable"
).split()


def _captions(count=1000, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choice(_WORDS) for _ in range(draw.randint(0, 20))) for _ in range(count)]


CAPTIONS = _captions()


@pytest.fixture(scope="module")
def byte_bpe():
    return train_bpe(CAPTIONS, 420, LENGTH)


@pytest.fixture(scope="module")
def char_pair(tmp_path_factory):
    """A pair in the published layout, trained by the library's own class."""
    folder = tmp_path_factory.mktemp("pair")
    trained = hf.CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    kept = [text for text in CAPTIONS if "日本" not in text and "!" not in text]  # so that some characters are unknown
    trained.train_from_iterator(kept, vocab_size=260, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    trained.save_model(str(folder), "bpe-16k")
    return folder


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    """A file of merges as CLIP's: a line with the version, then pairs of symbols."""
    path = tmp_path_factory.mktemp("clip") / "bpe_simple_vocab_16e6.txt.gz"
    merges = [
        "p h",
        "o t",
        "ph ot",
        "phot o</w>",
        "a t</w>",
        "c at</w>",
        "' s</w>",
        "d o",
        "do g</w>",
        "i n",
        "in g</w>",
    ]
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges, ""]).encode()))
    return path


def _with_dropout(tokenizer, probability, length=None):
    settings = replace(tokenizer.settings, bpe_dropout=probability, context_length=length or tokenizer.context_length)
    return BPETokenizer(tokenizer.backend, settings)


def _library_ids(tokenizer, pad_id):
    tokenizer.enable_padding(length=LENGTH, pad_id=pad_id)
    tokenizer.enable_truncation(max_length=LENGTH)
    return [tokenizer.encode(text).ids for text in CAPTIONS]


def test_published_pair_equals_the_library_on_1000_captions(char_pair):
    """[UNK], lower case and [PAD] as the published data sets ask the library for them."""
    files = [str(char_pair / f"bpe-16k-{name}") for name in ("vocab.json", "merges.txt")]
    theirs = hf.CharBPETokenizer.from_file(*files, unk_token="[UNK]", lowercase=True)
    theirs.add_special_tokens(["[PAD]"])
    ours = load_tokenizer(char_pair / "bpe-16k", LENGTH)
    assert (ours.kind, ours.pad_id, ours.vocab_size) == ("char-bpe", 0, len(json.loads(open(files[0]).read())))
    expected = _library_ids(theirs, 0)
    assert [ours.encode(text) for text in CAPTIONS] == expected
    assert any(row[-1] != 0 for row in expected) and any(row[0] == 0 for row in expected)
    assert any(1 in row for row in expected)  # cut, empty and unknown ones are among them
    assert load_tokenizer(char_pair, LENGTH).encode("a dog") == load_tokenizer(files[0], LENGTH).encode("a dog")


def test_byte_level_pair_equals_the_library_and_gets_a_padding_token_of_its_own(tmp_path):
    theirs = hf.ByteLevelBPETokenizer(lowercase=True)
    theirs.train_from_iterator(CAPTIONS, vocab_size=400, show_progress=False)
    theirs.save_model(str(tmp_path))
    theirs.add_special_tokens(["[PAD]"])
    ours = load_tokenizer(tmp_path, LENGTH)
    assert (ours.kind, ours.pad_id) == ("byte-bpe", theirs.get_vocab_size() - 1) and ours.vocab_size == ours.pad_id + 1
    assert [ours.encode(text) for text in CAPTIONS] == _library_ids(theirs, ours.pad_id)


def test_trained_tokenizer_equals_what_the_library_reads_from_its_file(byte_bpe, tmp_path):
    theirs = hf.Tokenizer.from_file(str(byte_bpe.save(tmp_path) / "tokenizer.json"))
    assert [byte_bpe.encode(text) for text in CAPTIONS] == _library_ids(theirs, byte_bpe.pad_id)


def test_training_is_repeatable_and_knows_every_byte(byte_bpe):
    assert train_bpe(CAPTIONS, 420, LENGTH).files() == byte_bpe.files()
    assert byte_bpe.pad_id == 0 and 257 < byte_bpe.vocab_size <= 420
    assert len({tuple(byte_bpe.encode(text)) for text in ("Red DOG", "red dog", " red dog ")}) == 1
    cased = train_bpe(CAPTIONS, 420, LENGTH, lowercase=False)
    assert cased.encode("Red") != cased.encode("red")
    with pytest.raises(ValueError, match="--vocab-size must be at least 257"):
        train_bpe(CAPTIONS, 256, LENGTH)


def test_padding_and_truncation(byte_bpe):
    long = _with_dropout(byte_bpe, 0.0, 200)
    for text in CAPTIONS[:50]:
        full = long.encode(text)
        assert len(full) == 200
        assert byte_bpe.encode(text) == full[:LENGTH]
        count = len([number for number in full if number != 0])
        assert full[count:] == [0] * (200 - count)
    batch_BL = byte_bpe.encode_batch(CAPTIONS[:3])
    assert batch_BL.dtype == torch.int64 and batch_BL.tolist() == [byte_bpe.encode(text) for text in CAPTIONS[:3]]
    assert byte_bpe.encode_batch([]).shape == (0, LENGTH)


@pytest.mark.parametrize("kind", ["byte_bpe", "char", "clip"])
def test_merging_without_dropout_is_the_library_s(kind, byte_bpe, char_pair, clip_file):
    plain = {"byte_bpe": byte_bpe, "char": load_tokenizer(char_pair, LENGTH), "clip": load_tokenizer(clip_file)}[kind]
    merging = _with_dropout(plain, 1e-300)  # every merge is asked for and none dropped
    assert [merging.encode(text, 7) for text in CAPTIONS + ODD] == [plain.encode(text) for text in CAPTIONS + ODD]


@pytest.mark.parametrize("kind", ["byte_bpe", "char", "clip"])
def test_dropout_is_decided_by_the_key_and_keeps_the_text(kind, byte_bpe, char_pair, clip_file):
    plain = {"byte_bpe": byte_bpe, "char": load_tokenizer(char_pair, LENGTH), "clip": load_tokenizer(clip_file)}[kind]
    noisy = _with_dropout(plain, 0.3, 400)
    texts = CAPTIONS[:100]
    first = [noisy.encode(text, key) for key, text in enumerate(texts)]
    assert first == [noisy.encode(text, key) for key, text in enumerate(texts)]
    assert first != [noisy.encode(text, key + 1000) for key, text in enumerate(texts)]
    assert [noisy.encode(text) for text in texts] == [
        row + [plain.pad_id] * (400 - len(row))
        for row in (_with_dropout(plain, 0.0, 400).encode(text) for text in texts)
    ]
    assert [noisy.decode(row) for row in first] == [noisy.decode(noisy.encode(text)) for text in texts]
    whole = _with_dropout(plain, 1.0, 400).encode("photo dog", 3)
    assert len([number for number in whole if number != plain.pad_id]) >= 8  # every letter is alone


def test_dropout_has_the_library_s_distribution(byte_bpe):
    """Mean number of tokens per caption: the library's dropout cannot be seeded, so within six standard errors."""
    theirs = hf.Tokenizer.from_str(byte_bpe.backend.to_str())
    theirs.model.dropout = 0.2
    ours = _with_dropout(byte_bpe, 0.2, 400)
    counts_theirs = torch.tensor([len(theirs.encode(text).ids) for text in CAPTIONS], dtype=torch.float64)
    counts_ours = (ours.encode_batch(CAPTIONS, range(len(CAPTIONS))) != 0).sum(1).double()
    plain = (ours.encode_batch(CAPTIONS) != 0).sum(1).double()
    difference = counts_ours - counts_theirs  # the same captions, so their lengths cancel
    assert difference.mean().abs() < 6 * difference.std() / len(CAPTIONS) ** 0.5
    assert (counts_ours.mean() - plain.mean()) > 10 * difference.mean().abs()


def test_very_long_words_keep_their_plain_segmentation(byte_bpe):
    noisy = _with_dropout(byte_bpe, 0.5, 2000)
    link = "http" + "ing" * LONGEST_WORD
    assert noisy.encode(link, 1) != noisy.encode(link[:60], 1)
    long_word = "ab" * LONGEST_WORD
    assert noisy.encode(long_word, 1) == noisy.encode(long_word)


def test_odd_captions(byte_bpe, char_pair, clip_file):
    for tokenizer in (byte_bpe, load_tokenizer(char_pair, LENGTH), load_tokenizer(clip_file, LENGTH)):
        noisy = _with_dropout(tokenizer, 0.2)
        for text in ODD:
            for ids in (tokenizer.encode(text), noisy.encode(text, 1)):
                assert len(ids) == LENGTH and all(0 <= number < tokenizer.vocab_size for number in ids)
        marks = [tokenizer.settings.start_id, tokenizer.settings.end_id] if tokenizer.kind == "clip-bpe" else []
        assert tokenizer.encode("") == tokenizer.encode("  ") == marks + [tokenizer.pad_id] * (LENGTH - len(marks))
        assert tokenizer.decode(tokenizer.encode("")) == ""
    assert byte_bpe.decode(byte_bpe.encode("😀 日本 ñ")) == "😀 日本 ñ"
    assert byte_bpe.encode("e\u0301") == byte_bpe.encode("\u00e9")


def test_clip_file(clip_file):
    """Bytes, bytes at a word's end, merges, marks: by hand on a few words."""
    tokenizer = load_tokenizer(clip_file)
    vocab = tokenizer.backend.get_vocab()
    assert (tokenizer.context_length, tokenizer.vocab_size, tokenizer.pad_id) == (77, 512 + 11 + 2, 0)
    assert (vocab["!"], vocab["~"], vocab["!</w>"], vocab["ph"]) == (0, 93, 256, 512)
    assert (vocab[CLIP_START], vocab[CLIP_END]) == (523, 524)
    tokens = ["photo</w>", "do", "t</w>", "cat</w>", "'s</w>", "1</w>", "2</w>", ",</w>"]
    ids = tokenizer.encode("  PHOTO dot\n cat&#39;s 12 , ")
    assert ids == [523, *(vocab[token] for token in tokens), 524] + [0] * 67
    assert tokenizer.decode(ids) == "photo dot cat 's 1 2 ,"
    assert load_tokenizer(clip_file, 4).encode("photo cat dog") == [523, vocab["photo</w>"], vocab["cat</w>"], 524]


def test_saving_and_loading(byte_bpe, char_pair, clip_file, tmp_path):
    for number, tokenizer in enumerate((byte_bpe, load_tokenizer(char_pair, 9, 0.25), load_tokenizer(clip_file, 12))):
        folder = tokenizer.save(tmp_path / str(number))
        assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_settings.json"]
        loaded = load_tokenizer(folder)
        assert loaded.settings == tokenizer.settings and loaded.files() == tokenizer.files()
        rows = [[each.encode(text, 5) for text in CAPTIONS[:99]] for each in (loaded, tokenizer)]
        assert rows[0] == rows[1]
        assert pickle.loads(pickle.dumps(loaded)).encode("a dog", 5) == loaded.encode("a dog", 5)
        assert load_tokenizer(folder / "tokenizer.json", 5, 0.5).settings == replace(
            tokenizer.settings, context_length=5, bpe_dropout=0.5
        )


def test_words_are_a_tokenizer_too(tmp_path):
    tokenizer = shape_tokenizer(10)
    text = "a small red circle on a navy background"
    assert tokenizer.encode(text, 3) == tokenizer.encode(text) and tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == [*(shape_vocabulary().index(word) for word in text.split()), 0, 0]
    assert tokenizer.vocab_size == len(shape_vocabulary()) and tokenizer.encode("") == [0] * 10
    loaded = load_tokenizer(tokenizer.save(tmp_path))
    assert isinstance(loaded, WordTokenizer) and loaded.encode(text) == tokenizer.encode(text)
    assert load_tokenizer(tmp_path, 12).encode("a") == [1] + [0] * 11
    with pytest.raises(ValueError, match="caption word 'huge' is unknown; the words are a, on"):
        loaded.encode("a huge circle")
    with pytest.raises(ValueError, match="knows whole words"):
        load_tokenizer(tmp_path, bpe_dropout=0.1)


def test_what_is_no_tokenizer_is_one_line(byte_bpe, char_pair, clip_file, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at .*; expected a folder with tokenizer.json"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(ValueError, match="context_length is missing"):
        load_tokenizer(char_pair)
    folder = byte_bpe.save(tmp_path / "cut")
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text()[:500])
    with pytest.raises(ValueError, match="cut/tokenizer.json is no file of the tokenizers library"):
        load_tokenizer(folder)
    (tmp_path / "x.gz").write_bytes(clip_file.read_bytes()[:40])
    with pytest.raises(ValueError, match="x.gz is no gzip file of merges"):
        load_tokenizer(tmp_path / "x.gz")
    for name in ("bpe-16k", "bpe-30k"):
        (tmp_path / f"{name}-vocab.json").write_text("{}")
        (tmp_path / f"{name}-merges.txt").write_text("")
    with pytest.raises(ValueError, match="several vocabularies; choose one of .*bpe-16k"):
        load_tokenizer(tmp_path, 8)
    (tmp_path / "bpe-16k-vocab.json").write_text("[")
    with pytest.raises(ValueError, match="are no byte-pair encoding"):
        load_tokenizer(tmp_path / "bpe-16k", 8)
    for settings, message in ({"bpe_dropout": 1.5}, "lie in"), ({"context_length": 0}, "context_length must be"):
        with pytest.raises(ValueError, match=message):
            load_tokenizer(byte_bpe.save(tmp_path / "fine"), **settings)


def test_command_line(tmp_path, capsys):
    (tmp_path / "train_list.txt").write_text("\n".join(f"./train/{i}\t{text}" for i, text in enumerate(CAPTIONS)))
    out = str(tmp_path / "out")
    train = ["train", str(tmp_path / "train_list.txt"), "--vocab-size", "300", "--out", out, "--column", "2"]
    tokenizers_main(tokenizers_parse([*train, "--context-length", "12"]))
    assert "300 tokens to " in (printed := capsys.readouterr().out) and "1000 captions have" in printed
    assert load_tokenizer(out).files() == train_bpe(CAPTIONS, 300, 12).files()
    tokenizers_main(tokenizers_parse(["show", out, "--text", "A Dog"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "byte-bpe: 300 tokens, 12 per caption, padding is 0" and lines[2] == "a dog"
    with pytest.raises(ValueError, match="line 1 has 2 columns, not 3"):
        tokenizers_main(tokenizers_parse([*train[:-1], "3"]))
    with pytest.raises(SystemExit) as stopped:
        tokenizers_parse(["train", "x.txt", "--out", "y"])
    assert stopped.value.code == 2
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="empty.txt holds no captions"):
        tokenizers_main(tokenizers_parse(["train", str(tmp_path / "empty.txt"), *train[2:6]]))


@pytest.mark.slow
def test_the_command_starts_without_a_warning(byte_bpe, tmp_path):
    shown = run("-W", "error", "-m", "data.tokenizers", "show", byte_bpe.save(tmp_path))
    assert (shown.code, shown.err) == (0, "") and shown.out.startswith("byte-bpe: ")


def test_a_published_tokenizer_whose_files_are_missing_is_one_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("RQ_DATA_ROOT", str(tmp_path))
    config = DatasetConfig(type="cc3m", txt_tok_name="bpe16k_huggingface")
    assert [tokenizer_named_or_none(config, split) for split in ("train", "val")] == [None, None]
    assert caplog.text.count("cc3m gives images without captions: dataset.txt_tok_name=bpe16k_huggingface: no") == 1
