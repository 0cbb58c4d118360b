"""Recipes: what is done is not done again, the table says what has not run, held-out prompts are counted right."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.outputs.document_section import marks
from benchmarks.recipes import __main__ as command
from benchmarks.recipes.held_out import agreement, chance
from benchmarks.recipes.recipe_table import RECIPES, Recipe
from benchmarks.recipes.steps import Steps
from data.captions.emoji_names import Combination
from runtime.config import load_config
from runtime.errors import UserError
from runtime.step_directories import best_snapshot_of
from tests.repository import ROOT
from training.stages.stage1 import Stage1Config
from training.stages.stage2 import Stage2Config


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_experiments(name):
    recipe = RECIPES[name]
    stage1 = load_config(Stage1Config, ROOT / recipe.stage1, list(recipe.words1))
    stage2 = load_config(Stage2Config, ROOT / recipe.stage2, list(recipe.words2))
    for config in (stage1, stage2):
        assert config.arch.ema and config.experiment.score.every_steps and config.experiment.score.keep_best
        assert config.experiment.score.features == recipe.features
    assert stage2.vqvae.ema
    if recipe.text:
        sizes = (stage2.dataset.vocab_size_txt, stage2.dataset.context_length)
        assert sizes == (command.VOCABULARY, command.CAPTION_TOKENS)


def test_a_step_that_failed_is_started_again_and_one_that_is_done_is_not(tmp_path, capfd):
    with pytest.raises(UserError, match="-c ended with exit code 3"):
        Steps(tmp_path).command("one", ["-c", "raise SystemExit(3)"])
    steps = Steps(tmp_path)
    steps.call("one", lambda: None)
    assert steps.was_interrupted and steps.known["one"]["starts"] == 2 and steps.peak_gb > 0
    Steps(tmp_path).call("one", lambda: pytest.fail("done before"))
    assert "one: done before" in capfd.readouterr().out


def test_the_best_snapshot_is_taken_where_there_is_one(tmp_path):
    assert best_snapshot_of(tmp_path) == tmp_path
    (tmp_path / "snapshots" / "best").mkdir(parents=True)
    assert best_snapshot_of(tmp_path) == tmp_path / "snapshots" / "best"


def test_samples_show_what_the_nearest_drawing_of_their_role_shows():
    drawn = [
        Combination(role, gender, tone) for role in ("a", "b") for gender in ("man", "woman") for tone in ("", "dark")
    ]
    features_NF = torch.eye(len(drawn))
    asked = [drawn[3], drawn[3], drawn[3], drawn[4]]
    # the drawing itself; another tone; a drawing of another role, nearer than any of its own; another gender and tone
    features_SF = torch.stack([features_NF[3], features_NF[2], 2 * features_NF[5] + features_NF[3], features_NF[7]])
    assert agreement(features_SF, asked, features_NF, drawn) == {"gender": 0.75, "tone": 0.5, "both": 0.5}
    assert chance(asked, drawn) == {"gender": 0.5, "tone": 0.5, "both": 0.25}


def test_the_table_says_what_has_not_run(tmp_path):
    numbers = dict.fromkeys(
        ("minutes", "peak_gb", "fid", "fid_floor", "fid_unigram", "rfid", "nll", "unigram_nll"), 1.0
    )
    shares = {"gender": 0.5, "tone": 0.25, "both": 0.125}
    held_out = {
        "prompts": 2,
        "samples": 8,
        "credit": "By A",
        **dict.fromkeys(("shown", "chance", "real_through_tokenizer"), shares),
    }
    row = {**numbers, "machine": "a card", "overrides": ["a=1"], "copies": None, "accuracy": 0.9, "held_out": held_out}
    (tmp_path / "recipe_openmoji-64.json").write_text(json.dumps(row))
    document = tmp_path / "recipes.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*marks(command.SECTION)))
    command.write_document(tmp_path, document)
    text = document.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| a card, `a=1` | 1 | 1.0 | 1.00 |" in text and "| samples | 50.0% | 25.0% | 12.5% |" in text
    assert "(recipes/openmoji-64_held_out.png)" in text and "By A (the drawings)." in text
    assert text.count("| not run |") == len(RECIPES) - 1


def test_unknown_recipes_are_refused():
    with pytest.raises(UserError, match="recipe 'x': choose one of fashion-mnist-16"):
        command.main(["x"])


TINY = ("experiment.max_steps=2", "experiment.test_steps=2", "experiment.save_steps=2", "experiment.test_images=20")
SCORES = ("arch.ema=0.9", "experiment.score.every_steps=2", "experiment.score.num_images=20")


@pytest.mark.slow
def test_a_recipe_runs_from_images_to_its_row_and_is_not_run_twice(tmp_path, monkeypatch, capfd):
    folder = "configs/demo"
    recipe = Recipe(
        "digits",
        "CPU",
        f"{folder}/stage1/digits.yaml",
        f"{folder}/stage2/digits.yaml",
        (*TINY, *SCORES, "experiment.score.features=classifier"),
        (*TINY, *SCORES, "experiment.score.features=classifier", "vqvae.ema=true"),
        num_samples=40,
    )
    monkeypatch.setattr(command, "RECIPES", {"digits": recipe})
    monkeypatch.chdir(ROOT)
    words = ["digits", "--out", str(tmp_path), "--results", str(tmp_path / "rows"), "--docs", str(tmp_path)]
    command.main(words)
    row = json.loads((tmp_path / "rows" / "recipe_digits.json").read_text())
    assert row["num_samples"] == 40 and row["fid_unigram"] > 0 and 0 < row["fid_floor"] < row["fid"]
    assert row["nll"] > 0 and row["copies"] is not None and row["accuracy"] is not None and not row["interrupted"]
    capfd.readouterr()
    command.main(words)
    assert capfd.readouterr().out.count("done before") == 4
