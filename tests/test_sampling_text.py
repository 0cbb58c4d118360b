"""`main_sampling_txt2img.py` on the golden text-to-image checkpoint and its RQ-VAE, in the published layout."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.tokenizers.tokenizer_loading import load_tokenizer
from evaluation.protocol import to_uint8
from rqtransformer import load_rqtransformer, sample
from rqvae import load_rqvae
from scoring.clip_scoring import saved_captions
from tests.commands import run_here, torchrun
from tests.golden_files import copies_of
from tests.published_workspace import captions, write_tokenizer
from tests.repository import ROOT
from tests.training.tiny_runs import stage1, stage2, train, write_config

STAND_INS = ROOT / "tests" / "stand_ins"
DATA = [
    "dataset.type=synthetic",
    "dataset.transforms=null",
    "dataset.resolution=16",
    "dataset.num_samples=64",
    "dataset.val_fraction=0.2",
    "experiment.num_workers=0",
]
PROMPT = "a large red circle on a gray background"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Copies, because results are written beside checkpoints."""
    return copies_of(tmp_path_factory.mktemp("checkpoints"), "rqvae-shared", "rqtransformer-text")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture
def open_clip(monkeypatch):
    """The stand-in, which `tests/stand_ins` describes."""
    monkeypatch.syspath_prepend(str(STAND_INS))
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    yield
    sys.modules.pop("open_clip", None)


def models_in(checkpoints: Path) -> list[object]:
    return ["-v", checkpoints / "rqvae-shared" / "model.pt", "-a", checkpoints / "rqtransformer-text" / "model.pt"]


def run(checkpoints: Path, *flags: object) -> None:
    run_here("main_sampling_txt2img.py", *models_in(checkpoints), *flags)


def refusal(command, checkpoints: Path, *flags: object) -> str:
    """The one line on stderr of a call that ends with exit code 2."""
    code, _, error = command("main_sampling_txt2img.py", *models_in(checkpoints), *flags)
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith("error")]
    return line


def only_run(out: Path) -> Path:
    (directory,) = (out / "samples").iterdir()
    return directory


def png_images(directory: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)) for file in sorted((directory / "images").iterdir())])


def captions_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "captions.jsonl").read_text().splitlines()]


def scored(checkpoints: Path, cache: Path, out: Path, *more: object) -> list[object]:
    return [*DATA, "--features", "classifier", "--features-cache", cache, "--save-dir", out, *more]


def test_captions_of_a_data_set_with_fid_and_clip_score(open_clip, checkpoints, cache, tmp_path, capsys):
    run(checkpoints, *scored(checkpoints, cache, tmp_path, "-bs", 5))
    directory = only_run(tmp_path)
    line = json.loads((directory / "result.json").read_text())
    assert line["num_images"] == 13  # the validation split
    assert [name.split("_")[0] for name in line["metrics"]] == ["fid", "clip-cosine", "clip-score100"]
    assert next(iter(line["metrics"])).endswith("vs_val")
    assert line["sampling"] == {"temperature": 1.0, "top_k": 64, "top_p": 0.95, "weights": "dense", "ema": False}
    assert line["captions"]["source"] == "synthetic:val"
    assert line["reference"]["source"] == "synthetic:val"
    assert line["clip"]["name"] == "clip:ViT-B-32-quickgelu/openai"
    assert sorted(file.name for file in (directory / "images").iterdir()) == [f"{i:06d}.png" for i in range(13)]
    captions = captions_of(directory)
    assert [(entry["index"], entry["file_name"]) for entry in captions] == [
        (index, f"images/{index:06d}.png") for index in range(13)
    ]
    assert len({entry["text"] for entry in captions}) > 8
    assert (directory / "samples.png").exists()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == line


