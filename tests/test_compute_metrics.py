"""`compute_metrics.py`: the same numbers for the same images wherever they lie, and one line for what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DatasetConfig, build_dataset
from evaluation.references.reference_files import Reference
from evaluation.statistics import Gaussian
from scoring.metric_set import MetricInputs, MetricSet
from tests.commands import run_here, torchrun
from tests.evaluation.pixel_features import PixelFeatures

COUNT, SIZE = 33, 16
DATA = ["dataset.num_samples=64"]


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("FID_INCEPTION_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Samples as files that say their class: training images with noise, except for one that is a copy."""
    directory = tmp_path_factory.mktemp("samples")
    config = DatasetConfig(type="synthetic", resolution=SIZE, num_samples=64)
    batch = build_dataset(config, "train").fetch(np.arange(COUNT), None)
    noise = torch.randint(-40, 40, batch["image"].shape, generator=torch.Generator().manual_seed(0))
    noise[7] = 0
    image_NCHW = (batch["image"].int() + noise).clamp(0, 255).to(torch.uint8)
    for index, (image_CHW, label) in enumerate(zip(image_NCHW, batch["label"].tolist())):
        Image.fromarray(image_CHW.permute(1, 2, 0).numpy()).save(directory / f"{index:06d}_class{label}.png")
    return directory


def run(cache: Path, *words: object) -> None:
    features = [] if "--features" in words else ["--features", "classifier"]
    run_here("compute_metrics.py", *words, *features, "--features-cache", cache)


def scored(cache: Path, tmp_path: Path, *words: object) -> dict:
    """The result line."""
    run(cache, *words, "--out", tmp_path / "result.json")
    return json.loads((tmp_path / "result.json").read_text())


def kinds(line: dict) -> list[str]:
    return [name.split("_")[0] for name in line["metrics"]]


def archive(folder: Path, path: Path, **more: np.ndarray) -> Path:
    files = sorted(folder.glob("*.png"))
    labels = np.array([int(file.stem.split("class")[1]) for file in files])
    np.savez(path, arr_0=np.stack([np.asarray(Image.open(file)) for file in files]), labels=labels, **more)
    return path


def test_every_metric_has_a_line_and_the_page_is_written(folder, cache, capsys, tmp_path):
    names = "fid,is,kid,prdc,class-fid,accuracy,cas"
    line = scored(
        cache,
        tmp_path,
        f"fake_path={folder}",
        "ref_dataset=synthetic",
        f"metrics={names}",
        *DATA,
        "--report",
    )
    assert kinds(line) == [
        "fid",
        "is",
        "is-std",
        "accuracy",
        "judge-accuracy",
        "kid",
        "kid-std",
        "precision",
        "recall",
        "density",
        "coverage",
        "class-fid",
        "cas",
    ]
    assert line["num_images"] == COUNT
    assert (line["fake_path"], line["ref_dataset"]) == (str(folder), "synthetic")
    assert line["reference"]["source"] == "synthetic:train"
    assert line["reference"]["num_images"] == 64
    assert len(line["reference"]["digest"]) == 64
    assert len(line["features"]["fingerprint"]) == 64
    assert any("2048" in text for text in line["warnings"])
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1]) == line
    assert all(name in printed.out for name in line["metrics"])
    page = (tmp_path / "metrics.html").read_text()
    assert "sample 7" in page
    nearest = re.search(r"sample 7.*?: ([0-9.e-]+)<", page, re.DOTALL)
    assert nearest is not None
    assert float(nearest[1]) < 1e-5, "the copied image is its own nearest training image, features rounded apart"


def test_folder_archive_and_shuffled_batches_score_alike(folder, cache, tmp_path):
    words = ["ref_dataset=synthetic", "metrics=[fid, kid, prdc, accuracy]", *DATA]
    first = scored(cache, tmp_path, f"fake_path={folder}", *words)
    second = scored(cache, tmp_path, f"fake_path={archive(folder, tmp_path / 'x.npz')}", *words, "batch_size=7")
    assert second["metrics"] == pytest.approx(first["metrics"], rel=1e-6)
    assert first["reference"] == second["reference"]


