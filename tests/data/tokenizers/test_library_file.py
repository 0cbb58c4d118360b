"""A `tokenizer.json` that comes alone: marks, padding and length as the library has them; captions that are cut."""

from __future__ import annotations

import json
import logging

import pytest
import tokenizers as hf
from tokenizers.processors import TemplateProcessing

from data import DatasetConfig, build_dataset
from data.captions.shape_grammar import shape_tokenizer
from data.tokenizers.tokenizer_loading import load_tokenizer
from tests.data.captions.coco_files import save_image, write_annotations

TEXTS = ["a dog", "a cat on a mat", "the dog sits on the mat", "one brown dog"] * 4
PADS = ["[PAD]"]


def _library_tokenizer(marks=(), special=PADS, model="BPE"):
    kinds = {
        "BPE": (hf.models.BPE, hf.trainers.BpeTrainer),
        "WordPiece": (lambda: hf.models.WordPiece(unk_token="[UNK]"), hf.trainers.WordPieceTrainer),
        "Unigram": (hf.models.Unigram, hf.trainers.UnigramTrainer),
    }
    build, trainer = kinds[model]
    tokenizer = hf.Tokenizer(build())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    unknown = {"unk_token": "[UNK]"} if model == "Unigram" else {}
    special_tokens = [*special, "[UNK]", *marks]
    tokenizer.train_from_iterator(
        TEXTS, trainer(vocab_size=60, special_tokens=special_tokens, show_progress=False, **unknown)
    )
    if marks:
        single = f"{marks[0]} $A" + (f" {marks[1]}" if len(marks) > 1 else "")
        tokens = [(mark, tokenizer.token_to_id(mark)) for mark in marks]
        tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


@pytest.mark.parametrize("model", ["BPE", "WordPiece", "Unigram"])
@pytest.mark.parametrize("marks", [(), ("<s>",), ("<s>", "</s>")])
def test_it_encodes_as_the_library_does(tmp_path, model, marks):
    library = _library_tokenizer(marks, model=model)
    library.enable_truncation(6)
    library.enable_padding(pad_id=library.token_to_id("[PAD]"), length=6)
    for name in ("tokenizer.json", "other.json"):
        library.save(str(tmp_path / name))
    file = tmp_path / "tokenizer.json"
    ours = load_tokenizer(file)
    assert ours.files() == load_tokenizer(tmp_path).files() == load_tokenizer(tmp_path / "other.json").files()
    assert (ours.context_length, ours.pad_id) == (6, library.token_to_id("[PAD]"))
    for text in ["", "a dog", "the dog sits on the mat on a mat"]:
        assert ours.encode(text) == library.encode(text).ids
    again = load_tokenizer(ours.save(tmp_path / "saved"), 9)
    assert again.encode("a dog")[:6] == ours.encode("a dog") and len(again.encode("a dog")) == 9
    if model != "BPE":
        with pytest.raises(ValueError, match="this tokenizer has no merges"):
            load_tokenizer(file, bpe_dropout=0.1)


def test_padding_and_length_that_the_file_does_not_say(tmp_path):
    file = tmp_path / "tokenizer.json"
    library = _library_tokenizer(special=["<pad>"])
    library.save(str(file))
    with pytest.raises(ValueError, match="dataset.context_length is missing: .*tokenizer.json does not say"):
        load_tokenizer(file)
    assert load_tokenizer(file, 5).pad_id == library.token_to_id("<pad>")
    marked = _library_tokenizer(("<s>", "</s>"), special=[])
    marked.save(str(file))
    assert load_tokenizer(file, 5).pad_id == marked.token_to_id("</s>")
    _library_tokenizer(special=[]).save(str(file))
    with pytest.raises(ValueError, match=r"has no token for padding; expected one of \[PAD\], <pad>"):
        load_tokenizer(file, 5)
    three = _library_tokenizer(("<s>", "</s>"))
    tokens = [(mark, three.token_to_id(mark)) for mark in ("<s>", "</s>")]
    three.post_processor = TemplateProcessing(single="<s> <s> $A </s>", special_tokens=tokens)
    three.save(str(file))
    with pytest.raises(ValueError, match="puts 3 marks around a text"):
        load_tokenizer(file, 8)
    for content in ("{}", "[1]", "{", ""):
        file.write_text(content)
        with pytest.raises(ValueError, match="tokenizer.json is no file of the tokenizers library") as caught:
            load_tokenizer(file, 8)
        assert len(str(caught.value)) < 300
    words = shape_tokenizer(10).save(tmp_path / "words")
    (words / "tokenizer_settings.json").unlink()
    assert load_tokenizer(words, 10).encode("a red circle") == shape_tokenizer(10).encode("a red circle")
    for name in ("tokenizer.json", "tokenizer_settings.json"):  # as some editors save text
        whole = shape_tokenizer(10).save(tmp_path / "marked")
        (whole / name).write_text((whole / name).read_text(), encoding="utf-8-sig")
        assert load_tokenizer(whole).encode("a red circle") == shape_tokenizer(10).encode("a red circle")


def test_captions_that_are_cut_are_said_once_for_a_data_set(tmp_path, caplog):
    file = tmp_path / "tokenizer.json"
    library = _library_tokenizer(("<s>", "</s>"))
    library.save(str(file))
    tokenizer = load_tokenizer(file, 6)
    assert [tokenizer.length(text) for text in ("", "a dog", "the dog sits on the mat")] == [2, 4, 8]
    long = "the dog sits on the mat"
    assert tokenizer.cut_captions(["a dog", "a cat on a"], "x.txt") == ""
    assert tokenizer.cut_captions(["a dog", long, long + " on a mat"], "x.txt") == (
        "x.txt: 2 of 3 captions have more than 6 tokens and are cut; the longest has 11: "
        "'the dog sits on the mat on a mat'"
    )
    save_image(tmp_path / "train2014" / "1.jpg", 3)
    write_annotations(tmp_path / "annotations" / "captions_train2014.json", [(1, "1.jpg")], [(1, long)])
    settings = {"type": "coco", "root": str(tmp_path), "resolution": 8, "tokenizer": str(file)}
    with caplog.at_level(logging.WARNING):
        build_dataset(DatasetConfig(**settings, context_length=8), "train")
        assert not caplog.records
        build_dataset(DatasetConfig(**settings, context_length=6), "train")
    assert [record.getMessage().startswith("coco (train): 1 of 1 captions have more") for record in caplog.records] == [
        True
    ]


def test_a_saved_file_says_all_it_needs(tmp_path):
    library = _library_tokenizer(("<s>", "</s>"))
    library.save(str(tmp_path / "tokenizer.json"))
    saved = load_tokenizer(tmp_path, 6).save(tmp_path / "saved")
    settings = json.loads((saved / "tokenizer_settings.json").read_text())
    assert settings["kind"] == "tokenizer-json" and settings["context_length"] == 6
