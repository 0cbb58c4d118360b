"""The text demo from end to end, a few steps of each stage; its judge and pictures by themselves."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from data.captions.pair_grammar import parse_pair_caption
from demo.text.judge import ANSWERS, agreement, answers, judge_images, train_judge
from demo.text.measure import SCALES, held_out_scenes
from demo.text.pictures import draw_prompts, draw_sweep, sweep_plot
from tests.commands import succeed

STEPS = [
    "experiment.max_steps=2",
    "experiment.test_steps=2",
    "experiment.save_steps=2",
    "experiment.log_steps=1",
    "experiment.batch_size=8",
    "experiment.test_images=16",
]
KINDS = {"axis", "size", "colour", "shape", "everything"}


def _pairs(split: str, count: int = 400):
    return build_dataset(DatasetConfig(type="synthetic-pairs", num_samples=count), split)


def test_answers_name_the_places_whatever_the_order_of_words():
    texts = [
        "a large red circle above a small blue square",
        "a small blue square below a large red circle",
        "a small white cross right of a large green triangle",
    ]
    answers_NA = answers(parse_pair_caption(text) for text in texts)
    words = [[choices[i] for choices, i in zip(ANSWERS, row)] for row in answers_NA.tolist()]
    assert words[0] == words[1] == ["vertical", "large", "red", "circle", "small", "blue", "square"]
    assert words[2] == ["horizontal", "large", "green", "triangle", "small", "white", "cross"]


def test_agreement_counts_both_objects_and_whole_scenes():
    asked_NA = torch.zeros(4, 7, dtype=torch.long)
    seen_NA = asked_NA.clone()
    seen_NA[0, 2] = 1  # colour of the first object
    seen_NA[1, 6] = 1  # shape of the second
    assert agreement(seen_NA, asked_NA) == {"axis": 1, "size": 1, "colour": 0.875, "shape": 0.875, "everything": 0.5}


def test_judge_learns_and_is_not_fooled_by_other_captions():
    train, val = _pairs("train", 6000), _pairs("val", 6000)
    index_N = torch.arange(200).numpy()
    judge = train_judge(train, num_images=6000)
    images, shown = val.fetch(index_N, None)["image"], val.scenes(index_N)
    found, by_chance = judge_images(judge, images, shown), judge_images(judge, images, shown[1:] + shown[:1])
    assert found["colour"] > 0.97 and found["shape"] > 0.75
    assert by_chance["colour"] < 0.3 and by_chance["shape"] < 0.4


def test_held_out_scenes_are_no_training_captions():
    train, val = _pairs("train", 20000), _pairs("val")
    scenes = held_out_scenes(val, 300)
    assert len(set(scenes)) == 300
    assert not set(train.all_scenes()) & set(scenes)
    assert sorted(map(str, held_out_scenes(val, 10**6))) == sorted(map(str, val.all_scenes()))


def test_sweep_has_a_curve_for_each_share_and_a_dashed_one_for_chance(tmp_path):
    found, chance = dict.fromkeys(KINDS, 1.0), dict.fromkeys(KINDS, 0.25)
    sweep = [{"cfg_scale": scale, "found": found, "by_chance": chance} for scale in (1.0, 2.0)]
    plot = sweep_plot(sweep, 7)
    assert plot.curves["colour"] == [(1.0, 100.0), (2.0, 100.0)]
    assert plot.curves["colour, shuffled"] == [(1.0, 25.0), (2.0, 25.0)]
    assert set(plot.dashed) == {f"{kind}, shuffled" for kind in KINDS}
    draw_sweep(tmp_path / "sweep.png", sweep, 7)
    assert Image.open(tmp_path / "sweep.png").width > 600


def test_prompts_stand_above_their_samples(tmp_path):
    images = torch.stack([torch.full((3, 8, 8), shade, dtype=torch.uint8) for shade in (10, 20, 30, 40)])
    draw_prompts(tmp_path / "p.png", ["first", "second"], images)
    picture = Image.open(tmp_path / "p.png")
    side, row = 128, picture.height // 2
    assert picture.width == 2 * side + 6
    assert [picture.getpixel((x, y))[0] for y in (row - 20, 2 * row - 20) for x in (64, 194)] == [10, 20, 30, 40]


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("text") / "out"
    done = succeed(
        "-m",
        "demo.text",
        "--out",
        str(out),
        "--num-captions",
        "6",
        "--judge-images",
        "64",
        "--stage1",
        *STEPS,
        "--stage2",
        *STEPS,
        "experiment.sample.num_images=4",
        timeout=600,
    )
    return out, done.out


def test_summary_has_every_number(output):
    summary = json.loads((output[0] / "summary.json").read_text())
    assert [line["cfg_scale"] for line in summary["sweep"]] == list(SCALES)
    for shares in (summary["samples"], summary["by_chance"], summary["real_images"], summary["reconstructions"]):
        assert set(shares) == KINDS and all(0 <= share <= 1 for share in shares.values())
    assert (summary["num_captions"], summary["num_real_images"]) == (6, 6)
    assert all(summary[f"seconds_{part}"] > 0 for part in ("stage1", "stage2", "measure"))


def test_report_stands_alone_and_a_table_ends_the_demo(output):
    page = (output[0] / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 3
    assert page.count("<svg") == 4
    assert "://" not in page
    assert "chance: shuffled captions" in output[1] and "samples, guidance scale 1.5" in output[1]
