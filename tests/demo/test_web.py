"""What the tabs of the web demo do, without a browser: the pictures are those of the commands that stand below them."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import encoded_images
from demo.web import __main__ as entry
from demo.web.completing import cells_from, fill, mask_picture
from demo.web.decoding import decode, reconstruct_command
from demo.web.drawing import Wish, grow, pieces, prompts_in, text_commands, waiting_cells
from demo.web.figures import command as command_shown
from demo.web.figures import gallery, mistake, token_table
from demo.web.models import Models, newest_demo, open_models
from demo.web.settings import DrawFields
from runtime.errors import UserError
from sampling.given_images import painted_cells
from sampling.picture_grids import png_bytes
from sampling.sampler import Sampler
from tests.commands import run_here
from tests.demo.web_models import CLASSES, TEXT, make_checkpoints, paths_of


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def models(checkpoints) -> Models:
    return open_models(*paths_of(checkpoints, CLASSES), checkpoints / "web")


@pytest.fixture(scope="module")
def text_models(checkpoints) -> Models:
    return open_models(*paths_of(checkpoints, TEXT), checkpoints / "web-text")


def run_words(words: list[str]) -> None:
    """A command as the page shows it, without its `python`."""
    run_here(*(words[1:] if words[0] == "-m" else words))


def only_run(folder: Path, kind: str) -> Path:
    (directory,) = (folder / kind).iterdir()
    return directory


def test_a_class_grows_into_the_files_of_the_command(models):
    wish = Wish(2, DrawFields(seed=5, temperature="0.9", top_k="8 8 16 32"), class_number=3)
    steps = list(grow(models, wish, clock=itertools.repeat(0.0).__next__))  # showing costs nothing
    assert [step.position for step in steps] == list(range(65)) and {step.total for step in steps} == {64}
    assert [step.codes_NhwD is None for step in steps] == [True] * 64 + [False]
    half = steps[32].image_NCHW
    assert (half[:, :, 8:] == 128).all() and half[:, :, :8].float().std() > 1  # below is grey: nothing drawn there yet
    run_words(wish.command(models))
    images = only_run(models.folder, "samples") / "images"
    assert sorted(file.name for file in images.iterdir()) == wish.file_names() == wish.labels()
    for name, image_CHW in zip(wish.file_names(), steps[-1].image_NCHW):
        assert (images / name).read_bytes() == png_bytes(image_CHW)


def test_prompts_grow_into_the_files_of_the_command(text_models):
    prompts = prompts_in("a small red circle\n\n  a large square on a background \n")
    assert prompts == ("a small red circle", "a large square on a background")
    wish = Wish(2, DrawFields(seed=1), prompts=prompts)
    *_, last = grow(text_models, wish)
    run_words(wish.command(text_models))
    directory = only_run(text_models.folder, "samples")
    captions = [json.loads(line) for line in (directory / "captions.jsonl").read_text().splitlines()]
    for label, line, image_CHW in zip(wish.labels(), captions, last.image_NCHW, strict=True):
        assert (directory / line["file_name"]).read_bytes() == png_bytes(image_CHW)
        assert label == f"{line['text']} ({Path(line['file_name']).name})"


def test_showing_takes_at_most_half_of_the_time(models, monkeypatch):
    now, decode_codes = 0.0, Sampler.decode

    def clock() -> float:
        nonlocal now
        now += 1.0  # what a position takes
        return now

    def slow_decode(sampler: Sampler, codes_BHWD: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 3.0
        return decode_codes(sampler, codes_BHWD)

    monkeypatch.setattr(Sampler, "decode", slow_decode)
    steps = list(grow(models, Wish(1, DrawFields(), class_number=0), clock))
    assert steps[-1].position == 64
    assert 10 < len(steps) < 25


def test_painted_cells_are_drawn_again_and_the_others_keep_their_codes(models):
    kept = models.example(1)
    numbers = [0, 9, 10, 63]
    done = fill(models, kept, numbers, DrawFields(seed=2, top_p="0.95"), class_number=4)
    painted = done.redrawn_hw
    assert painted.flatten().nonzero().flatten().tolist() == numbers
    assert torch.equal(done.filled_BhwD[:, ~painted], done.codes_hwD[~painted].expand(4, -1, -1))
    assert (done.filled_BhwD[:, painted] != done.codes_hwD[painted]).any()
    grey = (done.kept_CHW == 128).all(0).view(8, 2, 8, 2).all(3).all(1)
    assert torch.equal(grey, painted)
    run_words(done.command)
    directory = only_run(models.folder, "inpainted")
    codes = np.load(directory / "codes.npz")
    assert np.array_equal(codes["redrawn"], painted.numpy())
    assert np.array_equal(codes["fills"], done.filled_BhwD.numpy())
    for number, image_CHW in enumerate(done.fill_BCHW):
        assert (directory / f"fill-{number}.png").read_bytes() == png_bytes(image_CHW)


def test_the_mask_snaps_to_the_cells_that_were_painted(tmp_path):
    redrawn_hw = cells_from([1, 5], (2, 4))
    Image.fromarray(mask_picture(redrawn_hw, (8, 8))[0].numpy()).save(tmp_path / "mask.png")
    assert torch.equal(painted_cells(tmp_path / "mask.png", (8, 8), (8, 8), (2, 4)), redrawn_hw)
    assert waiting_cells(3, (2, 4)).flatten().tolist() == [False] * 3 + [True] * 5


def test_all_codes_are_the_reconstruction_and_fewer_are_its_coarse_forms(models):
    kept = models.example(2)
    found = decode(models, kept)
    assert len(found.recon_DCHW) == 4
    for depth in (1, 4):
        words = reconstruct_command(models, kept, depth)
        run_words(words)
        assert (Path(words[3]) / "images" / kept.name).read_bytes() == png_bytes(found.recon_DCHW[depth - 1])
    whole = reconstruct_command(models, kept, details=True)
    run_words(whole)
    out = Path(whole[3])
    assert (out / "images" / kept.name).read_bytes() == png_bytes(found.recon_DCHW[-1])
    assert (out / "differences" / kept.name).read_bytes() == png_bytes(found.difference_CHW)
    for depth, map_3hw in enumerate(found.map_D3hw, start=1):
        assert (out / "code_maps" / f"{kept.stem}_{depth}.png").read_bytes() == png_bytes(map_3hw)
    result = json.loads((out / "result.json").read_text())
    assert found.mse_D == pytest.approx(result["mse_by_codes"]) and found.psnr_D == pytest.approx(
        result["psnr_by_codes"]
    )
    assert found.bits_D == [64 * math.log2(64) * depth / 256 for depth in (1, 2, 3, 4)]
    assert "4 of 4 codes a position" in found.line(4) and "6.000 bits per pixel" in found.line(4)


def test_an_upload_is_cropped_and_kept_once(models, tmp_path):
    draw = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(draw).save(tmp_path / "wide.png")
    kept = models.given(tmp_path / "wide.png")
    assert np.array_equal(np.asarray(Image.open(kept)), draw[:, 4:20])
    assert models.given(tmp_path / "wide.png") == kept
    assert torch.equal(models.shown(kept), torch.from_numpy(draw[:, 4:20].copy()).permute(2, 0, 1))


@pytest.mark.parametrize("what", ["text", "cut", "bomb", "bytes"])
def test_a_bad_upload_is_one_line(what, models, tmp_path, monkeypatch):
    file = tmp_path / "upload" / "bad.png"
    file.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    if what == "text":
        file.write_text("no picture")
    if what == "cut":
        file.write_bytes(file.read_bytes()[:4000])
    if what == "bomb":
        Image.new("1", (10_000, 9_000)).save(file, compress_level=1)
    if what == "bytes":
        monkeypatch.setattr(encoded_images, "MAX_IMAGE_BYTES", 1000)
    with pytest.raises(UserError, match="^bad.png cannot be read as an image: ") as refused:
        models.given(file)
    line = str(mistake(refused.value))
    assert line.count("\n") == 0 and len(line) < 400


def mistakes() -> dict[str, tuple[dict, str]]:
    return {
        "letters": ({"top_k": "many"}, "top-k 'many' must be whole numbers"),
        "two": ({"temperature": "1 2"}, "temperature '1 2' has 2 values: give one, or 4"),
        "negative": ({"temperature": "-1"}, "temperature"),
        "guidance": ({"cfg_scale": "much"}, "much"),
        "seed": ({"seed": None}, "seed None must be a whole number"),
    }


@pytest.mark.parametrize("name", mistakes())
def test_wrong_fields_are_one_line(name, models):
    fields, said = mistakes()[name]
    with pytest.raises(ValueError, match=said) as refused:
        list(grow(models, Wish(1, DrawFields(**fields), class_number=0)))
    assert len(str(refused.value)) < 300


def test_fields_become_settings_and_flags():
    fields = DrawFields(seed=7.0, temperature="0.9, 1", top_k=" ", top_p="0.95", cfg_scale="cosine:3")
    settings = fields.settings(2)
    assert (settings.temperature, settings.top_k, settings.top_p) == ([0.9, 1.0], None, [0.95])
    assert (settings.cfg_scale, settings.seed) == ("cosine:3", 7)
    assert fields.words() == ["--seed", "7", "-t", "0.9", "1", "--top-p", "0.95", "--cfg-scale", "cosine:3"]
    assert DrawFields().words() == ["--seed", "0"]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m: list(grow(m, Wish(10, DrawFields(), class_number=0))), "10 pictures must be 1 to 9"),
        (lambda m: list(grow(m, Wish(1, DrawFields(), class_number=10))), "class 10 is none"),
        (lambda m: fill(m, m.example(0), [], DrawFields(), class_number=0), "no cell is painted"),
        (lambda m: fill(m, m.example(0), [64], DrawFields(), class_number=0), "cell 64 is none of the 64"),
        (lambda m: m.example(10**6), "validation image 1000000 must be 0 to"),
        (lambda m: reconstruct_command(m, Path("image-0.png"), 5), "5 codes must be 1 to 4"),
    ],
)
def test_wrong_wishes_are_one_line(act, said, models):
    with pytest.raises(UserError, match=said):
        act(models)


def test_a_prompt_is_shown_piece_by_piece(text_models, capsys):
    prompt = "a small red circle"
    found = pieces(text_models, prompt)
    assert [piece for _, piece in found] == prompt.split()
    (words,) = text_commands(text_models, [prompt])
    run_words(words)
    assert " ".join(str(number) for number, _ in found) in capsys.readouterr().out
    with pytest.raises(ValueError, match="caption word 'cat' is unknown"):
        pieces(text_models, "a small cat")
    with pytest.raises(UserError, match="write 1 to 8 prompts, not 0"):
        list(grow(text_models, Wish(1, DrawFields())))


def test_nothing_of_a_text_acts_in_the_page():
    evil = "<script>alert(1)</script>\x1b[2J"
    image_CHW = torch.zeros(3, 4, 4, dtype=torch.uint8)
    for shown in (
        gallery([image_CHW], [evil]),
        command_shown(["x.py", "--prompt", evil]),
        token_table([(evil, [(1, evil)])]),
    ):
        assert "<script" not in shown and "\x1b" not in shown
    assert "python x.py --prompt &#x27;a b&#x27;" in command_shown(["x.py", "--prompt", "a b"])


def snapshot(run: Path) -> None:
    """What counts as a run with a snapshot."""
    folder = run / "snapshots" / "step_00000001"
    folder.mkdir(parents=True)
    (folder / "COMPLETE").write_text("")


def test_the_newest_demo_with_both_models_is_taken(tmp_path):
    assert newest_demo(tmp_path) is None
    digits = [tmp_path / "demo" / f"stage{stage}" / "digits" / "2026-01-01_00-00-00" for stage in (1, 2)]
    snapshot(digits[0])
    assert newest_demo(tmp_path) is None
    snapshot(digits[1])
    (digits[1].parent / "2026-01-02_00-00-00").mkdir()  # ended before its first snapshot
    assert newest_demo(tmp_path) == tuple(digits)
    pairs = [tmp_path / "demo-text" / f"stage{stage}" / "pairs" / "2026-01-01_00-00-01" for stage in (1, 2)]
    for run in pairs:
        snapshot(run)
    assert newest_demo(tmp_path) == tuple(pairs)


def test_without_a_demo_one_is_trained_and_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    started = []

    def train(words: list[str]) -> None:
        started.append(words)
        for stage in (1, 2):
            snapshot(tmp_path / "runs" / "demo" / f"stage{stage}" / "digits" / "2026-01-01_00-00-00")

    monkeypatch.setattr(entry, "run", train)
    first = entry.models_to_show(None, None)
    assert started == [["-m", "demo", "--out", "runs/demo"]]
    assert "no trained demo below runs/: training one first" in capsys.readouterr().out
    assert entry.models_to_show(None, None) == first and len(started) == 1
    assert entry.models_to_show("a", "b") == ("a", "b")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--stage1", "x"], "give both --stage1 and --stage2"),
        (["--port", "99999"], "--port 99999 must be 1 to 65535"),
        ([], "the web demo needs Gradio 6.31 or newer: make web installs it"),
    ],
)
def test_mistakes_of_the_command_are_one_line(words, said, command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not there
    ended = command("demo.web", *words)
    assert ended.code == 2 and said in ended.err and len(ended.err.splitlines()) == 1