def test_results_go_beside_the_images_and_never_among_them(folder, cache, tmp_path, monkeypatch):
    copy = shutil.copytree(folder, tmp_path / "metrics_of.images")
    file = archive(folder, tmp_path / "samples.npz")
    for path in (copy, file):
        run(cache, f"fake_path={path}", "ref_dataset=synthetic", "metrics=fid", *DATA, "--report")
    assert sorted(path.name for path in copy.iterdir()) == sorted(path.name for path in folder.iterdir())
    names = ("metrics_of.images", "samples")
    lines = [json.loads((tmp_path / f"{name}_metrics_classifier.json").read_text()) for name in names]
    assert lines[0]["metrics"] == pytest.approx(lines[1]["metrics"], rel=1e-6)
    assert all((tmp_path / f"{name}_metrics.html").is_file() for name in names)
    monkeypatch.chdir(copy)  # `.` has no name of its own
    run(cache, "fake_path=.", "ref_dataset=synthetic", "metrics=is", *DATA)
    assert "is_" in (tmp_path / "metrics_of.images_metrics_classifier.json").read_text()


def test_results_of_a_run_of_samples_go_into_it(folder, cache, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(folder, run_dir / "images")
    Image.new("RGB", (4, 4)).save(run_dir / "samples.png")
    for path in (run_dir, run_dir / "images"):
        run(cache, f"fake_path={path}", "ref_dataset=synthetic", "metrics=fid", *DATA)
        (run_dir / "metrics_classifier.json").unlink()
    assert sorted(path.name for path in run_dir.iterdir()) == ["images", "samples.png"]


def test_the_line_is_on_a_terminal_where_it_is_asked_for_and_elsewhere_always(
    folder, cache, tmp_path, capsys, monkeypatch
):
    words = [f"fake_path={folder}", "ref_dataset=synthetic", "metrics=fid", *DATA]
    line = scored(cache, tmp_path, *words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    scored(cache, tmp_path, *words)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"result line: {tmp_path / 'result.json'}"
    assert not any(text.startswith("{") for text in printed)
    line = scored(cache, tmp_path, *words, "--json")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line


def test_images_without_numbers_have_one_inception_score_in_any_order(folder, cache, tmp_path):
    """The same images by class, by another order, and in an archive; and by the numbers that they were drawn as."""
    words = ["ref_dataset=synthetic", "metrics=is", *DATA]
    published = scored(cache, tmp_path, f"fake_path={folder}", *words)["metrics"]
    assert not any("mixed" in name for name in published)
    found = []
    for number, key in enumerate((lambda name: name, lambda name: name.partition("class")[2] + name)):
        copy = tmp_path / f"order{number}"
        copy.mkdir()
        for place, file in enumerate(sorted(folder.iterdir(), key=lambda file: key(file.name))):
            shutil.copy(file, copy / f"image{place:03d}.png")
        found.append(scored(cache, tmp_path, f"fake_path={copy}", *words)["metrics"])
    found.append(scored(cache, tmp_path, f"fake_path={archive(folder, tmp_path / 'x.npz')}", *words)["metrics"])
    assert found[0] == pytest.approx(found[1], rel=1e-9) and found[0] == pytest.approx(found[2], rel=1e-9)
    assert all(name.endswith("_splits10_mixed") for name in found[0])
    copy = shutil.copytree(folder, tmp_path / "fewer")
    (copy / sorted(path.name for path in copy.iterdir())[3]).unlink()  # numbers with a gap say no order
    assert all("mixed" in name for name in scored(cache, tmp_path, f"fake_path={copy}", *words)["metrics"])


def test_help_names_every_word(capsys):
    with pytest.raises(SystemExit) as ended:
        run_here("compute_metrics.py", "--help")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(word in printed for word in ("fake_path=", "ref_dataset=", "ref_split=", "metrics=", "skip_unreadable="))


def test_images_of_any_sizes_are_resized_by_the_network_one_by_one(folder, cache, tmp_path):
    """The same numbers as of each size alone, in whatever batches they come."""
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    for path in sorted(mixed.glob("*.png"))[::3]:
        Image.open(path).resize((2 * SIZE, SIZE + 3)).save(path)
    words = [f"fake_path={mixed}", "metrics=fid,kid,accuracy", "mixed_sizes=true", "dataset.resolution=16", *DATA]
    lines = [scored(cache, tmp_path, *words, "ref_dataset=synthetic", f"batch_size={size}") for size in (5, 33)]
    assert lines[0]["metrics"] == pytest.approx(lines[1]["metrics"], rel=1e-5) and lines[0]["mixed_sizes"]
    itself = scored(cache, tmp_path, *words, f"ref_dataset={mixed}", "--features-resize", "bilinear")
    assert itself["metrics"][next(name for name in itself["metrics"] if name.startswith("fid"))] == pytest.approx(
        0, abs=1e-4
    )


def test_images_as_the_reference(folder, cache, tmp_path):
    """A set has no distance to itself, and covers itself."""
    line = scored(
        cache,
        tmp_path,
        f"fake_path={folder}",
        f"ref_dataset={folder}",
        "metrics=fid,prdc,class-fid",
        "batch_size=5",
    )
    values = {name.split("_")[0]: value for name, value in line["metrics"].items()}
    assert values["fid"] == pytest.approx(0.0, abs=1e-4)
    assert [values[name] for name in ("precision", "recall", "coverage")] == [1.0, 1.0, 1.0]
    assert all(name.endswith(f"_vs_{folder.name}") for name in line["metrics"])


def test_samples_of_a_run_bring_their_settings(folder, cache, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(folder, directory / "images")
    Image.new("RGB", (4, 4)).save(directory / "samples.png")
    facts = {"seed": 5, "sampling": {"top_k": 3}, "checkpoint": "abc", "tokenizer": "def", "seconds": 1.0}
    (directory / "result.json").write_text(json.dumps(facts))
    line = scored(cache, tmp_path, f"fake_path={directory}", "ref_dataset=synthetic", "metrics=fid", *DATA)
    assert {name: line[name] for name in ("seed", "sampling", "checkpoint", "tokenizer")} == {
        name: facts[name] for name in ("seed", "sampling", "checkpoint", "tokenizer")
    }
    assert line["num_images"] == COUNT


def test_damaged_images_are_counted_when_asked_for(folder, cache, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    victim = sorted(copy.glob("*.png"))[4]
    victim.write_bytes(victim.read_bytes()[:60])
    words = [f"fake_path={copy}", "ref_dataset=synthetic", "metrics=fid", *DATA]
    line = scored(cache, tmp_path, *words, "skip_unreadable=true")
    assert (line["num_images"], line["unreadable"]) == (COUNT - 1, 1)


@pytest.mark.slow  # two processes of a script run in test_sampling_scripts.py
def test_two_processes_score_like_one(folder, cache, tmp_path):
    words = [f"fake_path={folder}", "ref_dataset=synthetic", "metrics=fid,is,kid,prdc,class-fid,accuracy", *DATA]
    alone = scored(cache, tmp_path, *words)
    flags = ["--features", "classifier", "--features-cache", cache, "--report", "--out", tmp_path / "both.json"]
    torchrun("compute_metrics.py", *words, *flags)
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
    assert both["per_class"].keys() == alone["per_class"].keys()
    assert (tmp_path / "metrics.html").is_file()


FAKE, REF = "fake_path=FOLDER", "ref_dataset=synthetic"
ERRORS: dict[str, tuple[list[str], str]] = {
    "no samples": ([REF], "fake_path= is missing"),
    "no reference": ([FAKE], "ref_dataset= is missing"),
    "unknown metric": ([FAKE, REF, "metrics=fid,fd"], "metrics='fid,fd': choose from fid"),
    "unknown word": ([FAKE, REF, "batchsize=3"], "did you mean 'batch_size'?"),
    "unknown split": ([FAKE, REF, "ref_split=test"], "split 'test' is unknown"),
    "unknown data set": ([FAKE, "ref_dataset=imagenette"], "neither a path nor one of digits"),
    "missing folder": (["fake_path=/no/such", REF], "/no/such"),
    "batch size": ([FAKE, REF, "batch_size=0"], "batch_size=0 must be at least 1"),
    "no Inception": ([FAKE, REF, "--features", "inception"], "FID_INCEPTION_WEIGHTS"),
    "sfid": ([FAKE, REF, "metrics=sfid"], "no spatial features"),
    "pickles": (["fake_path=PICKLES", REF], "samples_0.pkl is a pickle, which is not read"),
    "empty": (["fake_path=EMPTY", REF], "no images in"),
    "mixed sizes": (["fake_path=MIXED", REF], "must have one size"),
    "mixed sizes beside a data set": (["fake_path=MIXED", REF, "mixed_sizes=true"], "dataset.resolution=256"),
    "page of mixed sizes": (
        ["fake_path=MIXED", REF, "mixed_sizes=true", "--report"],
        "--report shows images of one size",
    ),
    "one image": (["fake_path=ONE", REF, "metrics=fid"], "at least 2 images, got 1"),
    "no classes": (["fake_path=MIXED", REF, "metrics=accuracy"], "needs the classes of the samples"),
    "classifier of moments": ([FAKE, "ref_dataset=STATS"], "needs ref_dataset to be a data set or images with classes"),
    "a folder for the result": ([FAKE, REF, "--out", "EMPTY"], "--out EMPTY is a folder; name a file in it"),
    "no folder for the result": ([FAKE, REF, "--out", "STATS/x.json"], "the result cannot go to STATS/x.json"),
    "millions of classes": ([FAKE, "ref_dataset=HUGE", "metrics=is"], "label 999999999999; a label is a whole number"),
    "page of moments": ([FAKE, "ref_dataset=STATS", "--report"], "STATS holds none"),
}


@pytest.fixture
def places(folder, tmp_path) -> dict[str, str]:
    """Wrong inputs by the word that stands for them above."""
    names = {name: tmp_path / name.lower() for name in ("PICKLES", "EMPTY", "MIXED", "ONE", "HUGE")}
    for path in names.values():
        path.mkdir()
    (names["PICKLES"] / "samples_0.pkl").write_bytes(b"\x80\x04.")
    for index, size in enumerate((SIZE, SIZE, SIZE + 1)):
        Image.new("RGB", (size, size)).save(names["MIXED"] / f"{index}.png")
    Image.new("RGB", (SIZE, SIZE)).save(names["ONE"] / "000000_class0.png")
    Image.new("RGB", (SIZE, SIZE)).save(names["HUGE"] / "000000_class999999999999.png")
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    return {name: str(path) for name, path in names.items()} | {
        "FOLDER": str(folder),
        "STATS": str(tmp_path / "stats.npz"),
    }


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_one_line(case, places, cache, capsys, tmp_path):
    words, says = ERRORS[case]
    for name, path in places.items():
        words, says = [word.replace(name, path) for word in words], says.replace(name, path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run(cache, *words, *DATA)
    lines = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert lines[-1].startswith("error: ") and says in lines[-1]
    assert [line for line in lines if line.startswith("error: ")] == [lines[-1]]
    assert sorted(tmp_path.rglob("*")) == before


def test_moments_cannot_give_what_needs_features():
    moments = Reference("train", Gaussian(torch.zeros(12), torch.eye(12), 10))
    inputs = MetricInputs(9, PixelFeatures(), moments)
    assert list(MetricSet.parse("is,fid").build(inputs)) == ["fid", "is"]
    for name in ("kid", "prdc", "sfid", "class-fid"):
        with pytest.raises(ValueError, match=f"metrics={name} needs .* which reference train does not hold"):
            MetricSet.parse(f"fid,{name}").build(inputs)
