"""Images with captions: CC-3M's lists, COCO's annotations, folders; tokens, choice of captions, what cannot be read."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, EvalLoader, TrainLoader, build_dataset
from data.build import dataset_request
from data.captions.caption_folder import read_metadata
from data.captions.captioned_dataset import CaptionTable
from data.images.transforms import Pipeline
from data.tokenizers.bpe_training import train_bpe
from data.tokenizers.tokenizer_loading import load_tokenizer, tokenizer_beside, tokenizer_named

LENGTH = 12
COCO_DOG = ["a dog", "the dog sits", "one brown dog", "dogs are nice"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    texts = ["a dog", "a cat on a mat", "the dog sits", "one brown dog"] * 5
    return train_bpe(texts, 300, LENGTH).save(tmp_path_factory.mktemp("tokenizer"))


def _save(path, value, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(path, "png")


def _build(tokenizer, split="train", **settings):
    values = {"resolution": 8, "tokenizer": str(tokenizer), **settings}
    return build_dataset(DatasetConfig(**values), split)


def _cc3m(root, captions, split="train"):
    for number in range(len(captions)):
        _save(root / split / f"{number:032x}", number)  # no extension, as the published script saves them
    lines = [f"./{split}/{number:032x}\t{text}\n" for number, text in enumerate(captions)]
    (root / f"{split}_list.txt").write_text("".join(lines), encoding="utf-8")


def _decoded(tokenizer, dataset, key=None):
    reader = load_tokenizer(tokenizer)
    return [reader.decode(dataset[i if key is None else (i, key)]["cond"].tolist()) for i in range(len(dataset))]


def test_cc3m_lists(tokenizer, tmp_path):
    captions = ["a dog", "", "Ünï 😀 cat", "a cat on a mat " * 10]
    _cc3m(tmp_path, captions)
    _cc3m(tmp_path, ["the val dog"], "val")
    train, val = (_build(tokenizer, split, type="cc3m", root=str(tmp_path)) for split in ("train", "val"))
    assert (len(train), len(val), train.num_classes) == (4, 1, 1)
    assert train.captions([0, 1, 2]) == captions[:3] and val.captions(range(1)) == ["the val dog"]
    batch = train.fetch(np.arange(4), None)
    assert batch["cond"].dtype == torch.int64 and batch["cond"].shape == (4, LENGTH)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert batch["cond"][1].tolist() == [0] * LENGTH and batch["cond"][3].min() > 0
    assert _decoded(tokenizer, val) == ["the val dog"] and _decoded(tokenizer, train)[2] == "ünï 😀 cat"
    config = DatasetConfig(dataset="cc3m", image_resolution=256, transforms="dalle-vqvae")  # the published keys
    request = dataset_request(config, "train")
    assert (request.name, request.crop, request.resolution) == ("cc3m", "dalle", (256, 256))


def test_cc3m_lists_that_are_wrong(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="train_list.txt; expected train_list.txt and val_list.txt"):
        _build(tokenizer, type="cc3m", root=str(tmp_path))
    (tmp_path / "train_list.txt").write_text("a\tb\nc d\n")
    with pytest.raises(ValueError, match="train_list.txt, line 2 has 1 columns; expected path<TAB>caption"):
        _build(tokenizer, type="cc3m", root=str(tmp_path))
    (tmp_path / "train_list.txt").write_text("")
    with pytest.raises(ValueError, match="train_list.txt is empty"):
        _build(tokenizer, type="cc3m", root=str(tmp_path))


def test_an_unreadable_image_is_replaced_with_its_caption_and_counted(tokenizer, tmp_path):
    _cc3m(tmp_path, ["a dog", "broken", "missing", "a cat on a mat"])
    (tmp_path / "train" / f"{1:032x}").write_bytes(b"no image")
    (tmp_path / "train" / f"{2:032x}").unlink()
    train = _build(tokenizer, type="cc3m", root=str(tmp_path))
    batch = train.fetch(np.arange(4), np.arange(4))
    assert batch["index"].tolist() == [0, 1, 2, 3] and batch["image"][:, 0, 0, 0].tolist() == [0, 3, 3, 3]
    reader = load_tokenizer(tokenizer)
    texts = [reader.decode(row) for row in batch["cond"].tolist()]
    assert texts == ["a dog", "a cat on a mat", "a cat on a mat", "a cat on a mat"]
    assert train.corrupt_count() == 2 and train.captions([1]) == ["broken"]
    with pytest.raises(ValueError, match="2 images of cc3m .* dataset.max_corrupt is 1"):
        _build(tokenizer, type="cc3m", root=str(tmp_path), max_corrupt=1).fetch(np.arange(4), None)


def _coco(root, split, captions, name=None, missing_image=False):
    content = {"images": [], "annotations": []}
    for number, texts in captions.items():
        file_name = f"COCO_{split}2014_{number:012d}.jpg"
        content["images"].insert(0, {"id": number, "file_name": file_name})  # not in the order of the ids
        content["annotations"] += [{"image_id": number, "id": 9, "caption": text + "\n"} for text in texts]
        _save(root / "images" / f"{split}2014" / file_name, number)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / (name or f"captions_{split}2014.json")).write_text(json.dumps(content))


def test_coco(tokenizer, tmp_path):
    _coco(tmp_path, "train", {5: COCO_DOG, 3: ["a cat on a mat"], 9: []})
    _coco(tmp_path, "val", {1: ["first", "second"], 2: ["third"]})
    train, val = (_build(tokenizer, split, type="coco", root=str(tmp_path)) for split in ("train", "val"))
    assert train.captions(range(2)) == ["a cat on a mat", "a dog"] and val.captions([0, 1]) == ["first", "third"]
    assert train.fetch(np.arange(2), None)["image"][:, 0, 0, 0].tolist() == [3, 5]
    assert train.table.texts_of(1) == COCO_DOG
    _coco(tmp_path, "val", {2: ["sampled"]}, "captions_val2014_30K_samples.json")
    published = _build(tokenizer, "val", dataset="coco_2014val", root=str(tmp_path))
    assert published.name == "coco" and published.captions(range(len(published))) == ["sampled"]
    whole = _build(tokenizer, "val", type="coco", root=str(tmp_path), val_captions="captions_val2014.json")
    assert len(whole) == 2
    for content in ("{", "[]", '{"images": [{"id": 1}], "annotations": []}'):
        (tmp_path / "annotations" / "captions_train2014.json").write_text(content)
        with pytest.raises(ValueError, match="captions_train2014.json is no (COCO caption|JSON) file"):
            _build(tokenizer, type="coco", root=str(tmp_path))
    (tmp_path / "annotations" / "captions_train2014.json").unlink()
    with pytest.raises(FileNotFoundError, match="captions_train2014.json; expected annotations"):
        _build(tokenizer, type="coco", root=str(tmp_path))


def test_one_of_several_captions_is_chosen_by_the_noise_key_in_training_and_the_first_in_evaluation(
    tokenizer, tmp_path
):
    _coco(tmp_path, "train", {5: COCO_DOG})
    _coco(tmp_path, "val", {5: COCO_DOG})
    train, val = (_build(tokenizer, split, type="coco", root=str(tmp_path)) for split in ("train", "val"))
    reader = load_tokenizer(tokenizer)
    zeros = np.zeros(400, dtype=np.int64)
    chosen = [reader.decode(row) for row in train.fetch(zeros, np.arange(400))["cond"].tolist()]
    assert [reader.decode(row) for row in train.fetch(zeros[:1], np.array([17]))["cond"].tolist()] == [chosen[17]]
    counts = [chosen.count(text) for text in COCO_DOG]
    assert sum(counts) == 400 and min(counts) > 60
    assert _decoded(tokenizer, train) == _decoded(tokenizer, val) == _decoded(tokenizer, val, 17) == ["a dog"]


def test_dropout_is_for_training_only_and_depends_on_seed_and_noise_key(tokenizer, tmp_path):
    _cc3m(tmp_path, ["a cat on a mat"] * 3)
    _cc3m(tmp_path, ["a cat on a mat"] * 3, "val")
    settings = {"type": "cc3m", "root": str(tmp_path), "bpe_dropout": 0.5, "context_length": 32}
    train, val = (_build(tokenizer, split, **settings) for split in ("train", "val"))
    other_seed = build_dataset(DatasetConfig(tokenizer=str(tokenizer), resolution=8, **settings), "train", seed=1)
    keys = np.arange(30)
    rows = train.fetch(keys % 3, keys)["cond"]
    assert len({tuple(row) for row in rows.tolist()}) > 10
    assert torch.equal(rows, train.fetch(keys % 3, keys)["cond"])
    assert not torch.equal(rows, other_seed.fetch(keys % 3, keys)["cond"])
    plain = train.fetch(keys % 3, None)["cond"]
    assert torch.equal(plain, val.fetch(keys % 3, keys)["cond"]) and (plain == plain[0]).all()


def test_batches_do_not_depend_on_workers_and_ranks(tokenizer, tmp_path):
    _cc3m(tmp_path, [f"a dog {number}" for number in range(8)])
    train = _build(tokenizer, type="cc3m", root=str(tmp_path), bpe_dropout=0.3)

    def conditions(count, **settings):
        batches = iter(TrainLoader(train, seed=3, **settings))
        return torch.cat([next(batches)["cond"] for _ in range(count)])

    alone = conditions(2, batch_size=8)
    assert torch.equal(alone, conditions(2, batch_size=8, num_workers=2))
    halves = [conditions(2, batch_size=4, rank=rank, world_size=2) for rank in range(2)]
    assert torch.equal(alone, torch.cat([halves[0][:4], halves[1][:4], halves[0][4:], halves[1][4:]]))
    assert torch.cat([batch["cond"] for batch in EvalLoader(train, 3)]).shape == (8, LENGTH)
    assert torch.equal(
        pickle.loads(pickle.dumps(train)).fetch(np.arange(8), np.arange(8))["cond"],
        train.fetch(np.arange(8), np.arange(8))["cond"],
    )


def test_folder_with_text_files(tokenizer, tmp_path, caplog):
    for number in range(20):
        _save(tmp_path / "sub" / f"{number:02d}.png", number)
        (tmp_path / "sub" / f"{number:02d}.txt").write_text(f"dog {number}\n\n  brown dog {number} \n")
    (tmp_path / "sub" / "00.txt").write_text("")
    (tmp_path / "sub" / "01.txt").unlink()
    with caplog.at_level(logging.WARNING):
        train, val = (_build(tokenizer, split, type="caption-folder", root=str(tmp_path)) for split in ("train", "val"))
    assert caplog.text.count("images have no caption and are left out") == 1 and ": 1 of " in caplog.text
    captions = train.captions(range(len(train))) + val.captions(range(len(val)))
    assert len(val) >= 1 and sorted(captions) == sorted(["", *(f"dog {i}" for i in range(2, 20))])
    assert train.table.texts_of(train.captions(range(17)).index("dog 5")) == ["dog 5", "brown dog 5"]
    images = train.fetch(np.arange(17), None)["image"][:, 0, 0, 0].tolist()
    assert train.captions(range(17)) == [f"dog {value}" if value else "" for value in images]


def test_folder_with_metadata_and_given_splits(tokenizer, tmp_path):
    for split in ("train", "val"):
        _save(tmp_path / split / "x.png", 1)
        _save(tmp_path / split / "y.png", 2)
    lines = ['{"file_name": "y.png", "text": ["one", "two"]}', "", '{"file_name": "x.png", "caption": "a dog"}']
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "val" / "metadata.jsonl").write_text('{"file_name": "y.png", "text": "val"}\n')
    train, val = (_build(tokenizer, split, type="caption-folder", root=str(tmp_path)) for split in ("train", "val"))
    assert train.captions([0, 1]) == ["a dog", "one"] and val.captions(range(len(val))) == ["val"]
    assert train.fetch(np.arange(2), None)["image"][:, 0, 0, 0].tolist() == [1, 2]
    wrong = ["{", '{"file_name": "x.png"}', '{"file_name": "x.png", "text": [1]}', '{"file_name": 1, "text": ""}']
    for line in wrong:
        (tmp_path / "train" / "metadata.jsonl").write_text(lines[0] + "\n" + line + "\n")
        with pytest.raises(ValueError, match="metadata.jsonl, line 2"):
            _build(tokenizer, type="caption-folder", root=str(tmp_path))


def test_one_folder_gives_classes_and_captions_and_the_same_split_however_it_is_read(tokenizer, tmp_path, caplog):
    for number in range(40):
        _save(tmp_path / "ab"[number % 2] / f"{number:02d}.png", number)
        (tmp_path / "ab"[number % 2] / f"{number:02d}.txt").write_text(f"dog {number}")
    (tmp_path / "a" / "00.txt").unlink()
    sides = {}
    for name, settings in {
        "classes": dict(type="folder"),
        "both": dict(type="folder", captions="files"),
        "captions": dict(type="caption-folder"),
        "names": dict(type="folder", captions="names"),
    }.items():
        if name == "names":
            for path in list(tmp_path.rglob("*.png")):
                path.rename(path.with_name(f"{path.stem}_red-dog.PNG"))
        train, val = (_build(tokenizer, split, root=str(tmp_path), **settings) for split in ("train", "val"))
        sides[name] = [set(part.names()) for part in (train, val)]
        if name in ("classes", "both", "names"):
            assert train.class_names == val.class_names == ("a", "b")
            assert train.labels_N.tolist() == ["ab".index(path[0]) for path in train.source.names()]
        if name in ("both", "captions"):
            expected = [f"dog {int(path[2:4])}" for path in train.source.names()]
            assert train.captions(range(len(train))) == expected and "cond" in train[0] and "label" in train[0]
        if name == "names":
            assert train.captions([0])[0].endswith(" red dog")
    for split in (0, 1):
        assert sides["both"][split] == sides["captions"][split] <= sides["classes"][split]
    assert caplog.text.count("images have no caption and are left out") == 2 and ": 1 of " in caplog.text


def test_names_without_words_are_no_captions(tokenizer, tmp_path):
    for number in range(20):
        _save(tmp_path / f"{number:02d}.png", number)
    with pytest.raises(ValueError, match="dataset.captions=names, but names in .* hold no words"):
        _build(tokenizer, type="caption-folder", root=str(tmp_path), captions="names")
    for settings, match in (
        (dict(type="folder", captions="txt"), "dataset.captions 'txt' is unknown; choose one of none, files, names"),
        (dict(type="cc3m", captions="names"), "are of folder and caption-folder, not of cc3m"),
    ):
        with pytest.raises(ValueError, match=match):
            _build(tokenizer, root=str(tmp_path), **settings)


def test_folder_with_a_table_of_captions(tokenizer, tmp_path):
    for name in ("x.png", "y.png", "sub/z", "unlisted.png"):
        _save(tmp_path / "Train" / name, 1)
        _save(tmp_path / "valid" / name, 1)
    rows = 'file_name,n,text\ny.png,1,"two, with ""quotes""\nand lines"\n./x.png,2,one\nx.png,3,again\nsub/z,,last\n'
    (tmp_path / "Train" / "metadata.csv").write_text("\ufeff" + rows, encoding="utf-8")
    (tmp_path / "metadata.csv").write_text("file_name,caption\nvalid/x.png,val\nTrain/x.png,unused\ngone.png,no\n")
    train, val = (_build(tokenizer, split, type="caption-folder", root=str(tmp_path)) for split in ("train", "val"))
    assert list(train.source.names()) == ["sub/z", "x.png", "y.png"]
    assert train.captions(range(3)) == ["last", "one", 'two, with "quotes" and lines']
    assert train.table.texts_of(1) == ["one", "again"]
    assert val.captions(range(len(val))) == ["val"]


@pytest.mark.parametrize(
    ("text", "match"),
    [("a,b\n1,2\n", "has columns a, b; expected file_name and text"), ("", "has columns ; expected file_name"),
     ("file_name,text\nx.png\n", "line 2 has no file_name or no text"),
     ("file_name,text\n../x.png,a\n", "file_name '../x.png' leads out of the folder"),
     ("file_name,text\n/etc/x.png,a\n", "leads out of the folder")],
)  # fmt: skip
def test_tables_that_are_wrong(tokenizer, tmp_path, text, match):
    _save(tmp_path / "x.png", 1)
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match=match):
        _build(tokenizer, type="caption-folder", root=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(ValueError, match="has both metadata.jsonl and metadata.csv"):
        _build(tokenizer, type="caption-folder", root=str(tmp_path))


def test_folder_without_captions(tokenizer, tmp_path):
    _save(tmp_path / "x.png", 1)
    _save(tmp_path / "y.png", 1)
    with pytest.raises(FileNotFoundError, match="expected images with a .txt file beside each"):
        _build(tokenizer, type="caption-folder", root=str(tmp_path))


def test_images_are_of_use_without_a_tokenizer(tmp_path, caplog):
    _cc3m(tmp_path, ["a dog"])
    train = build_dataset(DatasetConfig(type="cc3m", root=str(tmp_path), resolution=8), "train")
    assert caplog.text == ""  # nobody asked for captions
    assert train.tokenizer is None and sorted(train[0]) == ["image", "index", "label"]
    assert train.captions([0]) == ["a dog"]
    with pytest.raises(ValueError, match="no tokenizer at"):  # one that is named has to be there
        build_dataset(DatasetConfig(type="cc3m", root=str(tmp_path), resolution=8, tokenizer="/nowhere"), "train")


def test_which_tokenizer(tokenizer, tmp_path, monkeypatch):
    def build(beside=None, **settings):
        return tokenizer_named(DatasetConfig(**settings), beside)

    with pytest.raises(ValueError, match="dataset.tokenizer is missing: captions need a folder"):
        build()
    with pytest.raises(ValueError, match="'bpe' is unknown; choose one of bpe16k_huggingface, bpe30k"):
        build(txt_tok_name="bpe")
    monkeypatch.setenv("RQ_DATA_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="no .*tokenizer-files/bpe-16k or data/tokenizer-files/bpe-16k; put its files"):
        build(txt_tok_name="bpe16k_huggingface", context_length=8)
    files = tmp_path / "tokenizer-files"
    files.mkdir()
    (files / "bpe-16k-vocab.json").write_text(json.dumps({"[PAD]": 0, "[UNK]": 1, "a": 2, "a</w>": 3}))
    (files / "bpe-16k-merges.txt").write_text("#version: 0.2\n")
    found = build(txt_tok_name="bpe16k_huggingface", context_length=4, bpe_dropout=0.1, vocab_size_txt=16384)
    assert found.encode("a aa b") == [3, 2, 3, 1] and found.settings.bpe_dropout == 0.1
    assert build(txt_tok_name="bpe16k_huggingface", tokenizer=str(tokenizer)).vocab_size > 257
    beside = files.rename(tmp_path / "checkpoint")
    published = DatasetConfig(txt_tok_name="bpe16k_huggingface")
    assert tokenizer_beside(published, beside) == str(beside / "bpe-16k")
    assert tokenizer_beside(DatasetConfig(), beside) is tokenizer_beside(published, tmp_path) is None
    assert tokenizer_beside(DatasetConfig(), tokenizer) == str(tokenizer)
    assert build(beside, txt_tok_name="bpe16k_huggingface", context_length=4).encode("a") == [3, 0, 0, 0]
    with pytest.raises(ValueError, match=r"vocab_size_txt=100 is less than the \d+ tokens of"):
        build(tokenizer=str(tokenizer), vocab_size_txt=100)


def test_caption_table():
    captions = [["é", ""], ["b"], ["", "", "日本 \ud83d"]]
    table = CaptionTable(captions)
    assert len(table) == 3 and table.texts_of(0) == ["é", ""] and table.texts_of(1) == ["b"]
    assert table.texts_of(2) == ["", "", "日本 ?"] and table.text_of(1) == "b"


def test_published_crop():
    """A square near the middle, at most 9/8 of the size, cut at random; squeezed for evaluation."""
    pixels = np.zeros((16, 80, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(80)
    image = Image.fromarray(pixels)
    crop = Pipeline("dalle", 16)
    squeezed = crop(image, None)
    assert squeezed.shape == (3, 16, 16) and squeezed[0, 0, 0] < 6 and squeezed[0, 0, -1] > 73
    for place, first in ((0.0, 24), (0.5, 32), (0.999, 39)):  # 64 columns go away: 24 to 40 on the left
        assert crop(image, np.array([0, 0, 0, 0, place]))[0, 0].tolist() == list(range(first, first + 16))
    large = Image.fromarray(np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2))
    largest = crop(large, np.array([0.0, 0.999, 0.9, 0.999, 0.0]))
    assert largest.shape == (3, 16, 16) and largest[0, 0, 0] > 6 and largest[0, 0, -1] > 60  # 2 of 18 columns go
    assert crop(large, np.array([0.0, 0.0, 0.0, 0.0, 0.0]))[0, 0, 0] < 4  # not mirrored, not enlarged


def test_null_captions_of_metadata_are_left_out_and_counted(tmp_path, caplog):
    lines = [("a.png", None), ("b.png", ["one\u2028two", None]), ("c.png", [])]
    text = "\r\n".join(json.dumps({"file_name": name, "text": given}, ensure_ascii=False) for name, given in lines)
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8-sig", newline="")
    with caplog.at_level(logging.WARNING):
        assert read_metadata(tmp_path / "metadata.jsonl") == [("b.png", ["one\u2028two"]), ("c.png", [""])]
    assert "2 of 4 captions are null and are left out" in caplog.text
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": 5}')
    with pytest.raises(ValueError, match="text a string or a list of strings"):
        read_metadata(tmp_path / "metadata.jsonl")


def test_marks_and_odd_ends_of_lines_are_no_part_of_lists_and_texts(tokenizer, tmp_path):
    _cc3m(tmp_path, ["a dog", "a cat"])
    lines = [f"./train/{number:032x}\t{text}" for number, text in enumerate(["a\u2028dog", "a cat"])]
    (tmp_path / "train_list.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    train = _build(tokenizer, type="cc3m", root=str(tmp_path))
    assert train.fetch(np.arange(2), None)["image"][:, 0, 0, 0].tolist() == [0, 1] and train.corrupt_count() == 0
    assert train.captions([0, 1]) == ["a\u2028dog", "a cat"]
    for number, encoding in enumerate(("utf-8-sig", "utf-16")):
        _save(tmp_path / "folder" / f"{number}.png", number)
        (tmp_path / "folder" / f"{number}.txt").write_bytes("one\x85dog\rtwo".encode(encoding))
    settings = {"type": "caption-folder", "root": str(tmp_path / "folder"), "val_fraction": 0.5}
    for split in ("train", "val"):
        assert _build(tokenizer, split, **settings).all_captions(0) == ["one\x85dog", "two"]


def test_listed_files_are_images_whatever_they_are_called_and_only_they_are_looked_for(tmp_path, monkeypatch):
    names = [*(f"{number}.png" for number in range(8)), "odd.jfif", "gone.jfif", "gone.png"]
    for name in names[:9]:
        _save(tmp_path / name, 3)
    lines = [json.dumps({"file_name": name, "text": "a dog"}) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    looked_for, is_file = [], Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: looked_for.append(path.name) or is_file(path))
    settings = {"type": "caption-folder", "root": str(tmp_path), "resolution": 8}
    found = [name for split in ("train", "val") for name in build_dataset(DatasetConfig(**settings), split).names()]
    assert sorted(found) == [*map(str, range(8)), "odd.jfif"]
    assert {name for name in looked_for if name.endswith(("png", "jfif"))} == {"odd.jfif", "gone.jfif", "gone.png"}
