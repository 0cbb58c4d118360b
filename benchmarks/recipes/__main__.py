"""A whole experiment on real images: `python -m benchmarks.recipes openmoji-32 [--out runs/recipes] [--data-root DIR]`.

Both stages with averaged weights, scores while training and the best snapshots; samples of the best, scored beside the
floor (real against real), unigram codes and the nearest training images; for drawings also the prompts never seen in
training. Started again, it goes on where it stopped. The row is kept in benchmarks/results and goes, with those of all
other recipes, into the table of docs/recipes.md; ends with one JSON line. `--list` names the recipes.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from benchmarks.outputs.document_section import write_section
from benchmarks.recipes.recipe_table import RECIPES, Recipe
from benchmarks.recipes.steps import Steps
from runtime.atomic import write_text_atomically
from runtime.cli import ArgumentParser
from runtime.errors import UserError, exit_on_user_error
from runtime.pages.picture_note import COMMAND, CREDIT, sign_picture
from runtime.step_directories import best_snapshot_of

TOKENIZER = "tokenizer"
PREFIX = "recipe_"  # of the files of rows
VOCABULARY, CAPTION_TOKENS = 1024, 16
COLUMNS = ("recipe", "ran on", "minutes", "peak GB", "FID", "floor", "unigram FID", "rFID", "NLL", "copies", "accuracy")
SECTION = "recipes"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m benchmarks.recipes",
        description=__doc__.splitlines()[0],
        takes_words=False,
        example="python -m benchmarks.recipes --list",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(RECIPES)}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/recipes"), help="models, samples (default: runs/recipes)"
    )
    parser.add_argument("--data-root", help="dataset.root, as in data/README.md")
    parser.add_argument("--stage1", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-1 config")
    parser.add_argument("--stage2", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the stage-2 config")
    parser.add_argument("--num-samples", type=int, help="another number of samples; of captions at most theirs")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="rows of the table")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where recipes.md lies (default: docs)")
    parser.add_argument("--list", action="store_true", help="name the recipes and stop")
    return parser.parse_args(argv)


def run(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """All steps of a recipe; its row."""
    steps = Steps(args.out / args.name)
    root = [] if args.data_root is None else [f"dataset.root={args.data_root}"]
    words1 = [*recipe.words1, *root, *args.stage1]
    words2 = [*recipe.words2, *root, *args.stage2]
    if recipe.text:
        steps.call("captions", lambda: write_captions(steps.folder, recipe, words2))
        vocabulary = ["--vocab-size", str(VOCABULARY), "--context-length", str(CAPTION_TOKENS)]
        files = [str(steps.folder / "captions.txt"), *vocabulary, "--out", str(steps.folder / TOKENIZER)]
        steps.command("tokenizer", ["-m", "data.tokenizers", "train", *files])
        words2.append(f"dataset.tokenizer={steps.folder / TOKENIZER}")
    train = ["--auto-resume", "-r"]
    steps.command("stage1", ["main_stage1.py", "-m", recipe.stage1, *train, str(steps.folder / "stage1"), *words1])
    stage1 = best_snapshot_of(steps.run_dir("stage1", recipe.stage1))
    command = ["main_stage2.py", "-m", recipe.stage2, "-v", str(stage1), *train, str(steps.folder / "stage2"), *words2]
    steps.command("stage2", command)
    stage2 = best_snapshot_of(steps.run_dir("stage2", recipe.stage2))
    steps.command("samples", sampling_command(recipe, args.num_samples, stage1, stage2, steps.folder))
    samples = steps.run_dir("", "samples")
    row_file = steps.folder / "row.json"
    steps.call("scores", lambda: write_row(row_file, recipe, stage1, stage2, samples, steps.folder))
    facts = {
        "recipe": args.name,
        "about": recipe.about,
        "sized_for": recipe.hardware,
        "minutes": round(steps.minutes, 1),
        "peak_gb": round(steps.peak_gb, 1),
        "interrupted": steps.was_interrupted,
        "overrides": [*args.stage1, *args.stage2],
        "machine": machine(),
    }
    return facts | json.loads(row_file.read_text(encoding="utf-8"))


def sampling_command(recipe: Recipe, num_samples: int | None, stage1: Path, stage2: Path, folder: Path) -> list[str]:
    """How samples of the best snapshots are drawn and scored against the training split."""
    script = "main_sampling_txt2img.py" if recipe.text else "main_sampling_fid.py"
    words = [script, "-v", str(stage1), "-a", str(stage2), "--ema", "--report", "--reference", "train"]
    words += ["--metrics", "fid", "--features", recipe.features, "--features-cache", str(folder / "features")]
    words += ["--save-dir", str(folder)]
    count = num_samples if recipe.text else num_samples or recipe.num_samples
    words += [] if count is None else ["-n", str(count)]
    return words if recipe.cfg_scale is None else [*words, "--cfg-scale", str(recipe.cfg_scale)]


def write_captions(folder: Path, recipe: Recipe, words: list[str]) -> None:
    """The captions of the training split, for its tokenizer."""
    # after the flags are read: `--help` does not wait for torch
    from data import build_dataset
    from data.dataset import Captioned
    from runtime.config import load_config
    from training.stages.stage2 import Stage2Config

    dataset = build_dataset(load_config(Stage2Config, recipe.stage2, words).dataset, "train")
    assert isinstance(dataset, Captioned)
    write_text_atomically(folder / "captions.txt", "\n".join(dataset.captions(range(len(dataset)))) + "\n")


def write_row(path: Path, recipe: Recipe, stage1: Path, stage2: Path, samples: Path, folder: Path) -> None:
    """The numbers, as a file."""
    from benchmarks.recipes.measuring import measure

    write_text_atomically(path, json.dumps(measure(recipe, stage1, stage2, samples, folder), indent=2) + "\n")


def machine() -> str:
    """What the recipe ran on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    cores = "one thread" if threads == 1 else f"{threads} threads"
    return f"{cores} of {platform.machine()}, torch {torch.__version__.partition('+')[0]}"


