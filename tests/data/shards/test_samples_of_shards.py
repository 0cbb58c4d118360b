"""What a sample of a shard is: one reader for training and scoring, wherever members stand; labels; captions; JSON."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.fingerprint import fingerprint
from data.prepare import main, parse
from data.shards.shard_index import INDEX_SUFFIX, NO_LABEL, _digest
from data.shards.shard_names import expanded
from data.tokenizers.bpe_training import train_bpe
from runtime.errors import UserError
from scoring.image_source import open_source

SIZE = 8
COUNT = 6


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE, 3), value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(count: int = COUNT, first: int = 0) -> dict[str, list[tuple[str, bytes]]]:
    """The members of every kind; sample i has pixels 10 i, label i mod 3 and the caption `dog i`."""
    numbers = range(first, first + count)
    return {
        "png": [(f"{number:03d}.png", png(10 * number)) for number in numbers],
        "cls": [(f"{number:03d}.cls", b"%d" % (number % 3)) for number in numbers],
        "txt": [
            (f"{number:03d}.txt", f"dog {number}\u2028sits\r\nsecond {number}".encode("utf-8-sig"))
            for number in numbers
        ],
    }


def build(root, split="train", **settings):
    values = {"type": "shards", "root": str(root), "resolution": SIZE, "val_fraction": 0.2, **settings}
    return build_dataset(DatasetConfig(**values), split)


def seen_in_training(root, **settings) -> list[tuple[int, int]]:
    """(pixel, label) of both splits."""
    found = []
    for split in ("train", "val"):
        batch = (data := build(root, split, **settings)).fetch(np.arange(len(data)), None)
        found += zip(batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist())
    return sorted(found)


def seen_in_scoring(root) -> list[tuple[int, int]]:
    batches = list(open_source(str(root)).batches(4))
    pairs = [(b["image"][:, 0, 0, 0].tolist(), b["label"].tolist()) for b in batches]
    return sorted(pair for images, labels in pairs for pair in zip(images, labels))


EXPECTED = [(10 * number, number % 3) for number in range(COUNT)]


@pytest.mark.parametrize("order", ["png cls txt", "cls txt png", "txt png cls", "mixed", "json", "dotted"])
def test_members_of_one_key_need_not_stand_together(tmp_path, order):
    parts = samples()
    if order == "mixed":
        members = [part for kind in parts.values() for part in kind]
        members = [members[place] for place in np.random.default_rng(0).permutation(len(members))]
    elif order == "json":  # labels and captions in JSON members, far from their images
        described = [
            (f"{n:03d}.json", json.dumps({"label": n % 3, "caption": f"dog {n}\u2028sits"}, ensure_ascii=False))
            for n in range(COUNT)
        ]
        members = parts["png"] + [(name, text.encode()) for name, text in described]
    elif order == "dotted":
        members = [(f"./{name}", content) for name, content in parts["png"]] + parts["cls"] + parts["txt"]
    else:
        members = [part for kind in order.split() for part in parts[kind]]
    write_tar(tmp_path / "x.tar", members)
    assert seen_in_training(tmp_path) == seen_in_scoring(tmp_path / "x.tar") == EXPECTED
    data = build(tmp_path)
    pixels = data.fetch(np.arange(len(data)), None)["image"][:, 0, 0, 0].tolist()
    assert data.captions(range(len(data))) == [f"dog {pixel // 10}\u2028sits" for pixel in pixels]


def test_an_index_of_the_reader_before_is_made_again(tmp_path):
    parts = samples()
    shard = write_tar(tmp_path / "x.tar", parts["png"] + parts["cls"])
    build(tmp_path)
    index = Path(f"{shard}{INDEX_SUFFIX}")
    with np.load(index) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "digest"}
    arrays["shard"][0] = 1
    arrays["label"][:] = NO_LABEL
    with index.open("wb") as file:
        np.savez(file, digest=np.array(_digest(arrays)), **arrays)
    assert seen_in_training(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("kind", "label", "says"),
    [
        ("cls", b"999999999999", "label 999999999999; a label is a whole number from 0 to 999999"),
        ("cls", b"1000000", "has label 1000000"),
        ("cls", b"9" * 40, "is no label"),
        ("cls", b"-1", "is no label"),
        ("cls", "٣".encode(), "is no label"),
        ("json", b'{"label": 999999999999}', "from 0 to 999999"),
        ("json", b'{"label": -1}', "has label -1"),
        ("json", b'{"label": "cat"}', "has label 'cat'"),
        ("json", b'{"cls": 1.5}', "has label 1.5"),
        ("json", b'{"class": true}', "has label True"),
    ],
)
def test_labels_that_are_none_are_refused_alike_by_both_readers(tmp_path, kind, label, says):
    started = time.process_time()
    shard = write_tar(tmp_path / "x.tar", [*samples(2)["png"], (f"000.{kind}", label), ("001.cls", b"0")])
    for read in (build, lambda root: open_source(str(shard))):
        with pytest.raises(ValueError, match=says) as caught:
            read(tmp_path)
        assert len(str(caught.value)) < 300 and "000." in str(caught.value)
    assert time.process_time() - started < 60  # no million of class names


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{", b'{"label": null, "caption": null}', b'{"text": [3]}', b"[" * 10_000]
)
def test_json_that_describes_nothing_is_passed_over(tmp_path, content):
    parts = samples(2)
    write_tar(tmp_path / "x.tar", [*parts["png"], *parts["cls"], ("000.json", content), ("001.json", b"{}")])
    assert seen_in_training(tmp_path, val_fraction=0.5) == EXPECTED[:2]


def test_a_label_of_its_own_goes_before_that_in_json(tmp_path):
    parts = samples(3)
    described = [(f"{number:03d}.json", b'{"label": 7, "text": ["from json"]}') for number in range(3)]
    write_tar(tmp_path / "x.tar", described + parts["png"] + parts["cls"])
    assert seen_in_training(tmp_path, val_fraction=0.4) == EXPECTED[:3]
    assert build(tmp_path, val_fraction=0.4).captions([0]) == ["from json"]


@pytest.mark.parametrize("twice", ["000.jpg", "000.png", "000.cls", "000.txt"])
def test_two_members_of_one_kind_under_a_key_are_refused(tmp_path, twice):
    parts = samples(2)
    shard = write_tar(tmp_path / "x.tar", [*parts["png"], *parts["cls"], *parts["txt"], (twice, b"0")])
    for read in (build, lambda root: open_source(str(shard))):
        with pytest.raises(ValueError, match=r"has two (image|cls|txt) members under the key '000'"):
            read(tmp_path)


def test_shards_without_images_are_left_out_and_counted(tmp_path, caplog):
    parts = samples()
    write_tar(tmp_path / "a-000.tar", [])
    write_tar(tmp_path / "a-001.tar", parts["png"] + parts["cls"])
    write_tar(tmp_path / "a-002.tar", [("notes.txt", b"nothing"), ("000.cls", b"1")])
    with caplog.at_level(logging.WARNING):
        assert seen_in_training(tmp_path) == seen_in_scoring(tmp_path) == EXPECTED
    assert "shards: 2 of 3 hold no images and are left out: " in caplog.records[0].getMessage()
    (tmp_path / "a-001.tar").unlink()
    with pytest.raises(ValueError, match=r"holds no samples with an image, latents or codes \(2 shards do not\)"):
        build(tmp_path)
    with pytest.raises(UserError, match="no images in"):
        open_source(str(tmp_path))


def test_shards_with_other_samples_than_their_manifest_says_are_refused(tmp_path):
    data = write_tar(tmp_path / "in" / "x.tar", samples()["png"]).parent
    words = ["--dataset", "shards", "--data-root", str(data), "--samples-per-shard", "3", "val_fraction=0.2"]
    main(parse([*words, str(tmp_path / "out")]))
    assert main(parse(["--verify", str(tmp_path / "out")])) == 0
    write_tar(tmp_path / "out" / "train-000000.tar", samples(1)["png"])
    with pytest.raises(ValueError, match=r"train-000000.tar has 1 samples, its manifest says 3"):
        build(tmp_path / "out")


def test_packing_captioned_shards_again_keeps_all_captions(tmp_path):
    parts = samples(8)
    write_tar(tmp_path / "in" / "train.tar", parts["png"] + parts["txt"] + parts["cls"])
    write_tar(tmp_path / "in" / "val.tar", parts["png"])
    words = ["--dataset", "shards", "--data-root", str(tmp_path / "in"), "--split", "train"]
    for more, out in (([], "plain"), ([f"tokenizer={_tokenizer(tmp_path)}"], "tokens")):
        main(parse([*words, *more, str(tmp_path / out)]))
        again = build(tmp_path / out)
        assert [again.all_captions(index) for index in range(len(again))] == [
            [f"dog {number} sits", f"second {number}"] for number in range(8)
        ]
        assert again.captions([1]) == ["dog 1 sits"] and "cond" not in again[0]


def test_captions_of_some_samples_and_too_long_ones_are_said(tmp_path, caplog):
    parts = samples(4)
    write_tar(tmp_path / "train.tar", parts["png"] + parts["txt"][:3])
    with caplog.at_level(logging.WARNING):
        build(tmp_path, tokenizer=str(_tokenizer(tmp_path)), context_length=2, val_fraction=0.25)
    messages = [record.getMessage() for record in caplog.records]
    assert any("samples have no caption and are given an empty one" in text for text in messages), messages
    assert any("captions have more than 2 tokens and are cut" in text for text in messages), messages


def _tokenizer(folder: Path) -> Path:
    return train_bpe(["a dog sits", "second"] * 4, 260, 12).save(folder / "tokenizer")


def test_patterns(tmp_path):
    for name in ("a-1.tar", "a-2.tar", "b-1.tar"):
        write_tar(tmp_path / name, samples(1)["png"])
    here = str(tmp_path)
    assert expanded(f"{here}/a-{{1..2}}.tar") == expanded(f"{here}/a-*.tar") == [f"{here}/a-1.tar", f"{here}/a-2.tar"]
    assert expanded(f"{here}/{{a,b}}-1.tar") == [f"{here}/a-1.tar", f"{here}/b-1.tar"]
    odd = tmp_path / "x{1}[2]*" / "y.tar"
    write_tar(odd, samples(1)["png"])
    assert expanded(str(odd)) == [str(odd)]
    for pattern in ("x-{0..99999999999}.tar", "x-{0..9999}{0..9999}.tar", "x" + "{a,b}" * 40 + ".tar"):
        with pytest.raises(UserError, match="stands for more than 1000000 shards"):
            expanded(pattern)


def test_shards_of_no_split_beside_those_of_one_are_left_out_and_counted(tmp_path, caplog):
    for name, first in (("train-000", 0), ("extra-000", 6), ("trainval-000", 12)):
        write_tar(tmp_path / "x" / f"{name}.tar", samples(6, first)["png"])
    folder = tmp_path / "x"
    assert len(build(folder)) + len(build(folder, "val")) == 6
    names = f"{folder}/extra-000.tar, {folder}/trainval-000.tar"
    line = f"shards: 2 of 3 have no split in their names and are left out: {names}"
    assert [record.getMessage() for record in caplog.records] == [line] * 2
    caplog.clear()
    (folder / "train-000.tar").unlink()  # no name tells: all are for training, as ever
    assert len(build(folder)) + len(build(folder, "val")) == 12 and not caplog.records


@pytest.mark.parametrize(
    ("names", "lengths"),
    [
        (("train-0", "eval-0"), (5, 4)),
        (("trn-0", "dev-0"), (5, 4)),
        (("train-0", "test-0"), (5, 4)),  # test is for validation where nothing else is
        (("part-0", "validation-0"), (5, 4)),
        (("test-0", "test-1"), None),  # no name tells
    ],
)
def test_shards_know_the_words_that_folders_know(names, lengths, tmp_path):
    for name, count, first in zip(names, (5, 4), (0, 5)):
        write_tar(tmp_path / "x" / f"{name}.tar", samples(count, first)["png"])
    found = tuple(len(build(tmp_path / "x", split)) for split in ("train", "val"))
    assert found == lengths if lengths else sum(found) == 9


def test_a_test_split_beside_one_for_validation_is_left_out_and_said(tmp_path, caplog):
    for name, first in (("train-0", 0), ("val-0", 5), ("test-0", 10)):
        write_tar(tmp_path / "x" / f"{name}.tar", samples(5, first)["png"])
    assert [len(build(tmp_path / "x", split)) for split in ("train", "val")] == [5, 5]
    assert "1 of a test split are left out, there is one for validation: " in caplog.text


@pytest.mark.parametrize("kind", ["txt", "json"])
def test_other_captions_make_another_fingerprint_wherever_they_stand(tmp_path, kind):
    prints = []
    for folder, text in (("a", "dog"), ("same", "dog"), ("other", "dog and cat")):
        captions = {"txt": text.encode(), "json": json.dumps({"caption": text}).encode()}
        members = [*samples()["png"], *((f"{number:03d}.{kind}", captions[kind]) for number in range(COUNT))]
        write_tar(tmp_path / folder / "x.tar", members)
        prints.append(fingerprint(*(build(tmp_path / folder, split) for split in ("train", "val"))))
    assert prints[0] == prints[1] and prints[0] != prints[2]
