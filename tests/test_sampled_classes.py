"""Which classes samples are asked for: those that were trained, all, or as often as the images have them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from sampling.trained_models import read_metadata
from tests.commands import run_here
from tests.training.tiny_runs import only_run as only_training_run
from tests.training.tiny_runs import pictured, session, stage1, stage2, train, write_config

NUM = 24


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A stage-1 and a stage-2 run; the latter knows 12 classes, the data set has 8."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"experiment.max_steps": 2}
    one = train("stage1", "-m", write_config(folder / "one.yaml", stage1(changes)), "-r", folder / "one").run_dir
    changes = changes | {"arch.vocab_size_cond": 12}
    config = write_config(folder / "two.yaml", stage2(changes))
    return one, train("stage2", "-m", config, "-v", one, "-r", folder / "two").run_dir


@pytest.fixture
def sample(trained, tmp_path):
    """`sample(*flags)` -> the run directory of `NUM` samples."""

    def sampled(*flags: object) -> Path:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        models = ["-v", trained[0], "-a", trained[1], "--save-dir", out, "-n", NUM, "--no-tensorboard"]
        run_here("main_sampling_fid.py", *models, *flags)
        (directory,) = (out / "samples").iterdir()
        return directory

    return sampled


def classes_of(directory: Path) -> list[int]:
    return [int(file.stem.split("class")[1]) for file in sorted((directory / "images").iterdir())]


def image_counts() -> list[int]:
    data = build_dataset(DatasetConfig(type="synthetic", resolution=8, num_samples=40), "train")
    return torch.bincount(data.labels_N, minlength=12).tolist()


def test_training_says_which_classes_have_no_images_and_snapshots_know_them(trained, tmp_path, caplog):
    (snapshot,) = (trained[1] / "snapshots").iterdir()
    assert read_metadata(snapshot)["images_per_class"] == image_counts()
    config = write_config(tmp_path / "two.yaml", stage2({"arch.vocab_size_cond": 12}))
    session("stage2", "-m", config, "-v", trained[0], "-r", tmp_path / "runs").log.close()
    without = image_counts().count(0)
    assert f"arch.vocab_size_cond=12: {without} of these classes have no training image" in caplog.text
    config = write_config(
        tmp_path / "three.yaml", stage2({"dataset.type": "folder", "dataset.root": str(_faces(tmp_path))})
    )
    with pytest.raises(ValueError, match="arch.vocab_size_cond=8 wants classes, and folder has none"):
        session("stage2", "-m", config, "-v", trained[0], "-r", tmp_path / "runs")
    assert "images_per_class" not in read_metadata(
        only_training_run(trained[0].parents[1]) / "snapshots" / "step_00000002"
    )


def _faces(folder: Path) -> Path:
    (folder / "faces").mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "faces" / f"{number}.png")
    return folder / "faces"


def test_only_trained_classes_are_sampled_unless_all_are_asked_for(sample):
    seen = [label for label, count in enumerate(image_counts()) if count]
    assert classes_of(sample("--no-stats-saving")) == [seen[index % len(seen)] for index in range(NUM)]
    assert classes_of(sample("--no-stats-saving", "--classes", "all")) == [index % 12 for index in range(NUM)]


def test_previews_show_trained_classes_alone(trained, tmp_path, monkeypatch):
    config = write_config(tmp_path / "two.yaml", stage2({"arch.vocab_size_cond": 12}))
    run = session("stage2", "-m", config, "-v", trained[0], "-r", tmp_path / "runs")
    asked = []
    sampler = run.stage._sampler
    monkeypatch.setattr(
        run.stage, "_sampler", lambda *args, **settings: asked.append(args[1]) or sampler(*args, **settings)
    )
    pictured(run)
    run.log.close()
    seen = [label for label, count in enumerate(image_counts()) if count]
    assert asked[0].names(torch.arange(asked[0].num)).tolist() == seen


def test_frequencies_are_those_of_the_training_images_and_the_names_say_so(sample, tmp_path, capsys):
    scores = ["--features", "classifier", "--features-cache", tmp_path / "cache", "experiment.num_workers=0"]
    directory = sample("--classes", "frequencies", *scores)
    drawn, counts = Counter(classes_of(directory)), image_counts()
    for label, count in enumerate(counts):
        assert abs(drawn[label] - NUM * count / sum(counts)) <= 1
    line = json.loads((directory / "result.json").read_text())
    assert line["sampling"]["classes"] == "frequencies"
    kinds = {name.split("_")[0]: name for name in line["metrics"]}
    assert all("_classfreq" in name for name in line["metrics"]) and kinds["fid"].endswith("_classfreq_vs_train")
    assert {"accuracy", "judge-accuracy"} <= {*kinds} and 0 <= line["metrics"][kinds["judge-accuracy"]] <= 1
    words = [f"fake_path={directory}", "ref_dataset=synthetic", "dataset.num_samples=40", "metrics=fid,is,accuracy"]
    run_here("compute_metrics.py", *words, "dataset.resolution=8", *scores[:4])
    again = json.loads((directory / "metrics_classifier.json").read_text())
    assert again["metrics"] == pytest.approx(line["metrics"], rel=1e-6)
    assert "judge-accuracy_" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--classes", "frequency"], "invalid choice: 'frequency'"),
        (["--classes", "frequencies", "--reject-keep", 0.5], "--classes frequencies and --reject-keep exclude"),
    ],
)
def test_what_cannot_work_is_one_line(sample, capsys, flags, says):
    with pytest.raises(SystemExit) as ended:
        sample(*flags)
    assert ended.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize("counts", ["x", [], [0, 0], [1, -1], [True], [1.5]])
def test_a_damaged_record_of_classes_is_one_line(trained, sample, capsys, counts):
    (snapshot,) = (trained[1] / "snapshots").iterdir()
    file = snapshot / "metadata.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"images_per_class": counts}))
        with pytest.raises(SystemExit):
            sample("--no-stats-saving")
    finally:
        file.write_text(before)
    assert "images_per_class must list numbers of images" in capsys.readouterr().err