def table(rows: dict[str, dict[str, Any]]) -> str:
    """All recipes in Markdown; those that have not run say so."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name, recipe in RECIPES.items():
        title = f"`{name}`: {recipe.about}, for {recipe.hardware}"
        row = rows.get(name)
        if row is None:
            lines.append(f"| {title} | not run |" + " |" * (len(COLUMNS) - 2))
            continue
        cells = [
            title,
            ", ".join([row["machine"], *(f"`{word}`" for word in row["overrides"])]),
            f"{row['minutes']:.0f}",
            f"{row['peak_gb']:.1f}",
            f"{row['fid']:.2f}",
            f"{row['fid_floor']:.2f}",
            f"{row['fid_unigram']:.2f}",
            f"{row['rfid']:.2f}",
            f"{row['nll']:.3f} ({row['unigram_nll']:.3f})",
            "-" if row["copies"] is None else f"{row['copies']:.1%}",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, row in rows.items():
        if (found := row.get("held_out")) is not None:
            lines += ["", held_out_table(name, found)]
    return "\n".join(lines)


def held_out_table(name: str, found: dict[str, Any]) -> str:
    """What samples show of combinations never seen in training."""
    lines = [
        f"`{name}`, {found['prompts']} combinations never seen in training, {found['samples']} samples:",
        "",
        "| nearest drawing of the role has | asked gender | asked skin tone | both |",
        "|---|---|---|---|",
    ]
    kinds = (
        ("samples", "shown"),
        ("chance", "chance"),
        ("the drawings through the tokenizer", "real_through_tokenizer"),
    )
    for title, key in kinds:
        shares = " | ".join(f"{found[key][part]:.1%}" for part in ("gender", "tone", "both"))
        lines.append(f"| {title} | {shares} |")
    picture = f"recipes/{name}_held_out.png"
    lines += [
        "",
        f"![Samples for captions never seen in training]({picture})",
        "",
        f"{found['credit']} (the drawings).",
    ]
    return "\n".join(lines)


def write_document(results: Path, path: Path) -> None:
    """The table of all rows that are kept, between the two marks of the document."""
    files = {name: results / f"{PREFIX}{name}.json" for name in RECIPES}
    rows = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.is_file()}
    write_section(path, SECTION, table(rows))


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name}: {recipe.about}; {recipe.hardware}")
        return
    if args.name not in RECIPES:
        raise UserError(f"recipe {args.name!r}: choose one of {', '.join(RECIPES)}")
    row = run(args, RECIPES[args.name])
    args.results.mkdir(parents=True, exist_ok=True)
    write_text_atomically(args.results / f"{PREFIX}{args.name}.json", json.dumps(row) + "\n")
    if (picture := args.out / args.name / "held_out.png").is_file():
        (args.docs / "recipes").mkdir(parents=True, exist_ok=True)
        shown = args.docs / "recipes" / f"{args.name}_held_out.png"
        shutil.copyfile(picture, shown)
        sign_picture(shown, {COMMAND: f"python -m benchmarks.recipes {args.name}", CREDIT: row["held_out"]["credit"]})
    write_document(args.results, args.docs / "recipes.md")
    print(json.dumps(row))


if __name__ == "__main__":
    with exit_on_user_error(ValueError, OSError):
        main()
