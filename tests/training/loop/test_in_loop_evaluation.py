"""Scores while training: the numbers are the scripts' own, training is not touched, the best snapshot is the best."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data import DatasetConfig
from runtime.distributed import DistEnv
from runtime.errors import UserError
from runtime.records.metrics_file import read_metrics
from sampling.trained_models import read_metadata, resolve_checkpoint
from scoring.scoring_data import ScoringData
from tests.commands import run_here
from tests.training.rank_cases import RankCase, train_cases
from tests.training.tiny_runs import (
    checkpoint_tensors,
    differing,
    metrics_without_time,
    only_run,
    session,
    stage1,
    stage2,
    state_json,
    train,
    train_until,
    write_config,
)
from training.experiment import InLoopScoreConfig
from training.loop.in_loop_scores import InLoopScores, find_features

STEPS = 6
PLAN = {
    "dataset.num_samples": 96,
    "experiment.max_steps": STEPS,
    "experiment.save_steps": 2,
    "experiment.test_steps": STEPS,
    "arch.ema": 0.5,
}
SAMPLES = 14


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


def scored(cache: Path, **settings: Any) -> dict[str, Any]:
    """The plan with scores every 2 steps."""
    defaults = {"every_steps": 2, "num_images": 2048, "features": "classifier", "features_cache": str(cache)}
    return PLAN | {"experiment.score": defaults | settings}


def scores_of(run_dir: Path) -> dict[int, dict[str, float]]:
    """Step -> what was scored there."""
    lines = {}
    for line in read_metrics(run_dir / "metrics.jsonl"):
        values = {key.removeprefix("score/"): value for key, value in line.items() if key.startswith("score/")}
        if values:
            lines[line["step"]] = values
    return lines


@pytest.fixture(scope="module")
def first(cache, tmp_path_factory) -> Path:
    """A stage-1 run with scores."""
    folder = tmp_path_factory.mktemp("one")
    config = write_config(folder / "one.yaml", stage1(scored(cache)))
    return train("stage1", "-m", config, "-r", folder / "runs").run_dir


@pytest.fixture(scope="module")
def second(first, cache, tmp_path_factory) -> Path:
    """A stage-2 run with scores."""
    folder = tmp_path_factory.mktemp("two")
    config = write_config(folder / "two.yaml", stage2(scored(cache, num_images=SAMPLES)))
    return train("stage2", "-m", config, "-v", first, "-r", folder / "runs").run_dir


def test_rfid_is_that_of_the_script_on_the_averaged_weights(first, cache):
    scores = scores_of(first)
    assert sorted(scores) == [2, 4, 6]
    name, count = scores[2]
    assert name.startswith("rfid_classifier128-") and name.endswith("_vs_val") and count == "num_images"
    for step in (2, 6):
        snapshot = first / "snapshots" / f"step_{step:08d}"
        run_here(
            "compute_rfid.py",
            "--vqvae",
            snapshot,
            "--ema",
            "--split",
            "val",
            "-bs",
            5,
            "--features",
            "classifier",
            "--features-cache",
            cache,
        )
        line = json.loads((snapshot / "rfid_val_classifier.json").read_text())
        assert line["metrics"][name] == pytest.approx(scores[step][name], rel=1e-6)
        assert line["num_images"] == scores[step]["num_images"]
    assert scores[2][name] != scores[6][name]


def test_fid_is_that_of_the_script(first, second, cache, tmp_path):
    step, flags = 4, ["-n", SAMPLES, "-bs", 5, "--ema", "--features", "classifier", "--features-cache", cache]
    snapshot = second / "snapshots" / f"step_{step:08d}"
    run_here("main_sampling_fid.py", "-v", first, "-a", snapshot, "--save-dir", tmp_path, *flags)
    (result,) = tmp_path.glob("samples/*/result.json")
    metrics = json.loads(result.read_text())["metrics"]
    (name,) = [key for key in scores_of(second)[step] if key.startswith("fid_")]
    assert name.endswith("_vs_train")
    assert metrics[name] == pytest.approx(scores_of(second)[step][name], rel=1e-6)


def test_class_frequencies_are_those_of_the_script(first, cache, tmp_path):
    settings = {"num_images": SAMPLES, "classes": "frequencies", "keep_best": False}
    changes = scored(cache, **settings) | {"experiment.max_steps": 2, "arch.ema": None}
    run_dir = train(
        "stage2", "-m", write_config(tmp_path / "two.yaml", stage2(changes)), "-v", first, "-r", tmp_path / "runs"
    ).run_dir
    flags = ["--features", "classifier", "--features-cache", cache, "--classes", "frequencies", "-n", SAMPLES]
    run_here("main_sampling_fid.py", "-v", first, "-a", run_dir, "--save-dir", tmp_path, *flags)
    (result,) = tmp_path.glob("samples/*/result.json")
    scores = scores_of(run_dir)[2]
    (name,) = [key for key in scores if key.startswith("fid_")]
    assert name.endswith("_classfreq_vs_train")
    assert json.loads(result.read_text())["metrics"][name] == pytest.approx(scores[name], rel=1e-6)


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_best_snapshot_is_that_of_the_lowest_score(which, request):
    run_dir = request.getfixturevalue(which)
    metadata = read_metadata(run_dir / "snapshots" / "best")
    name, scores = metadata["best"]["metric"], scores_of(run_dir)
    lowest = min(scores, key=lambda step: scores[step][name])
    assert metadata["step"] == lowest
    assert metadata["best"] == {
        "metric": name,
        "value": scores[lowest][name],
        "num_images": scores[lowest]["num_images"],
    }
    assert metadata["metrics"][name] == scores[lowest][name]
    same_step = run_dir / "snapshots" / f"step_{lowest:08d}"
    best = run_dir / "snapshots" / "best"
    assert differing(checkpoint_tensors(best), checkpoint_tensors(same_step)) == []
    assert resolve_checkpoint(best) == best
    assert resolve_checkpoint(run_dir).name == f"step_{STEPS:08d}", "a run still stands for its newest snapshot"


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training_is_the_same_with_and_without_scores(stage, first, second, tmp_path):
    config = write_config(tmp_path / "plain.yaml", (stage1 if stage == "stage1" else stage2)(PLAN))
    flags = [] if stage == "stage1" else ["-v", first]
    plain = train(stage, "-m", config, "-r", tmp_path / "runs", *flags).run_dir
    with_scores = first if stage == "stage1" else second
    last = f"checkpoints/step_{STEPS:08d}"
    assert differing(checkpoint_tensors(plain / last), checkpoint_tensors(with_scores / last)) == []
    assert state_json(plain / last) == state_json(with_scores / last)
    assert not (plain / "snapshots" / "best").exists()
    ours, theirs = (
        [line for line in metrics_without_time(run) if "score/num_images" not in line] for run in (plain, with_scores)
    )
    assert ours == theirs


def test_resumed_scores_are_those_of_an_uninterrupted_run(first, cache, tmp_path):
    config = write_config(tmp_path / "one.yaml", stage1(scored(cache)))
    train_until(STEPS - 1, "stage1", "-m", config, "-r", tmp_path / "runs")
    run_dir = train("stage1", "--resume", "-l", only_run(tmp_path / "runs")).run_dir
    assert metrics_without_time(run_dir) == metrics_without_time(first)
    ours, theirs = (run / "snapshots" / "best" for run in (run_dir, first))
    assert differing(checkpoint_tensors(ours), checkpoint_tensors(theirs)) == []
    assert read_metadata(ours) == read_metadata(theirs)


def test_a_best_snapshot_beyond_the_checkpoint_is_given_up_and_found_again(cache, monkeypatch, tmp_path):
    values = {2: 5.0, 3: 4.0, 4: 1.0, 5: 2.0, 6: 3.0}
    monkeypatch.setattr(InLoopScores, "measure", lambda self: {"rfid_x": values.get(self.step, 9.0), "num_images": 4})
    original = InLoopScores.due

    def due(self, step: int, last: bool) -> bool:
        self.step = step
        return original(self, step, last)

    monkeypatch.setattr(InLoopScores, "due", due)
    changes = scored(cache, every_steps=1) | {"experiment.save_steps": 3}
    config = write_config(tmp_path / "one.yaml", stage1(changes))
    train_until(4, "stage1", "-m", config, "-r", tmp_path / "runs")
    run_dir = only_run(tmp_path / "runs")
    best = run_dir / "snapshots" / "best"
    assert read_metadata(best)["step"] == 4
    resumed = session("stage1", "--resume", "-l", run_dir)
    assert resumed.start.step == 3
    assert not best.exists()
    with resumed:
        resumed.train()
    assert read_metadata(best)["step"] == 4
    assert read_metadata(best)["best"]["value"] == 1.0


def test_fewer_images_than_the_split_are_part_of_the_name(cache, tmp_path):
    config = write_config(tmp_path / "one.yaml", stage1(scored(cache, num_images=4, keep_best=False)))
    run_dir = train("stage1", "-m", config, "-r", tmp_path / "runs", "experiment.max_steps=2").run_dir
    scores = scores_of(run_dir)[2]
    assert [name.rpartition("_vs_")[2] for name in scores] == ["val4", "num_images"]
    assert scores["num_images"] == 4
    assert not (run_dir / "snapshots" / "best").exists()


def test_a_split_of_one_image_has_no_distance():
    stage, data = SimpleNamespace(score_kind="rfid", score_split="val"), SimpleNamespace(split=lambda name: [0])
    with pytest.raises(ValueError, match="the val split has 1 images, a distance takes 2 or more"):
        InLoopScores(InLoopScoreConfig(every_steps=1), stage, None, data, None)


@pytest.mark.parametrize("features", ["inception", "auto"])
def test_missing_inception_weights_do_not_stop_training(features, cache, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("FID_INCEPTION_WEIGHTS", raising=False)
    config = write_config(tmp_path / "one.yaml", stage1(scored(cache, features=features)))
    run_dir = train("stage1", "-m", config, "-r", tmp_path / "runs", "experiment.max_steps=2").run_dir
    assert (run_dir / "checkpoints" / "step_00000002").is_dir()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "no rfid while training" in line]
    if features == "auto":
        assert warnings == []
        assert any("classifier" in name for name in scores_of(run_dir)[2])
    else:
        assert len(warnings) == 1
        assert "FID_INCEPTION_WEIGHTS" in warnings[0]
        assert scores_of(run_dir) == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"every_steps": 0}, "experiment.score.every_steps=0 must be positive"),
        ({"num_images": 1}, "experiment.score.num_images=1 at least 2"),
        ({"features": "dino"}, "experiment.score.features='dino': choose from auto, inception, efficientnet-lite0"),
        ({"classes": "each"}, "experiment.score.classes='each': choose from seen, all, frequencies"),
        ({"classes": "frequencies"}, "experiment.score.classes is for samples of stage 2"),
        ({"every_step": 4}, "did you mean 'experiment.score.every_steps'?"),
    ],
)
def test_wrong_settings_are_one_line(settings, says, cache, tmp_path):
    config = write_config(tmp_path / "one.yaml", stage1(scored(cache, **settings)))
    with pytest.raises(UserError if "every_step" in settings else ValueError) as caught:
        session("stage1", "-m", config, "-r", tmp_path / "runs")
    assert says in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_two_processes_score_like_one(on_ranks, first, second, cache, tmp_path):
    """Images are shared out and sums added up. Only scores after the same number of equal steps can be compared, so
    the runs start from trained weights and do not move."""
    still = {"optimizer.init_lr": 0.0, "optimizer.weight_decay": 0.0, "arch.ema": None, "experiment.max_steps": 1}
    cases = []
    for stage, flags in (("stage1", ["-l", str(first)]), ("stage2", ["-v", str(first), "-l", str(second)])):
        build = stage1 if stage == "stage1" else stage2
        books = {"arch.hparams.decay": 1 - 1e-12, "arch.hparams.restart_unused_codes": False}
        frozen = still | (books if stage == "stage1" else {})
        config = write_config(tmp_path / f"{stage}.yaml", build(scored(cache, num_images=SAMPLES - 5) | frozen))
        cases.append(RankCase(stage, stage, ("-m", str(config), *flags)))
    on_ranks(train_cases, cases, str(tmp_path / "both"))
    for case in cases:
        alone = train(case.stage, *case.flags, "-r", tmp_path / "alone" / case.name).run_dir
        both = only_run(tmp_path / "both" / case.name / "runs")
        assert scores_of(both)[1] == pytest.approx(scores_of(alone)[1], rel=1e-5)
        assert (both / "snapshots" / "best").is_dir()


@pytest.mark.parametrize(("dataset", "asked"), [("synthetic", True), ("digits", False)])
def test_automatic_features_of_colour_images_may_come_from_a_package(dataset, asked, monkeypatch):
    names = []

    def refuse(settings):
        names.append(settings.name)
        raise ValueError("not here")

    config = DatasetConfig(type=dataset, resolution=16, num_samples=8)
    data = ScoringData(config, 8, DistEnv(0, 1, 0, torch.device("cpu"), "none"))
    monkeypatch.setattr(data, "features", refuse)
    with pytest.raises(ValueError, match="not here; not here"):
        find_features(InLoopScoreConfig(every_steps=1), data)
    assert names == ["inception", *(["efficientnet-lite0"] if asked else []), "classifier"]