def test_saved_samples_have_the_clip_score_they_had_in_memory(open_clip, checkpoints, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text(f"{PROMPT}\na small blue ring on a navy background\n")
    for file_format in ("png", "npz"):
        out = tmp_path / file_format
        flags = ["--dataset", tmp_path / "captions.txt", "-n", 5, "-bs", 2, "--format", file_format]
        run(checkpoints, *flags, "--save-dir", out, *DATA)
        directory = only_run(out)
        run_here("compute_metrics.py", f"fake_path={directory}", "metrics=clip")
        first = json.loads((directory / "result.json").read_text())
        again = json.loads((directory / "metrics_clip.json").read_text())
        assert again["metrics"] == pytest.approx(first["metrics"], rel=1e-6)
        assert (again["sampling"], again["clip"]) == (first["sampling"], first["clip"])
    lines = (directory / "captions.jsonl").read_text().splitlines()
    for content, says in (
        (lines[:4], "has captions for 4 images, there are 5"),
        (["{}"], "is damaged: every line"),
        (None, "needs the captions of the images"),
    ):
        (directory / "captions.jsonl").unlink()
        if content is not None:
            (directory / "captions.jsonl").write_text("\n".join(content))
        with pytest.raises(SystemExit):
            run_here("compute_metrics.py", f"fake_path={directory}", "metrics=clip")
        assert says in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_the_same_images_and_scores(open_clip, checkpoints, cache, tmp_path):
    flags = ["-n", 7, "--reject-keep", 0.5]
    run(checkpoints, *scored(checkpoints, cache, tmp_path / "a", *flags, "-bs", 4))
    alone = only_run(tmp_path / "a")
    words = [*models_in(checkpoints), *scored(checkpoints, cache, tmp_path / "b", *flags, "-bs", 7)]
    torchrun("main_sampling_txt2img.py", *words, PYTHONPATH=str(STAND_INS))
    both = only_run(tmp_path / "b")
    np.testing.assert_array_equal(png_images(both), png_images(alone))
    assert captions_of(both) == captions_of(alone)
    ours, theirs = (json.loads((run / "result.json").read_text()) for run in (both, alone))
    assert ours["metrics"] == pytest.approx(theirs["metrics"], rel=1e-6)
    assert ours["sampling"] == theirs["sampling"]
    assert ours["sampling"]["candidates"] == 14


def test_rejection_raises_the_clip_score(open_clip, checkpoints, tmp_path):
    (tmp_path / "captions.txt").write_text(f"{PROMPT}\n\na small blue ring on a navy background\n")
    scores = []
    for keep in (None, 0.25):
        out = tmp_path / str(keep)
        flags = [] if keep is None else ["--reject-keep", keep]
        run(checkpoints, "--dataset", tmp_path / "captions.txt", "-n", 6, "--save-dir", out, *DATA, *flags)
        line = json.loads((only_run(out) / "result.json").read_text())
        assert line["captions"]["num"] == 2
        assert [name.split("_")[0] for name in line["metrics"]] == ["clip-cosine", "clip-score100"]
        assert [entry["text"].split()[1] for entry in captions_of(only_run(out))] == ["large", "small"] * 3
        scores.append(next(iter(line["metrics"].values())))
    assert scores[1] > scores[0]


def test_a_prompt_gives_a_grid_and_files(checkpoints, tmp_path):
    prompts = ["--prompt", PROMPT, "--prompt", "a small green bar on a black background"]
    run(checkpoints, *prompts, "--num", 3, "--save-dir", tmp_path / "a", *DATA)
    directory = only_run(tmp_path / "a")
    image_NHWC = png_images(directory)
    assert len(image_NHWC) == 6
    assert [entry["text"] for entry in captions_of(directory)] == [prompts[1], prompts[3]] * 3
    grid = np.asarray(Image.open(directory / "samples.png"))
    side, gap = 8 * 16, 2  # a row for each prompt under its text, three columns of enlarged images
    assert grid.shape[1] == 3 * side + 4 * gap
    top = (grid.shape[0] - 3 * gap) // 2 - side + gap
    tile = grid[top : top + side : 8, 2 * gap + side : 2 * (gap + side) : 8]
    np.testing.assert_array_equal(tile, image_NHWC[2])  # the first prompt's second image
    assert not (directory / "result.json").exists()
    run(checkpoints, *prompts[:2], "--num", 2, "--save-dir", tmp_path / "b", "--format", "npz", *DATA)
    archive = np.load(only_run(tmp_path / "b") / "samples.npz")
    assert list(archive) == ["arr_0"]
    np.testing.assert_array_equal(archive["arr_0"][0], image_NHWC[0])


def test_prompts_of_a_file_with_a_mark_and_odd_lines_of_which_one_is_too_long(checkpoints, tmp_path, capsys):
    write_tokenizer(tmp_path, captions(200))
    long = "a small red cat on the large boat on a tree " * 3 + "at the end"
    texts = ["a small red cat", f"the\u2028boat {long}", long]
    (tmp_path / "prompts.txt").write_bytes("\r\n".join(texts).encode("utf-8-sig"))
    flags = ["--tokenizer", tmp_path / "bpe-16k", "--no-stats-saving", "--save-dir", tmp_path]
    run(checkpoints, "--dataset", tmp_path / "prompts.txt", *flags)
    directory = only_run(tmp_path)
    lines = (directory / "captions.jsonl").read_text().split("\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == texts
    assert saved_captions(directory, 3) == texts
    (said,) = [line for line in (directory / "train.log").read_text().split("\n") if "are cut" in line]
    assert "prompts.txt: 2 of 3 captions have more than" in said


def test_the_caption_decides(checkpoints, tmp_path):
    images = []
    for number, prompt in enumerate((PROMPT, PROMPT.replace("red", "blue"))):
        run(checkpoints, "--prompt", prompt, "--save-dir", tmp_path / str(number), *DATA)
        images.append(png_images(only_run(tmp_path / str(number))))
    assert (images[0] != images[1]).any()


def test_the_published_layout_with_its_own_tokenizer_from_prompts_to_pixels(checkpoints, tmp_path):
    """The golden model and its RQ-VAE as they are, and a pair of tokenizer files of the model's vocabulary."""
    write_tokenizer(tmp_path, captions(200))
    prompts = ["a small red cat", "the large boat on a tree"]
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    run(checkpoints, *words, "--num", 2, "--tokenizer", tmp_path / "bpe-16k", "--save-dir", tmp_path)
    stage1 = load_rqvae(checkpoints / "rqvae-shared")
    stage2 = load_rqtransformer(checkpoints / "rqtransformer-text")
    tokenizer = load_tokenizer(tmp_path / "bpe-16k", context_length=8)
    assert tokenizer.vocab_size == stage2.config.vocab_size_cond == 100
    token_BL = tokenizer.encode_batch(prompts * 2)
    assert len(token_BL.unique()) > 10
    codes_BHWD = sample(stage2, stage1, token_BL, seed=0, temperature=1.0, top_k=64, top_p=0.95)
    expected = to_uint8(stage1.decode_code(codes_BHWD)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(png_images(only_run(tmp_path)), expected)


def test_the_tokenizer_beside_the_weights_is_found(checkpoints, tmp_path):
    for name in ("rqvae-shared", "rqtransformer-text"):
        shutil.copytree(checkpoints / name, tmp_path / name)
    write_tokenizer(tmp_path / "rqtransformer-text", captions(200))
    run(tmp_path, "--prompt", "a small red cat")
    beside = png_images(only_run(tmp_path / "rqtransformer-text"))
    flags = ["--tokenizer", tmp_path / "rqtransformer-text" / "bpe-16k", "--save-dir", tmp_path / "named"]
    run(checkpoints, "--prompt", "a small red cat", *flags)
    np.testing.assert_array_equal(beside, png_images(only_run(tmp_path / "named")))


def test_runs_of_our_own_are_sampled_as_they_are(tmp_path):
    """Both stages trained here: the newest snapshots, and the tokenizer inside the second one."""
    first = train("stage1", "-m", write_config(tmp_path / "1.yaml", stage1()), "-r", tmp_path / "runs").run_dir
    text = {"arch.vocab_size_cond": 27, "arch.block_size_cond": 8, "arch.cond_drop_prob": 0.1}
    config = write_config(tmp_path / "2.yaml", stage2(text))
    second = train("stage2", "-m", config, "-v", first, "-r", tmp_path / "runs").run_dir
    flags = ["-v", first, "-a", second, "--prompt", PROMPT, "--num", 3, "--cfg-scale", 2, "--save-dir", tmp_path]
    run_here("main_sampling_txt2img.py", *flags)
    assert png_images(only_run(tmp_path)).shape == (3, 8, 8, 3)
    assert captions_of(only_run(tmp_path))[2] == {"index": 2, "text": PROMPT, "file_name": "images/000002.png"}


def test_clip_weights_by_file(open_clip, checkpoints, tmp_path):
    import open_clip as package

    torch.save(package.create_model("ViT-B-32").state_dict(), tmp_path / "clip.pt")
    flags = ["--metrics", "clip", "--clip-model", "ViT-B-32", "--clip-weights", tmp_path / "clip.pt"]
    run(checkpoints, "--prompt", PROMPT, *flags, "--save-dir", tmp_path, *DATA)
    line = json.loads((only_run(tmp_path) / "result.json").read_text())
    assert line["clip"]["name"] == "clip:ViT-B-32"
    assert len(line["clip"]["fingerprint"]) == 64


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "a purple circle"], "caption word 'purple' is unknown"),
        (["--prompt", PROMPT, "--num", 0], "--num 0 must be at least 1"),
        (["--prompt", PROMPT, "--dataset", "synthetic"], "--prompt and --dataset exclude each other"),
        (["--prompt", PROMPT, "-n", 3], "--prompt takes --num"),
        (["--prompt", PROMPT, "--metrics", "fid"], "--prompt has none: give --reference FILE.npz"),
        (
            ["--prompt", PROMPT, "--metrics", "cas"],
            "--metrics cas: choose from fid, is, kid, prdc, sfid, clip, or none",
        ),
        (["--prompt", PROMPT, "--reject-keep", 0], "--reject-keep 0.0 must be above 0"),
        (["--prompt", PROMPT, "--tokenizer", "nowhere"], "no tokenizer at nowhere"),
        (["--prompt", PROMPT, "--cfg-scale", 2], "guidance (cfg_scale) needs a model trained with condition dropout"),
        (["--dataset", "laion"], "--dataset laion is no file and no data set; give a text file"),
        (["--dataset", "nowhere.txt"], "--dataset nowhere.txt is no file and no data set"),
        (["--dataset", "cc3n"], "no data set (did you mean cc3m?)"),
        (["--dataset", "."], "--dataset . is a folder and no data set"),
        (["--dataset", "digits", "--metrics", "none"], "digits has no captions"),
        (["--prompt", " "], "--prompt holds no captions"),
    ],
)
def test_what_cannot_work_is_one_line(flags, says, command, checkpoints, tmp_path):
    assert says in refusal(command, checkpoints, *flags, "--save-dir", tmp_path / "out", *DATA)
    assert not (tmp_path / "out").exists()


def test_without_clip_there_is_a_line_and_a_way_out(monkeypatch, command, checkpoints, cache, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    line = refusal(command, checkpoints, *scored(checkpoints, cache, tmp_path))
    assert "open_clip" in line and "--metrics" in line
    assert not (tmp_path / "samples").exists()
    run(checkpoints, *scored(checkpoints, cache, tmp_path, "--metrics", "fid", "-n", 4))
    assert list(json.loads((only_run(tmp_path) / "result.json").read_text())["metrics"])[0].startswith("fid")


def test_models_of_the_other_kind_are_sent_to_the_other_script(command, checkpoints, tmp_path):
    classes = copies_of(tmp_path, "rqtransformer-class") / "rqtransformer-class"
    line = refusal(command, checkpoints, "-a", classes, "--prompt", PROMPT, *DATA)
    assert "main_sampling_fid.py" in line
    assert "main_sampling_txt2img.py" in command("main_sampling_fid.py", *models_in(checkpoints), "-n", 1, *DATA).err
